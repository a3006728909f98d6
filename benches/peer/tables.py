"""A comparison as Markdown."""
import collections
import re
import statistics

import wanted

NAMES = dict(pytorch='PyTorch', openvino='OpenVINO', compile='torch.compile')
NETWORKS = ('inference', 'training')


def table(head, rows):
    return ['', f'| {" | ".join(head)} |', '|---' * len(head) + '|',
            *(f'| {" | ".join(row)} |' for row in rows)]


def gib(value):
    return '-' if value is None else f'{value / 2 ** 30:.2f}'


def time_of(kind, sums):
    if kind == 'pipeline':
        return f'{sums["images_per_s"]:.2f} images/s'
    seconds = sums['median_s']
    return f'{seconds:.3f} s' if seconds > 0.1 else f'{1e3 * seconds:.2f} ms'


def spread(ratios):
    return f'{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})'


def verdict(aim, reached):
    return '-' if aim is None else f'{aim} {"reached" if reached else "missed"}'


def threads_of(count):
    return '1 thread' if count == 1 else f'{count} threads'


def instruction_set(kernel):
    """The one that a kernel of oneDNN or OpenVINO has in its name."""
    for pattern, name in (('amx', 'AMX'), ('avx512|avx10_1_512', 'AVX-512'), ('avx2', 'AVX2'),
                          ('sse4', 'SSE4.1'), ('acl', 'ACL'), ('gemm', 'GEMM'),
                          ('ref', 'reference')):
        if re.search(pattern, kernel):
            return name
    return kernel


def ours_ran(line):
    row = line['halfseg']['rows'][0]
    found = row.get('instruction_set') or '-'
    products = row.get('f32_products')
    return f'{found}, f32 by {products}' if line['precision'] == 'f32' and products else found


def peer_ran(line, sums):
    """Convolutions by precision and instruction set, and whether that is what was asked for."""
    row, asked = sums['rows'][0], line['precision']
    if 'convolutions' not in row:
        return '-'
    by_kind, by_precision = collections.defaultdict(collections.Counter), collections.Counter()
    for name, number in row['convolutions'].items():
        precision, kernel = name.split(' ', 1)
        by_kind[precision][instruction_set(kernel)] += number
        by_precision[precision] += number
    parts = [f'{precision}: ' + ', '.join(f'{name} {n}' for name, n in
                                          by_kind[precision].most_common())
             for precision, _ in by_precision.most_common()]
    if row.get('other_convolutions'):
        parts.append(f'not oneDNN: {row["other_convolutions"]}')
    others = sum(n for precision, n in by_precision.items() if precision != asked)
    if by_precision and not by_precision[asked]:
        parts[0] = f'**not {asked}**, {parts[0]}'
    elif others:
        parts[0] = f'**{others} not in {asked}**, {parts[0]}'
    return '; '.join(parts) or '-'


def networks(lines):
    head = ['', '', 'dtype', 'halfseg', 'halfseg ran', 'peer', "peer's time", 'peer ran',
            'peer / halfseg', 'wanted', 'share of the f32 floor', 'peak GiB halfseg',
            'peak GiB peer']
    rows = []
    for line in lines:
        ours, share = line['halfseg'], line['halfseg']['share_of_floor']
        begin = [line['kind'], line['name'], line['precision'], time_of(line['kind'], ours),
                 ours_ran(line)]
        end = ['-' if not share else f'{share:.0%}', gib(ours['peak_bytes'])]
        for peer in line['peers']:
            rows.append([*begin, NAMES[peer['peer']], time_of(line['kind'], peer),
                         peer_ran(line, peer), spread(peer['ratios']),
                         verdict(peer['wanted'], peer['reached']), *end, gib(peer['peak_bytes'])])
        for peer in line['left_out']:
            rows.append([*begin, NAMES[peer], 'left out', '-', '-', '-', *end, '-'])
    return table(head, rows)


def left_out(lines):
    """Why peers were left out, each reason once."""
    cases = collections.defaultdict(list)
    for line in lines:
        for peer, why in line['left_out'].items():
            cases[peer, why].append(f'{line["kind"]} {line["method"]} {line["precision"]}')
    return [f'- {NAMES[peer]} is left out of {", ".join(names)}: {why}'
            for (peer, why), names in cases.items()]


def data(lines):
    rows = [[line['kind'], line['name'] + ('' if line['kind'] == 'pipeline' else
                                           f', peer with {threads_of(line["threads"])}'),
             time_of(line['kind'], line['halfseg']), NAMES[peer['peer']],
             time_of(line['kind'], peer), spread(peer['ratios']),
             verdict(peer['wanted'], peer['reached'])]
            for line in lines for peer in line['peers']]
    return table(['', '', 'halfseg', 'peer', "peer's time", 'ratio', 'wanted'], rows)


def medians(line):
    return [row['median_s'] for row in line['halfseg']['rows']]


def grouped(lines, *keys, within):
    """Lines that differ in `within` alone, by that: with what they have in common."""
    groups = collections.defaultdict(dict)
    for line in lines:
        groups[tuple(line[key] for key in keys)][line[within]] = line
    return groups.items()


def more_threads(lines):
    """halfseg's time with the fewest threads over that with more, round by round."""
    rows = []
    for (kind, name, precision), found in grouped(lines, 'kind', 'name', 'precision',
                                                  within='threads'):
        fewest = min(found)
        for threads in sorted(set(found) - {fewest}):
            ratios = [a / b for a, b in zip(medians(found[fewest]), medians(found[threads]))]
            aim = wanted.of_threads(found[fewest], found[threads])
            rows.append([kind, name, precision, f'{threads} against {fewest}',
                         time_of(kind, found[fewest]['halfseg']),
                         time_of(kind, found[threads]['halfseg']), spread(ratios),
                         verdict(aim, aim and statistics.median(ratios) >= aim)])
    return rows and ['', '## halfseg with more threads', *table(
        ['', '', 'dtype', 'threads', 'time with fewer', 'time with more', 'fewer / more', 'wanted'],
        rows)]


def half_precision(lines):
    """halfseg's times in one precision over those in another."""
    rows = []
    for (kind, name, threads), found in grouped(lines, 'kind', 'name', 'threads',
                                                within='precision'):
        def cell(above, below, aims=(), most=False):
            if not {above, below} <= set(found):
                return '-'
            ratio = found[above]['halfseg']['median_s'] / found[below]['halfseg']['median_s']
            aim = wanted.of_half(aims, found[below]) if aims else None
            reached = aim and (ratio <= aim if most else ratio >= aim)
            return f'{ratio:.2f}' + (
                f' (at {"most" if most else "least"} {verdict(aim, reached)})' if aim else '')
        if len(found) > 1:
            rows.append([kind, name, str(threads), cell('f32', 'bf16', wanted.BF16_GAIN),
                         cell('f32', 'f16'), cell('f16', 'bf16', wanted.F16_COST, most=True)])
    return rows and ['', '## halfseg in half precision against itself', *table(
        ['', '', 'threads', 'f32 / bf16', 'f32 / f16', 'f16 / bf16'], rows)]


def heading(result, lines):
    info, found, args = result['machine'], result['versions'], result['arguments']
    asked = [peer for peer in NAMES if any(peer in peers for peers in result['peers'].values())]
    versions = [f'torch {found["torch"]}', *(
        [f'OpenVINO {found["openvino"]}'] if 'openvino' in found else []),
        f'OpenCV {found["opencv"]}', f'numpy {found["numpy"]}', f'Python {found["python"]}']
    out = [f'# halfseg against {" and ".join(NAMES[peer] for peer in asked)}, {result["date"]}', '',
           f'{info["cpu"]} (family/model/stepping {info.get("family_model_stepping", "?")}; '
           f'{", ".join(info["flags"])}), {info["cores"]} cores, '
           f'{info.get("memory_gib", "?")} GiB, load {info["load_at_start"]} at the start.',
           f'halfseg {found["halfseg"]}, {found["rustc"]}, scripts of {found["commit"]}; '
           f'{", ".join(versions)}.',
           'Set in the environment: ' + ', '.join(
               f'`{name}={value}`' for name, value in result['environment'].items()) + '.',
           f'halfseg and each peer in alternation, {args["runs"]} round(s); each measurement is a '
           f'process of {args["warmup"]} + {args["iterations"]} passes'
           + ('.' if len(lines) == len(result['lines']) else
              f', of {args["pictures"]} for input pipeline and scores.'),
           'Ratio: peer time / halfseg time of a round, median (lowest to highest); above 1, '
           'halfseg is faster. Peak memory: the largest VmHWM of a process, interpreter and '
           'libraries included.']
    if lines:
        how = ['torch in channels_last']
        if 'openvino' in asked:
            how.append('OpenVINO with the hint LATENCY')
        if 'compile' in asked:
            how.append('torch.compile with inductor, in inference with frozen weights; its peak '
                       'memory includes compiling')
        out += ['Inference: the network, logits at the size of the picture, argmax, classes in the '
                f"host's memory; {', '.join(how)}.",
                'Ran: instruction sets; for a peer the number of its forward convolutions by '
                'precision and instruction set, as oneDNN or OpenVINO names their kernels. '
                'Wanted: what the project aims at with AMX and two threads.']
    for precision in args['precisions'] if lines and {'pytorch', 'compile'} & set(asked) else ():
        if not found.get(f'onednn_{precision}', True):
            out.append(f'**oneDNN uses no instructions for {precision} here**: torch falls back to '
                       f'slow code. Its lines in {precision} say nothing about CPUs that have '
                       'them.')
    if result.get('mean_png_bytes'):
        out.append(f'Pipeline: generated scenes, {result["mean_png_bytes"] / 1e6:.2f} MB a PNG on '
                   'average; the peer does what mmcv and mmseg transforms do, with OpenCV, numpy '
                   'and torch.')
    out += result['words']
    return out if result['finished'] else [*out, '**Not finished**: what was measured until now.']


def markdown(result):
    lines = [line for line in result['lines'] if line['kind'] in NETWORKS]
    out = heading(result, lines)
    for threads in result['arguments']['threads']:
        of_these = [line for line in lines if line['threads'] == threads]
        if of_these:
            out += ['', f'## {threads_of(threads).capitalize()}', *networks(of_these)]
            reasons = left_out(of_these)
            out += ['', *reasons] if reasons else []
    of_data = [line for line in result['lines'] if line['kind'] not in NETWORKS]
    if of_data:
        out += ['', '## Input pipeline and scores', *data(of_data)]
    out += more_threads(lines) + half_precision(lines)
    return '\n'.join(out) + '\n'
