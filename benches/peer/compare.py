"""Runs halfseg and its peers in alternation and writes ratios of their times.

Called by benches/vs_peers.sh. Every measurement is a process of its own. A round is one of halfseg
and one of each peer, at each number of threads in turn; then the next round. The ratio of a round
is the peer's median time over halfseg's, above 1 where halfseg is faster. The tables have the
median of the ratios of all rounds and their range.

Peers: `pytorch` (with OpenCV and numpy for the input pipeline), `compile` (torch.compile, inductor;
compiles for minutes), `openvino` (inference only). In inference all programs do the same: network,
logits at the picture's size, argmax, classes in the host's memory. Lists are separated by commas or
spaces.
"""
import argparse
import datetime
import importlib.util
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile

import wanted
from machine import machine, settings, versions
from tables import NAMES, markdown

HERE = os.path.dirname(os.path.abspath(__file__))
BIN = os.path.abspath(os.environ.get('HALFSEG_BIN', 'target/release'))
METHODS = ('fcn', 'pspnet', 'deeplabv3', 'deeplabv3plus')
BACKBONES = ('resnet18', 'resnet34', 'resnet50', 'resnet101', 'resnet152')
KINDS = ('inference', 'training', 'pipeline', 'confusion')
DOES = dict(pytorch=KINDS, openvino=('inference',), compile=('inference', 'training'))
DEFAULT_PEERS = dict(inference=('pytorch', 'openvino'), training=('pytorch',),
                     pipeline=('pytorch',), confusion=('pytorch',))


def run(command):
    """The JSON of the last line of a program's output."""
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    if done.returncode != 0:
        raise SystemExit(f'{" ".join(command)}\nfailed with {done.returncode}:\n{done.stderr}')
    text = done.stdout
    return json.loads(text if text.startswith('{\n') else text.splitlines()[-1])


def python(script, *args):
    return run([sys.executable, os.path.join(HERE, script), *args])


class Networks:
    """Networks as OpenVINO reads them: files of which one is kept, the last that was asked for."""

    def __init__(self, folder, threads):
        self.folder, self.threads, self.case = os.path.join(folder, 'network'), threads, None

    def file(self, *case):
        path = os.path.join(self.folder, 'network.xml')
        if case != self.case:
            self.case = None
            shutil.rmtree(self.folder, ignore_errors=True)
            os.makedirs(self.folder)
            python('openvino_peer.py', 'export', *case, '--threads', str(self.threads),
                   '--to', path)
            self.case = case
        return path


def network_cases(args, peers, networks):
    """Inference and training: what is compared, and how each program is started on `threads`."""
    steps = ['--iterations', str(args.iterations), '--warmup', str(args.warmup)]
    for kind in ('inference', 'training'):
        if kind not in peers:
            continue
        train = kind == 'training'
        size, batch = (args.train_size, args.train_batch) if train else (args.size, args.batch)
        for method in args.methods:
            network = ['--method', method, '--backbone', args.backbone, '--size', size,
                       '--batch', str(batch)]
            for precision in args.precisions:
                case = [*network, '--precision', precision, *steps,
                        *(['--train'] if train else [])]

                def start(program, threads, case=case, network=network, precision=precision):
                    threads = ['--threads', str(threads)]
                    if program == 'halfseg':
                        return run([f'{BIN}/halfseg', 'bench', *case, *threads, '--json', '-',
                                    '-q'])
                    if program == 'openvino':
                        return python('openvino_peer.py', 'model', '--network',
                                      networks.file(*network), '--precision', precision, *steps,
                                      *threads)
                    how = ['--compile'] if program == 'compile' else []
                    return python('torch_peer.py', 'model', *case, *threads, *how)

                yield dict(kind=kind, name=f'{method} {args.backbone}, {batch}x3x{size}',
                           case=(kind, args.backbone, size), method=method, precision=precision,
                           threads=args.threads, start=start)


def data_cases(args, peers, data):
    """The input pipeline, on one core, and the scores, where the peer alone has several threads."""
    many = ['--iterations', str(args.pictures)]
    if 'pipeline' in peers:
        def start(program, _):
            if program == 'halfseg':
                return run([f'{BIN}/data_speed', 'pipeline', '--data', data, *many])
            return python('torch_peer.py', 'pipeline', '--data', data, *many)

        yield dict(kind='pipeline', name='2048x1024 PNG to 512x1024 crop, one core', precision='',
                   case=('pipeline',), threads=[1], start=start)
    if 'confusion' in peers:
        for by in ('bincount', 'histc'):
            def start(program, threads, by=by):
                if program == 'halfseg':
                    return run([f'{BIN}/data_speed', 'confusion', *many])
                return python('torch_peer.py', 'confusion', '--by', by, *many, '--threads',
                              str(threads))

            yield dict(kind='confusion', name=f'2048x1024 maps, against torch.{by}', precision='',
                       case=('confusion',), threads=args.threads, start=start)


def measure(case, peers, runs):
    """A line of the tables for each number of threads."""
    kind, threads = case['kind'], case['threads']
    rows = {t: dict(halfseg=[], **{peer: [] for peer in peers}) for t in threads}
    left_out = {t: {} for t in threads}
    for i in range(runs):
        for t in threads:
            what = ', '.join(filter(None, (
                f'{kind} {case["name"]}', case['precision'], f'{t} thread(s)',
                f'round {i + 1} of {runs}')))
            ours = case['start']('halfseg', t)
            rows[t]['halfseg'].append(ours)
            said = [f'halfseg {ours["median_s"]:.4f} s']
            for peer in peers:
                if peer in left_out[t]:
                    continue
                row = case['start'](peer, t)
                if 'left_out' in row:
                    left_out[t][peer] = row['left_out']
                    said.append(f'{NAMES[peer]} left out: {row["left_out"]}')
                    continue
                same_work(case, t, peer, ours, row)
                rows[t][peer].append(row)
                said.append(f'{NAMES[peer]} {row["median_s"]:.4f} s, ratio '
                            f'{ratio_of(kind, ours, row):.3f}')
            print(f'{what}: {"; ".join(said)}', file=sys.stderr, flush=True)
    return [line_of(case, t, rows[t], left_out[t]) for t in threads]


def same_work(case, threads, peer, ours, row):
    keys = ['parameters', 'size', 'batch', 'pictures']
    if case['kind'] in ('inference', 'training'):
        keys += ['mode', 'method', 'backbone', 'precision', 'threads']
    for key in keys:
        if ours.get(key) != row.get(key):
            raise SystemExit(f'{case["name"]}, {threads} thread(s): {key} differ: halfseg '
                             f'{ours.get(key)}, {NAMES[peer]} {row.get(key)}')


def ratio_of(kind, ours, row):
    # Pictures differ in work, so the pipeline goes by its rate over all of them.
    return (ours['images_per_s'] / row['images_per_s'] if kind == 'pipeline'
            else row['median_s'] / ours['median_s'])


def line_of(case, threads, rows, left_out):
    ours = rows['halfseg']
    line = dict(kind=case['kind'], name=case['name'], case=case['case'], method=case.get('method'),
                precision=case['precision'], threads=threads, halfseg=sums(ours), peers=[],
                left_out=left_out)
    for peer, found in rows.items():
        if peer == 'halfseg' or not found:
            continue
        ratios = [ratio_of(case['kind'], *pair) for pair in zip(ours, found)]
        ratio, aim = statistics.median(ratios), wanted.of_peer(line, peer)
        line['peers'].append(dict(peer=peer, ratio=ratio, ratios=ratios, wanted=aim,
                                  reached=None if aim is None else ratio >= aim, **sums(found)))
    return line


def sums(rows):
    """What the tables have of the rows of one program, and those rows."""
    peaks = [row.get('peak_bytes') for row in rows]
    return dict(median_s=statistics.median(row['median_s'] for row in rows),
                images_per_s=statistics.median(row.get('images_per_s', 1 / row['median_s'])
                                               for row in rows),
                share_of_floor=rows[0].get('share_of_floor') and statistics.median(
                    row['share_of_floor'] for row in rows),
                peak_bytes=max(peaks) if all(peaks) else None, rows=rows)


def write(path, text):
    """To a temporary name first, so that a file is there as a whole or not at all."""
    temporary = f'{path}.tmp'
    with open(temporary, 'w') as f:
        f.write(text)
    os.replace(temporary, path)


def free_stem(folder, stem):
    """`stem` in the folder, with a number if results of this name are there already."""
    path, number = os.path.normpath(os.path.join(folder, stem)), 1
    while os.path.exists(f'{path}.md') or os.path.exists(f'{path}.json'):
        number += 1
        path = os.path.normpath(os.path.join(folder, f'{stem}-{number}'))
    return path


def choose_peers(args, error):
    """The peers of each kind, and what has to be said about those that do not do one."""
    if args.peers is None:
        return {kind: DEFAULT_PEERS[kind] for kind in args.only}, []
    peers = {kind: [peer for peer in args.peers if kind in DOES[peer]] for kind in args.only}
    words = []
    for peer in args.peers:
        without = [kind for kind in args.only if kind not in DOES[peer]]
        if without:
            words.append(f'{NAMES[peer]} does {" and ".join(DOES[peer])} only: left out of '
                         f'{", ".join(without)}.')
    for kind in [kind for kind, found in peers.items() if not found]:
        words.append(f'No peer is left for {kind}: not measured.')
        del peers[kind]
    if not peers:
        error(f'--peers: {" ".join(words)}')
    return peers, words


def missing(peers):
    """What the chosen peers need and this machine lacks, each with the way to install it."""
    asked = {peer for found in peers.values() for peer in found}
    found = []
    for file, packages, needed in (
            ('requirements.txt', dict(torch='torch', numpy='numpy', cv2='opencv-python-headless',
                                      PIL='pillow'), True),
            ('requirements-openvino.txt', dict(openvino='openvino'), 'openvino' in asked)):
        lacking = [name for module, name in packages.items()
                   if needed and importlib.util.find_spec(module) is None]
        if lacking:
            found.append(f'{", ".join(lacking)} missing: {sys.executable} -m pip install '
                         f'--requirement {os.path.relpath(os.path.join(HERE, file))}')
    compiler = os.environ.get('CXX', 'g++')
    if 'compile' in asked and shutil.which(compiler) is None:
        found.append(f'torch.compile needs a C++ compiler, and there is no {compiler}: install one '
                     '(Debian: g++) or name it in CXX')
    return found


class Several(argparse.Action):
    """Values separated by commas or spaces, each once, in the order given."""

    def __init__(self, *args, among=None, kind=str, **kwargs):
        super().__init__(*args, nargs='+', **kwargs)
        self.among, self.kind = among, kind

    def __call__(self, parser, namespace, values, option_string=None):
        found = []
        for value in ','.join(values).split(','):
            if value == '':
                continue
            if self.among and value not in self.among:
                parser.error(f'{option_string}: expected {", ".join(self.among)}, found {value}')
            try:
                value = self.kind(value)
            except (ValueError, argparse.ArgumentTypeError) as error:
                parser.error(f'{option_string}: {error}')
            if value not in found:
                found.append(value)
        if not found:
            parser.error(f'{option_string}: expected a value')
        setattr(namespace, self.dest, found)


def count(text):
    if not re.fullmatch(r'[1-9]\d*', text):
        raise argparse.ArgumentTypeError(f'expected a whole number above 0, found {text}')
    return int(text)


def size(text):
    if not re.fullmatch(r'[1-9]\d*x[1-9]\d*', text):
        raise argparse.ArgumentTypeError(f'expected HEIGHTxWIDTH, found {text}')
    return text


def word(text):
    if not re.fullmatch(r'[a-z0-9][a-z0-9.-]*', text):
        raise argparse.ArgumentTypeError(f'expected a-z, 0-9, dots and dashes, found {text}')
    return text


def arguments():
    parser = argparse.ArgumentParser(prog='benches/vs_peers.sh', description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)

    def several(flag, among, text, default):
        parser.add_argument(flag, action=Several, among=among, metavar='NAME', default=default,
                            help=f'of {", ".join(among)} (default: {text})')

    several('--only', KINDS, 'all', list(KINDS))
    several('--peers', tuple(DOES), 'pytorch and openvino in inference, pytorch elsewhere', None)
    several('--methods', METHODS, 'all', list(METHODS))
    several('--precisions', ('f32', 'f16', 'bf16'), 'f32 and bf16', ['f32', 'bf16'])
    parser.add_argument('--backbone', choices=BACKBONES, default='resnet101', metavar='NAME',
                        help=f'one of {", ".join(BACKBONES)} (default: resnet101)')
    parser.add_argument('--threads', action=Several, kind=count, default=[2], metavar='N',
                        help='numbers of threads, a table for each (default: 2)')
    parser.add_argument('--size', type=size, metavar='HxW', default='512x1024',
                        help='picture of inference (default: 512x1024)')
    parser.add_argument('--batch', type=count, metavar='N', default=1,
                        help='pictures at once in inference (default: 1)')
    parser.add_argument('--train-size', type=size, metavar='HxW', default='256x512',
                        help='picture of training (default: 256x512)')
    parser.add_argument('--train-batch', type=count, metavar='N', default=2,
                        help='pictures of a training step (default: 2)')
    parser.add_argument('--runs', type=count, metavar='N', default=3, help='rounds (default: 3)')
    parser.add_argument('--iterations', type=count, metavar='N', default=3,
                        help='passes that a process measures (default: 3; more for small pictures)')
    parser.add_argument('--warmup', type=count, metavar='N', default=1,
                        help='passes before them that are not measured (default: 1)')
    parser.add_argument('--pictures', type=count, metavar='N', default=40,
                        help='pictures, or pairs of maps, that a process of pipeline or confusion '
                        'measures (default: 40)')
    parser.add_argument('--data', metavar='DIR',
                        help='a Cityscapes layout with labelTrainIds for the pipeline; generated '
                        'scenes otherwise')
    parser.add_argument('--name', type=word, help='ends the names of the results')
    parser.add_argument('--out', metavar='DIR', default=os.path.join(HERE, '..', 'results'),
                        help='folder of the results (benches/results), or `-` for none')
    # For the script, before it builds: options and packages only.
    parser.add_argument('--check', action='store_true', help=argparse.SUPPRESS)
    args = parser.parse_args()
    peers, words = choose_peers(args, parser.error)
    lacking = missing(peers)
    if lacking:
        parser.exit(1, '\n'.join(lacking) + '\n')
    return args, peers, words


def main():
    args, peers, words = arguments()
    if args.check:
        return
    programs = ['halfseg', *(['data_speed'] if {'pipeline', 'confusion'} & set(peers) else [])]
    for program in programs:
        if not os.access(f'{BIN}/{program}', os.X_OK):
            raise SystemExit(f'{BIN}: expected the program {program} (HALFSEG_BIN names the '
                             'folder)')
    for line in words:
        print(line, file=sys.stderr)
    # OpenMP's threads that spin while they wait take the cores from whatever else runs; with others
    # on the machine torch took two to ten times as long.
    os.environ.setdefault('OMP_WAIT_POLICY', 'PASSIVE')
    os.environ['PYTHONWARNINGS'] = 'ignore'
    openvino = any('openvino' in found for found in peers.values())
    result = dict(date=datetime.datetime.now(datetime.timezone.utc).date().isoformat(),
                  finished=False, machine=machine(), environment=settings(),
                  versions=versions(f'{BIN}/halfseg', openvino),
                  arguments={k: v for k, v in vars(args).items()
                             if k not in ('out', 'data', 'check', 'name')},
                  peers=peers, words=words, lines=[])
    stem = None
    if args.out != '-':
        os.makedirs(args.out, exist_ok=True)
        cpu = re.sub(r'[^a-z0-9]+', '-', result['machine']['cpu'].lower()).strip('-')
        ending = f'-{args.name}' if args.name else ''
        stem = free_stem(args.out, f'{result["date"]}-vs-peers-{cpu}{ending}')

    def save():
        # After every case, so that what ends a long run leaves what was measured until then.
        if stem is not None:
            write(f'{stem}.md', markdown(result))
            write(f'{stem}.json', json.dumps(result, indent=1) + '\n')

    with tempfile.TemporaryDirectory(prefix='halfseg-bench-') as folder:
        data = args.data or folder
        if 'pipeline' in peers and not args.data:
            made = run([f'{BIN}/data_speed', 'write', '--data', folder])
            result['mean_png_bytes'] = made['mean_png_bytes']
        networks = Networks(folder, max(args.threads))
        for cases in (network_cases(args, peers, networks), data_cases(args, peers, data)):
            for case in cases:
                result['lines'] += measure(case, peers[case['kind']], args.runs)
                save()
    result['finished'] = True
    save()
    print(markdown(result))
    if stem is not None:
        print(f'written to {stem}.md and .json', file=sys.stderr)


if __name__ == '__main__':
    main()
