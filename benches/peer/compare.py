"""Runs halfseg and the peer in alternation and writes ratios of their times.

Called by benches/vs_pytorch.sh. Every measurement is a process of its own: halfseg, peer, halfseg,
peer, and so on; the ratio of a pair is the peer's median time over halfseg's, above 1 where halfseg
is faster. The table has the median of the ratios and their range.
"""
import argparse
import datetime
import json
import os
import platform
import re
import statistics
import subprocess
import sys
import tempfile

HERE = os.path.dirname(os.path.abspath(__file__))
BIN = os.path.abspath(os.environ.get('HALFSEG_BIN', 'target/release'))
METHODS = ('fcn', 'pspnet', 'deeplabv3', 'deeplabv3plus')
KINDS = ('inference', 'training', 'pipeline', 'confusion')
# Ratios that the project wants to reach.
TARGETS = {('inference', 'f32'): 1.15, ('inference', 'bf16'): 1.0, ('training', 'f32'): 1.1,
           ('training', 'bf16'): 0.9, ('pipeline', ''): 3.0, ('confusion', ''): 5.0}
# How much faster than f32 inference in bf16 should be, where the CPU multiplies bf16.
BF16_GAIN = 1.6
INTERESTING = ('avx2', 'fma', 'f16c', 'avx512f', 'avx512_bf16', 'avx512_fp16', 'amx_bf16',
               'avx_vnni', 'asimd', 'bf16', 'i8mm')


def run(command):
    """The JSON of the last line of a program's output."""
    env = dict(os.environ, OMP_WAIT_POLICY='PASSIVE', PYTHONWARNINGS='ignore')
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                          env=env)
    if done.returncode != 0:
        raise SystemExit(f'{" ".join(command)}\nfailed with {done.returncode}:\n{done.stderr}')
    text = done.stdout
    return json.loads(text if text.startswith('{\n') else text.splitlines()[-1])


def peer(*args):
    return run([sys.executable, os.path.join(HERE, 'torch_peer.py'), *args])


def lines(args, data):
    """Every comparison: its kind, name, precision, and the two commands."""
    steps = ['--iterations', str(args.iterations), '--warmup', str(args.warmup)]
    threads = ['--threads', str(args.threads)]
    for kind in ('inference', 'training'):
        if kind not in args.only:
            continue
        for method in args.methods:
            for precision in args.precisions:
                train = kind == 'training'
                shape = args.train_size if train else args.size
                batch = args.train_batch if train else 1
                case = ['--method', method, '--backbone', args.backbone, '--size', shape,
                        '--batch', str(batch), '--precision', precision, *steps, *threads,
                        *(['--train'] if train else [])]
                yield (kind, f'{method} {args.backbone}, {batch}x3x{shape}', precision,
                       lambda case=case: run([f'{BIN}/halfseg', 'bench', *case, '--json', '-']),
                       lambda case=case: peer('model', *case))
    many = ['--iterations', str(args.pictures)]
    if 'pipeline' in args.only:
        yield ('pipeline', '2048x1024 PNG to 512x1024 crop, one core', '',
               lambda: run([f'{BIN}/data_speed', 'pipeline', '--data', data, *many]),
               lambda: peer('pipeline', '--data', data, *many))
    if 'confusion' in args.only:
        for by in ('bincount', 'histc'):
            yield ('confusion', f'2048x1024 maps, against torch.{by}', '',
                   lambda: run([f'{BIN}/data_speed', 'confusion', *many]),
                   lambda by=by: peer('confusion', '--by', by, *many, *threads))


def compare(kind, name, precision, ours, theirs, runs):
    pairs, ratios = [], []
    for i in range(runs):
        a, b = ours(), theirs()
        for key in ('parameters', 'size', 'batch', 'pictures'):
            if a.get(key) != b.get(key):
                raise SystemExit(f'{name}: {key} differ: halfseg {a.get(key)}, peer {b.get(key)}')
        # Pictures differ in work, so the pipeline goes by its rate over all of them.
        ratio = (a['images_per_s'] / b['images_per_s'] if kind == 'pipeline'
                 else b['median_s'] / a['median_s'])
        pairs.append((a, b))
        ratios.append(ratio)
        print(f'{kind} {name} {precision} {i + 1}/{runs}: halfseg {a["median_s"]:.4f} s, '
              f'peer {b["median_s"]:.4f} s, ratio {ratio:.3f}', file=sys.stderr, flush=True)
    peaks = [[p[side].get('peak_bytes') for p in pairs] for side in (0, 1)]
    peaks = [max(v) if all(v) else None for v in peaks]
    target = TARGETS.get((kind, precision))
    ratio = statistics.median(ratios)
    return dict(kind=kind, name=name, precision=precision, ratio=ratio, ratios=ratios,
                target=target, reached=None if target is None else ratio >= target,
                halfseg_s=statistics.median(p[0]['median_s'] for p in pairs),
                peer_s=statistics.median(p[1]['median_s'] for p in pairs),
                halfseg_images_per_s=statistics.median(
                    p[0].get('images_per_s', 1 / p[0]['median_s']) for p in pairs),
                peer_images_per_s=statistics.median(
                    p[1].get('images_per_s', 1 / p[1]['median_s']) for p in pairs),
                share_of_floor=pairs[0][0].get('share_of_floor') and statistics.median(
                    p[0]['share_of_floor'] for p in pairs),
                halfseg_peak_bytes=peaks[0], peer_peak_bytes=peaks[1],
                halfseg=[p[0] for p in pairs], peer=[p[1] for p in pairs])


def machine():
    info = {}
    try:
        with open('/proc/cpuinfo') as f:
            text = f.read()
        model = re.search(r'model name\s*: (.*)', text)
        flags = re.search(r'(?:flags|Features)\s*: (.*)', text)
        info['cpu'] = model.group(1).strip() if model else platform.machine()
        info['flags'] = [f for f in INTERESTING if flags and f in flags.group(1).split()]
        ids = [re.search(rf'{key}\s*: (\d+)', text)
               for key in ('cpu family', 'model', 'stepping')]
        info['family_model_stepping'] = '/'.join(m.group(1) if m else '?' for m in ids)
    except OSError:
        info.update(cpu=platform.processor() or platform.machine(), flags=[])
    info['cores'] = os.cpu_count()
    try:
        with open('/proc/meminfo') as f:
            info['memory_gib'] = round(int(f.readline().split()[1]) / 2 ** 20, 1)
    except OSError:
        pass
    info['system'] = platform.platform()
    info['load_at_start'] = round(os.getloadavg()[0], 2)
    return info


def versions():
    def said(*command):
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        return done.stdout.strip() if done.returncode == 0 else 'unknown'

    import cv2
    import numpy
    import torch
    dirty = said('git', 'status', '--porcelain', '--untracked-files=no')
    return dict(halfseg=said(f'{BIN}/halfseg', '--version').removeprefix('halfseg '),
                commit=said('git', 'rev-parse', '--short', 'HEAD') + ('+changes' if dirty else ''),
                rustc=said('rustc', '--version'), python=platform.python_version(),
                torch=torch.__version__, onednn_bf16=torch.ops.mkldnn._is_mkldnn_bf16_supported(),
                opencv=cv2.__version__, numpy=numpy.__version__)


def gib(value):
    return '-' if value is None else f'{value / 2 ** 30:.2f}'


def markdown(result):
    info, found, args = result['machine'], result['versions'], result['arguments']
    out = [f'# halfseg against PyTorch, {result["date"]}', '',
           f'{info["cpu"]} (family/model/stepping {info.get("family_model_stepping", "?")}; '
           f'{", ".join(info["flags"])}), {info["cores"]} cores, {info.get("memory_gib", "?")} GiB, '
           f'load {info["load_at_start"]} at the start.',
           f'halfseg {found["halfseg"]} ({found["commit"]}, {found["rustc"]}); torch '
           f'{found["torch"]}, OpenCV {found["opencv"]}, numpy {found["numpy"]}, Python '
           f'{found["python"]}.',
           f'{args["threads"]} threads; torch in '
           'channels_last; halfseg and peer in alternation, '
           f'{args["runs"]} pairs of processes, each {args["warmup"]} + {args["iterations"]} passes.',
           'Ratio: peer time / halfseg time, median (lowest to highest); above 1, halfseg is '
           'faster. Peak memory: the largest VmHWM of a process, interpreter and libraries '
           'included.']
    if not found['onednn_bf16']:
        out.append('**This CPU has no instructions for bf16** that oneDNN would use: torch falls '
                   'back to slow code there, and no gain over f32 is possible in hardware. The '
                   'lines in bf16 say nothing about CPUs that have them.')
    if result.get('mean_png_bytes'):
        out.append(f'Pipeline: generated scenes, {result["mean_png_bytes"] / 1e6:.2f} MB a PNG on '
                   'average; the peer does what mmcv and mmseg transforms do, with OpenCV, numpy '
                   'and torch.')
    out += ['', '| | | dtype | halfseg | peer | ratio | wanted | share of the f32 floor | peak GiB '
            'halfseg | peak GiB peer |', '|---|---|---|---|---|---|---|---|---|---|']
    for line in result['lines']:
        if line['kind'] == 'pipeline':
            times = [f'{line[k]:.2f} images/s' for k in ('halfseg_images_per_s',
                                                         'peer_images_per_s')]
        else:
            times = [f'{line[k]:.3f} s' if line[k] > 0.1 else f'{1e3 * line[k]:.2f} ms'
                     for k in ('halfseg_s', 'peer_s')]
        ratio = (f'{line["ratio"]:.2f} ({min(line["ratios"]):.2f} to {max(line["ratios"]):.2f})')
        wanted = '-' if line['target'] is None else (
            f'{line["target"]} {"reached" if line["reached"] else "missed"}')
        share = line['share_of_floor']
        out.append(f'| {line["kind"]} | {line["name"]} | {line["precision"]} | {times[0]} | '
                   f'{times[1]} | {ratio} | {wanted} | '
                   f'{"-" if not share else f"{share:.0%}"} | {gib(line["halfseg_peak_bytes"])} | '
                   f'{gib(line["peer_peak_bytes"])} |')
    gains = result['bf16_gains']
    if gains:
        out += ['', f'halfseg in bf16 against itself in f32 (wanted in inference: {BF16_GAIN}, with '
                'instructions for bf16):', '']
        out += [f'- {gain["kind"]} {gain["name"]}: {gain["gain"]:.2f}' for gain in gains]
    return '\n'.join(out) + '\n'


def bf16_gains(found):
    by_case = {(line['kind'], line['name'], line['precision']): line for line in found}
    return [dict(kind=kind, name=name, gain=line['halfseg_s'] / by_case[kind, name, 'bf16']
                 ['halfseg_s'])
            for (kind, name, precision), line in by_case.items()
            if precision == 'f32' and (kind, name, 'bf16') in by_case]


def write(path, text):
    """To a temporary name first, so that a file is there as a whole or not at all."""
    temporary = f'{path}.tmp'
    with open(temporary, 'w') as f:
        f.write(text)
    os.replace(temporary, path)


def main():
    parser = argparse.ArgumentParser(prog='benches/vs_pytorch.sh', description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--only', nargs='+', choices=KINDS, default=KINDS)
    parser.add_argument('--methods', nargs='+', choices=METHODS, default=METHODS)
    parser.add_argument('--precisions', nargs='+', choices=('f32', 'f16', 'bf16'),
                        default=('f32', 'bf16'))
    parser.add_argument('--backbone', default='resnet101')
    parser.add_argument('--runs', type=int, default=3, help='pairs of processes (default 3)')
    parser.add_argument('--iterations', type=int, default=3, help='passes measured in a process')
    parser.add_argument('--warmup', type=int, default=1)
    parser.add_argument('--pictures', type=int, default=40,
                        help='pictures or pairs of maps in a process')
    parser.add_argument('--threads', type=int, default=2)
    parser.add_argument('--size', default='512x1024', help='image of inference')
    parser.add_argument('--train-size', default='256x512')
    parser.add_argument('--train-batch', type=int, default=2)
    parser.add_argument('--data', help='a Cityscapes layout with labelTrainIds for the pipeline; '
                        'generated scenes otherwise')
    parser.add_argument('--out', default=os.path.join(HERE, '..', 'results'),
                        help='folder for the results, or `-` for none')
    args = parser.parse_args()

    result = dict(date=datetime.datetime.now(datetime.timezone.utc).date().isoformat(),
                  machine=machine(), versions=versions(),
                  arguments={k: v for k, v in vars(args).items() if k not in ('out', 'data')},
                  peer_parameters=peer('params')['parameters'])
    with tempfile.TemporaryDirectory(prefix='halfseg-bench-') as folder:
        data = args.data or folder
        if 'pipeline' in args.only and not args.data:
            made = run([f'{BIN}/data_speed', 'write', '--data', folder])
            result['mean_png_bytes'] = made['mean_png_bytes']
        result['lines'] = [compare(*line, args.runs) for line in lines(args, data)]
    result['bf16_gains'] = bf16_gains(result['lines'])
    text = markdown(result)
    print(text)
    if args.out != '-':
        os.makedirs(args.out, exist_ok=True)
        cpu = re.sub(r'[^a-z0-9]+', '-', result['machine']['cpu'].lower()).strip('-')
        stem = os.path.join(args.out, f'{result["date"]}-vs-pytorch-{cpu}')
        write(f'{stem}.md', text)
        write(f'{stem}.json', json.dumps(result, indent=1) + '\n')
        print(f'written to {os.path.normpath(stem)}.md and .json', file=sys.stderr)


if __name__ == '__main__':
    main()
