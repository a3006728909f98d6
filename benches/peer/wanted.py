"""Ratios that the project wants to reach: on a machine with AMX, and with two threads."""

# By kind, backbone and size of the pictures: peer time over halfseg's, by peer and precision.
PEERS = {
    ('inference', 'resnet101', '512x1024'): dict(
        pytorch=dict(f32=1.15, bf16=1.0), openvino=dict(f32=1.3, bf16=1.1)),
    ('inference', 'resnet18', '256x512'): dict(
        pytorch=dict(f32=1.2, bf16=1.0), openvino=dict(f32=1.2, bf16=1.0)),
    ('training', 'resnet101', '256x512'): dict(pytorch=dict(f32=1.5, bf16=1.4)),
}
# Of those cases, halfseg's time with one thread over that with two.
THREADS = dict(f32=1.85, bf16=1.8, f16=1.8)
# Times of halfseg in f32 over bf16, at least, and in f16 over bf16, at most.
BF16_GAIN = {('inference', 'resnet101', '512x1024'): 1.6}
F16_COST = {('inference', 'resnet101', '512x1024'): 1.8, ('training', 'resnet101', '256x512'): 1.6}
# Whatever the machine.
DATA = dict(pipeline=3.0, confusion=5.0)


def of_peer(line, peer):
    if line['kind'] in DATA:
        return DATA[line['kind']]
    case = tuple(line['case'])
    return (PEERS.get(case, {}).get(peer, {}).get(line['precision'])
            if line['threads'] == 2 and has_amx(line) else None)


def of_threads(fewer, more):
    counted = (fewer['threads'], more['threads']) == (1, 2) and tuple(more['case']) in PEERS
    return THREADS[more['precision']] if counted and has_amx(more) else None


def of_half(wanted, line):
    return wanted.get(tuple(line['case'])) if line['threads'] == 2 and has_amx(line) else None


def has_amx(line):
    return line['halfseg']['rows'][0].get('instruction_set') in ('amx', 'amxfp16')
