"""The networks of torch_peer.py in OpenVINO, on the CPU. Each command prints one JSON line:

    openvino_peer.py export --method fcn --size 512x1024 --to FILE.xml    a network for `model`
    openvino_peer.py model --network FILE.xml --precision bf16            inference

`export` needs torch, `model` does not, so that its memory is that of OpenVINO. A network ends with
the logits at the picture's size and argmax, and holds f32 weights. OpenVINO computes in another
precision than it was asked for where its plugin has no kernels for that one, without saying so; the
line has what ran.
"""
import argparse
import collections
import time

import numpy as np
import openvino

from timing import say, size, status_bytes, summary, timed

PRODUCTS = ('Convolution', 'Deconvolution', 'FullyConnected', 'MatMul')


def report(**row):
    say('openvino', openvino.__version__, **row)


def run_export(args):
    import torch

    import torch_peer
    torch.manual_seed(0)
    torch.set_num_threads(args.threads)
    model, parameters = torch_peer.build(args.method, args.backbone)
    model = torch_peer.ClassMap(torch_peer.settle(model)).eval()
    height, width = args.size
    image = torch.randn(args.batch, 3, height, width)
    with torch.no_grad():
        # Traced with a small image, which takes seconds; the classes of the whole one are compared.
        network = openvino.convert_model(model, example_input=image[..., :64, :128],
                                         input=list(image.shape))
        expected = model(image).numpy()
    settings = {'INFERENCE_NUM_THREADS': args.threads, 'INFERENCE_PRECISION_HINT': 'f32'}
    found = openvino.compile_model(network, 'CPU', settings)({0: image.numpy()})[0]
    if found.shape != expected.shape:
        raise SystemExit(f'{args.method}: expected classes {expected.shape}, OpenVINO finds '
                         f'{found.shape}')
    # What rounding may turn where two classes are as good.
    agrees = float((found == expected).mean())
    if agrees < 0.99:
        raise SystemExit(f'{args.method}: OpenVINO agrees with torch on {agrees:.1%} of the pixels')
    facts = dict(method=args.method, backbone=args.backbone, size=f'{height}x{width}',
                 batch=args.batch, parameters=parameters)
    for name, value in facts.items():
        network.set_rt_info(str(value), ['halfseg', name])
    openvino.save_model(network, args.to, compress_to_fp16=False)
    report(**facts, classes=len(np.unique(expected)), agrees=agrees, torch=torch.__version__)


def executed(compiled):
    """How many convolutions run in which precision and kernel, of the network as it is executed."""
    found = collections.Counter()
    for node in compiled.get_runtime_model().get_ops():
        info = node.get_rt_info()
        if info['layerType'].astype(str) in PRODUCTS:
            found[f'{info["runtimePrecision"].astype(str)} '
                  f'{info["primitiveType"].astype(str)}'] += 1
    return found


def run_model(args):
    core = openvino.Core()
    network = core.read_model(args.network)
    facts = {name: network.get_rt_info(['halfseg', name]).value
             for name in ('method', 'backbone', 'size', 'batch', 'parameters')}
    facts.update(batch=int(facts['batch']), parameters=int(facts['parameters']))
    began = time.perf_counter()
    try:
        compiled = core.compile_model(network, 'CPU', {
            'INFERENCE_NUM_THREADS': args.threads, 'INFERENCE_PRECISION_HINT': args.precision,
            'PERFORMANCE_HINT': 'LATENCY'})
    except RuntimeError as error:
        last = [line for line in str(error).splitlines() if line.strip()][-1]
        return report(left_out=f'it cannot compile the network in {args.precision}: {last}')
    compile_s = time.perf_counter() - began
    threads = compiled.get_property('INFERENCE_NUM_THREADS')
    if threads != args.threads:
        return report(left_out=f'it runs {threads} threads here where {args.threads} were asked '
                               'for')
    shape = tuple(compiled.input(0).shape)
    image = np.random.default_rng(0).standard_normal(shape, np.float32)
    request = compiled.create_infer_request()

    def step():
        request.infer({0: image}, share_inputs=True, share_outputs=True)
    seconds = timed(step, args.warmup, args.iterations)
    report(mode='inference', **facts, precision=args.precision, threads=threads, device='cpu',
           precision_hint=compiled.get_property('INFERENCE_PRECISION_HINT').to_string(),
           convolutions=executed(compiled), compile_s=compile_s,
           **summary(seconds, facts['batch']), peak_bytes=status_bytes('VmHWM'),
           peak_source='VmHWM')


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    sub = commands.add_parser('export')
    sub.set_defaults(run=run_export)
    sub.add_argument('--method', required=True)
    sub.add_argument('--backbone', default='resnet101')
    sub.add_argument('--size', type=size, default=(512, 1024))
    sub.add_argument('--batch', type=int, default=1)
    sub.add_argument('--threads', type=int, default=2)
    sub.add_argument('--to', required=True, help='FILE.xml; the weights are beside it')
    sub = commands.add_parser('model')
    sub.set_defaults(run=run_model)
    sub.add_argument('--network', required=True, help='what `export` wrote')
    sub.add_argument('--precision', choices=('f32', 'f16', 'bf16'), default='f32')
    sub.add_argument('--iterations', type=int, default=3)
    sub.add_argument('--warmup', type=int, default=1)
    sub.add_argument('--threads', type=int, default=2)
    args = parser.parse_args()
    args.run(args)


if __name__ == '__main__':
    main()
