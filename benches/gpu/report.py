"""Sums up what run.sh measured so far: FOLDER/results.md, tables in Markdown with verdicts, and
FOLDER/results.json. Prints what is missing of --parts, and exits with 1 if anything is.

Needs Python's standard library only.
"""
import argparse
import json
import os
import re
import sys

METHODS = dict(fcn='FCN', pspnet='PSPNet', deeplabv3='DeepLabV3', deeplabv3plus='DeepLabV3+')
# MMSegmentation's published fp16 results with ResNet-101 on a V100: training memory in GiB at
# 2x3x512x1024 and inference images/s at 1x3x1024x2048; then the memory that this project aims at.
PUBLISHED = dict(fcn=(5.37, 8.64, 4.0), pspnet=(5.34, 8.77, 4.0), deeplabv3=(5.75, 3.86, 4.3),
                 deeplabv3plus=(6.35, 7.87, 4.5))
# The peer's time over halfseg's, at least.
RATIOS = dict(inference=0.7, training=0.6)
GIB = 2 ** 30
MISSING = 'not measured'
# Convolutions of Burn that add up in f16, as docs/ARCHITECTURE.md lists them.
SUMS_IN_HALF = ('conv_direct', 'dgrad_fallback', 'dgrad_im2col', 'wgrad_fallback',
                'wgrad_im2col_1x1_split', 'conv_transpose2d_direct', 'conv_transpose2d_col2im')


def read(path):
    """The JSON of a file or of its last line, None where there is none."""
    text = '\n'.join(lines(path))
    for candidate in (text, text.strip().rsplit('\n', 1)[-1]):
        try:
            return json.loads(candidate)
        except ValueError:
            pass
    return None


def lines(path):
    try:
        with open(path, errors='replace') as f:
            return f.read().splitlines()
    except OSError:
        return []


def shown(value, digits=2):
    return MISSING if value is None else f'{value:.{digits}f}'


def losses(path):
    """The loss of each iteration of a training log."""
    found = []
    for line in lines(path):
        try:
            event = json.loads(line)
        except ValueError:
            continue
        if event.get('event') == 'train' and event.get('loss') is not None:
            found.append(event['loss'])
    return found


def tenths(values):
    """Means of ten equal parts."""
    parts = min(10, len(values))
    bounds = [len(values) * i // parts for i in range(parts + 1)] if parts else []
    return [sum(values[a:b]) / (b - a) for a, b in zip(bounds, bounds[1:])]


def most_used(path):
    """The most memory that nvidia-smi saw in use on the whole GPU, in GiB."""
    used = [int(line) for line in lines(path) if line.strip().isdigit()]
    return max(used) / 1024 if used else None


def kernels(path):
    """Time and launches by kernel in one training step.

    CubeCL logs a row `| 1.25ms | name` for each launch, and a table of all since the last one whenever
    the device is waited for, as after each step. The first steps tune; of the others the one with the
    most launches is whole.
    """
    units = {'ns': 1e-9, 'µs': 1e-6, 'us': 1e-6, 'ms': 1e-3, 's': 1.0}
    steps, launches = [], {}
    for line in lines(path):
        if re.match(r'\|\s*Total\s*\|', line):
            steps.append(launches)
            launches = {}
        row = re.fullmatch(r'\|\s*([\d.]+)(ns|µs|us|ms|s)\s*\|\s*(.+?)\s*', line)
        if row:
            name = re.sub(r'_[0-9a-f]{8,}$', '', row[3])
            seconds, count = launches.get(name, (0.0, 0))
            launches[name] = (seconds + float(row[1]) * units[row[2]], count + 1)
    whole = max(steps[2:] or [{}], key=lambda step: sum(count for _, count in step.values()))
    ranked = sorted(whole.items(), key=lambda item: -item[1][0])
    return [dict(kernel=name, seconds=seconds, launches=count)
            for name, (seconds, count) in ranked]


def convolutions(path):
    """How often tuning chose each convolution, by dtype and by whose it is.

    Lines are `Fastest result NAME-KEY. Top 3 times: ..`. The key of Burn's convolutions is a
    `ConvAutotuneKey`, that of halfseg's begins with a list of sizes.
    """
    chosen = {}
    for line in lines(path):
        row = re.search(r'Fastest result (.+?)-(ConvAutotuneKey|\[\d)(.*)\. Top', line)
        dtypes = re.findall(r'\b(F16|BF16|F32)\b', row[3]) if row else []
        if dtypes:
            whose = 'Burn' if row[2] == 'ConvAutotuneKey' else 'halfseg'
            key = dtypes[-1].lower(), whose, row[1]
            chosen[key] = chosen.get(key, 0) + 1
    return [dict(dtype=dtype, whose=whose, convolution=name, times=times,
                 sums_in_half=whose == 'Burn' and name in SUMS_IN_HALF and dtype != 'f32')
            for (dtype, whose, name), times in sorted(chosen.items())]


def commands(path):
    """How each command ended last: status and seconds."""
    last = {}
    for line in lines(path):
        name, status, seconds, command = line.split('\t', 3)
        last[name] = dict(status=status, seconds=float(seconds), command=command)
    return last


class Report:
    def __init__(self, folder, parts, smoke):
        self.folder, self.parts, self.smoke = folder, parts, smoke
        self.text, self.missing, self.verdicts = [], [], []
        self.commands = commands(self.at('commands.tsv'))
        self.machine = lines(self.at('machine.txt'))
        self.has_peer = not any(line.startswith('no peer') for line in self.machine)
        self.on_gpu = any(line.startswith('CUDA_PATH') for line in self.machine)
        self.results = dict(machine=self.machine, commands=self.commands)

    def at(self, name):
        return os.path.join(self.folder, name)

    def say(self, *text):
        self.text.extend(text)

    def table(self, head, rows):
        self.say('', '| ' + ' | '.join(head) + ' |', '|' + '---|' * len(head))
        self.say(*('| ' + ' | '.join(map(str, row)) + ' |' for row in rows), '')

    def miss(self, part, what):
        if part in self.parts:
            self.missing.append(f'{part}: {what}')

    def verdict(self, what, wanted, found, reached):
        """A limit, and whether it is kept; None is not measured."""
        word = {True: 'reached', False: '**missed**', None: MISSING}[reached]
        self.verdicts.append((what, wanted, found, word))

    def replay(self):
        results = self.results['replay'] = read(self.at('replay.json'))
        self.say('', '## Recordings of MMSegmentation', '')
        self.say('Largest error of a logit, and its limit: in f32 1e-3 where logits have a deviation '
                 'of 2, in f16 and bf16 1.5 times the error of PyTorch\'s autocast on this device. On '
                 'CUDA f32 may run on tensor cores in TF32: there it is 1.5 times the error of PyTorch '
                 'with inputs rounded to TF32.', '')
        self.say(*lines(self.at('replay.md')) or [MISSING])
        found = (results or {}).get('lines', [])
        if len(found) < 12 or (results or {}).get('failed'):
            self.miss('replay', f'{len(found)} lines, expected at least 12')
        for precision in ('f32', 'f16', 'bf16'):
            own = [line for line in found if line['precision'] == precision]
            within = sum(line['within'] for line in own)
            self.verdict(f'recordings in {precision}', 'all within the limit',
                         f'{within} of {len(own)}', within == len(own) if own else None)

    def speed(self):
        self.say('', '## Speed and memory in half precision', '')
        self.say('f16 on GPUs, bf16 in the self-check on a CPU. Medians. Ratio: the peer\'s time over halfseg\'s. Inference is the network, logits '
                 'at the image\'s size, argmax and the copy of the class map to the host; MMSegmentation '
                 'takes a softmax too, which changes no class: "peer, softmax" has it. A training '
                 'step is the network, both losses, backward pass, unscaling with the check for '
                 'overflow, and SGD, until the device has finished. Memory, after the warm-up: what '
                 'halfseg\'s allocator reserved in whole pages, and the most that PyTorch had '
                 'allocated (reserved); on the CPU what was resident. "GPU": the most that '
                 'nvidia-smi saw in use at any time, of halfseg (of the peer), driver and tuning '
                 'included.')
        rows, self.results['speed'] = [], []
        for mode, wanted in RATIOS.items():
            for method, title in METHODS.items():
                name = f'{mode}-{method}'
                ours, peer = read(self.at(f'{name}.json')), read(self.at(f'{name}.peer.json'))
                used = [most_used(self.at(f'{name}{end}.mib')) for end in ('.log', '.peer.json')]
                self.results['speed'].append(dict(
                    name=name, halfseg=ours, peer=peer, gpu_gib=used[0], peer_gpu_gib=used[1]))
                ours, peer = ours or {}, peer or {}
                if not ours:
                    self.miss('speed', f'{name} of halfseg')
                if not peer and self.has_peer:
                    self.miss('speed', f'{name} of the peer')
                ms, peer_ms, soft_ms = (value and 1e3 * value for value in (
                    ours.get('median_s'), peer.get('median_s'),
                    peer.get('with_softmax', {}).get('median_s')))
                held, peer_held, reserved = (value and value / GIB for value in (
                    ours.get('peak_bytes'), peer.get('peak_bytes'),
                    peer.get('peak_reserved_bytes')))
                ratio = peer_ms / ms if ms and peer_ms else None
                rate = ours.get('images_per_s')
                rows.append((
                    mode, title, shown(ms), shown(peer_ms),
                    shown(soft_ms) if mode == 'inference' else '', shown(ratio), shown(rate),
                    shown(held),
                    shown(peer_held) + (f' ({reserved:.2f})' if reserved else ''),
                    f'{shown(used[0])} ({shown(used[1])})' if self.on_gpu else 'no GPU'))
                # The limits are of a GPU, with ResNet-101 at full size.
                if self.smoke:
                    continue
                self.verdict(f'{mode}, {title}: ratio', f'>= {wanted}', shown(ratio),
                             ratio and ratio >= wanted)
                memory, images, aim = PUBLISHED[method]
                if mode == 'inference':
                    self.verdict(f'inference, {title}: images/s, V100', f'>= {images}',
                                 shown(rate), rate and rate >= images)
                else:
                    self.verdict(f'training, {title}: GiB, V100', f'<= {memory}, aim {aim}',
                                 shown(held), held and held <= memory)
        self.table(('', 'method', 'halfseg, ms', 'peer, ms', 'peer, softmax', 'ratio', 'images/s',
                    'halfseg, GiB', 'peer, GiB', 'GPU, GiB'), rows)

    def train(self):
        self.say('', '## Training curves', '', 'FCN, mean loss of each tenth of the run.', '')
        curves = {}
        for precision in ('f16', 'f32'):
            found = losses(self.at(f'train-{precision}.jsonl'))
            curves[precision] = tenths(found)
            means = ', '.join(f'{loss:.3f}' for loss in curves[precision]) or MISSING
            self.say(f'- {precision}, {len(found)} iterations: {means}')
            if not found:
                self.miss('train', f'{precision}, all iterations')
            elif self.commands.get(f'train-{precision}.log', {}).get('status') != '0':
                self.miss('train', f'{precision}, the last iterations')
        self.results['curves'] = curves
        apart = [abs(a - b) / b for a, b in zip(curves['f16'], curves['f32'])]
        if apart and len(curves['f16']) == len(curves['f32']):
            self.say('', f'Tenths differ by {100 * sum(apart) / len(apart):.1f} % on average, the last '
                     f'by {100 * apart[-1]:.1f} %.')

    def kernels(self):
        self.say('', '## Kernels of one training step of FCN in f16', '')
        found = self.results['kernels'] = kernels(self.at('kernels.txt'))
        if found:
            total = sum(row['seconds'] for row in found)
            launches = sum(row['launches'] for row in found)
            self.say(f'{1e3 * total:.1f} ms in {launches} launches.')
            self.table(('kernel', 'ms', '%', 'launches'), [
                (f'`{row["kernel"]}`', f'{1e3 * row["seconds"]:.2f}',
                 f'{100 * row["seconds"] / total:.1f}', row['launches']) for row in found[:30]])
        elif self.on_gpu:
            self.miss('kernels', 'the profile')
            self.say(MISSING)
        else:
            self.say(f'{MISSING}: no GPU')

    def cudnn(self):
        found = self.results['cudnn'] = read(self.at('cudnn.json'))
        if not self.on_gpu:
            return
        self.say('', '## Convolutions by cuDNN', '')
        absent = [line for line in lines(self.at('cudnn.log')) if 'cuDNN computes no' in line]
        if absent or not found:
            self.miss('cudnn', 'a step with cuDNN')
            self.say(*absent or [MISSING])
            return
        without = (read(self.at('training-fcn.json')) or {}).get('median_s')
        self.say(f'A training step of FCN takes {shown(1e3 * found["median_s"])} ms with them, and '
                 f'{shown(without and 1e3 * without)} ms with what tuning chose of the others. The host waits before '
                 'and after each of cuDNN\'s.')

    def tuning(self):
        found = self.results['convolutions'] = convolutions(self.at('autotune.log'))
        if found:
            self.say('## Convolutions that tuning chose', '')
            self.table(('dtype', '', 'convolution', 'shapes', 'sums in half precision'), [
                (row['dtype'], row['whose'], f'`{row["convolution"]}`', row['times'],
                 '**yes**' if row['sums_in_half'] else '') for row in found])

    def write(self):
        for section in (self.replay, self.speed, self.train, self.kernels, self.cudnn, self.tuning):
            section()
        head = ['# halfseg on a GPU' if self.on_gpu else '# halfseg on a CPU', '']
        head += [f'    {line}' for line in self.machine]
        body, self.text = self.text, []
        if self.verdicts:
            self.say('', '## Limits')
            self.table(('', 'wanted', 'found', ''), self.verdicts)
        bad = [(name, row['status'], row['seconds']) for name, row in self.commands.items()
               if row['status'] != '0']
        if bad:
            self.say('', '## Commands that did not succeed', '',
                     'Status 124: it ran out of time and kept what it had; 137: it was killed.')
            self.table(('command', 'status', 's'), bad)
        self.results['limits'] = [
            dict(zip(('what', 'wanted', 'found', 'verdict'), row)) for row in self.verdicts]
        self.results['missing'] = self.missing
        replace(self.at('results.md'), '\n'.join(head + self.text + body) + '\n')
        replace(self.at('results.json'), json.dumps(self.results, indent=1) + '\n')
        for missing in self.missing:
            print(f'missing: {missing}')
        return 1 if self.missing else 0


def replace(path, text):
    """Writes a file that is whole at any time."""
    with open(path + '.part', 'w') as f:
        f.write(text)
    os.replace(path + '.part', path)


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('folder')
    parser.add_argument('--parts', default='replay,speed,train,kernels,cudnn')
    parser.add_argument('--smoke', action='store_true')
    args = parser.parse_args()
    return Report(args.folder, args.parts.split(','), args.smoke).write()


if __name__ == '__main__':
    sys.exit(main())
