"""Sums up what run.sh measured: a table in Markdown on stdout, and results.json in the same folder.

usage: report.py FOLDER. Needs Python's standard library only.
"""
import json
import os
import re
import sys

METHODS = ('fcn', 'pspnet', 'deeplabv3', 'deeplabv3plus')
# MMSegmentation's published fp16 figures on a V100: training memory in GB and inference images/s.
PUBLISHED = dict(fcn=(5.37, 8.64), pspnet=(5.34, 8.77), deeplabv3=(5.75, 3.86),
                 deeplabv3plus=(6.35, 7.87))
MISSING = 'not measured'


def read(path):
    """The JSON of a file or of its last line, None where there is none."""
    try:
        with open(path) as f:
            text = f.read()
    except OSError:
        return None
    for candidate in (text, text.strip().rsplit('\n', 1)[-1]):
        try:
            return json.loads(candidate)
        except ValueError:
            pass
    return None


def lines(path):
    try:
        with open(path) as f:
            return f.read().splitlines()
    except OSError:
        return []


def number(row, key, scale=1.0, digits=2):
    value = (row or {}).get(key)
    return MISSING if value is None else f'{value * scale:.{digits}f}'


def curve(folder):
    """Mean losses of ten equal parts of a training log."""
    losses = []
    for line in lines(os.path.join(folder, 'log.jsonl')):
        try:
            event = json.loads(line)
        except ValueError:
            continue
        if event.get('event') == 'train' and event.get('loss') is not None:
            losses.append(event['loss'])
    parts = min(10, len(losses))
    bounds = [len(losses) * i // parts for i in range(parts + 1)] if parts else []
    return [sum(losses[a:b]) / (b - a) for a, b in zip(bounds, bounds[1:])]


def kernels(path, top=25):
    """Total time by kernel of CubeCL's profile, whose rows are `| 1.25ms | Kernel_<hash>`."""
    units = {'ns': 1e-9, 'µs': 1e-6, 'us': 1e-6, 'ms': 1e-3, 's': 1.0}
    totals = {}
    for line in lines(path):
        row = re.fullmatch(r'\|\s*([\d.]+)(ns|µs|us|ms|s)\s*\|\s*(\S+?)(_[0-9a-f]{8})?:?(\s.*)?', line)
        if row:
            seconds, count = totals.get(row[3], (0.0, 0))
            totals[row[3]] = (seconds + float(row[1]) * units[row[2]], count + 1)
    ranked = sorted(totals.items(), key=lambda item: -item[1][0])
    return [dict(kernel=name, seconds=seconds, launches=count)
            for name, (seconds, count) in ranked[:top]]


def main(folder):
    at = lambda name: os.path.join(folder, name)
    results = dict(machine=lines(at('machine.txt')), replay=read(at('replay.json')), rows=[])
    print('# halfseg on a GPU\n')
    print('\n'.join(f'    {line}' for line in results['machine']))

    print('\n## Recordings of MMSegmentation\n')
    print('\n'.join(lines(at('replay.md'))) or MISSING)

    print('\n## Training curves\n\nMean loss of each tenth of the run.\n')
    results['curves'] = {precision: curve(at(f'train-{precision}')) for precision in ('f16', 'f32')}
    for precision, losses in results['curves'].items():
        print(f'- {precision}: ' + (', '.join(f'{loss:.3f}' for loss in losses) or MISSING))

    print('\n## Speed and memory\n')
    print('Ratio: the peer\'s median time over halfseg\'s. Memory on a GPU: what halfseg\'s allocator '
          'reserved, in whole pages, and the most that PyTorch had allocated; on the CPU the most '
          'that was resident. Inference ends when the class map is on the host; neither program '
          'takes a softmax, which changes no class.\n')
    print('| | method | dtype | halfseg, ms | peer, ms | ratio | halfseg, GiB | peer, GiB | '
          'images/s | published (V100) |')
    print('|---|---|---|---|---|---|---|---|---|---|')
    for mode in ('inference', 'training'):
        for method in METHODS:
            for precision in ('f32', 'f16', 'bf16'):
                name = f'{mode}-{method}-{precision}'
                ours, peer = read(at(f'{name}.json')), read(at(f'{name}.peer.json'))
                if ours is None and peer is None:
                    continue
                ratio = MISSING
                if ours and peer:
                    ratio = f'{peer["median_s"] / ours["median_s"]:.2f}'
                memory, rate = PUBLISHED[method]
                published = f'{memory} GB' if mode == 'training' else f'{rate} images/s'
                # They are of fp16 on this backbone at full size.
                if precision != 'f16' or (ours or {}).get('backbone') != 'resnet101':
                    published = ''
                cells = (mode, method, precision, number(ours, 'median_s', 1e3),
                         number(peer, 'median_s', 1e3), ratio,
                         number(ours, 'peak_bytes', 2 ** -30), number(peer, 'peak_bytes', 2 ** -30),
                         number(ours, 'images_per_s'), published)
                print('| ' + ' | '.join(cells) + ' |')
                results['rows'].append(dict(name=name, halfseg=ours, peer=peer))

    print('\n## Kernels of three training steps of FCN in f16\n')
    results['kernels'] = kernels(at('kernels.txt'))
    if results['kernels']:
        print('| kernel | ms | launches |\n|---|---|---|')
        for row in results['kernels']:
            print(f'| `{row["kernel"]}` | {row["seconds"] * 1e3:.2f} | {row["launches"]} |')
    else:
        print(MISSING)
    with open(at('results.json'), 'w') as f:
        json.dump(results, f, indent=1)


if __name__ == '__main__':
    main(sys.argv[1])
