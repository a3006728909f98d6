"""Records how the loss scales of PyTorch, Megatron and Flax move under random overflow patterns.

    python record_scalers.py torch    >> data/scales.txt   # needs torch (2.8.0 was used)
    python record_scalers.py flax     >> data/scales.txt   # needs jax (0.10.2) and flax (0.12.8)
    python record_scalers.py megatron >> data/scales.txt   # needs torch and megatron-core (0.16.1)

A further argument is another seed than that of the committed file. Whether the tests pass on such
a recording too is seen with

    HALFSEG_SCALES=/path/to/scales.txt cargo test --release --workspace --test schedule

Each package's own scaler runs, on the CPU: PyTorch's with a real parameter and optimizer, Flax's
through its `value_and_grad`, Megatron's alone, told of each overflow (in Megatron a collective tells
it) and with its numbers on the CPU instead of on "cuda". One line per run, fields separated by spaces:

    scaler init growth backoff interval min hysteresis pattern scales

`pattern` is a hex number of which bit i says that step i overflows. `scales` are the scales after
each step, run-length encoded: `value*count` or `value` joined by commas, a value being `e` and an
exponent of two, or the bits of an f32 in hex.

`min` and `hysteresis` are `-` where the scaler has none. Factors are exact in f32, except some of
PyTorch's, which computes in f64 and rounds; Megatron and Flax round their factors first.
"""

import math
import random
import struct
import sys

STEPS = 32
RUNS = 1000


def runs(settings):
    """Random settings out of a short list (Flax compiles for each), and random patterns."""
    random.seed(int(sys.argv[2]) if len(sys.argv) > 2 else 20240817)
    for _ in range(RUNS):
        chosen = random.choice(settings)
        density = random.choice([0.02, 0.08, 0.2, 0.5, 0.9])
        overflows = [random.random() < density for _ in range(STEPS)]
        if random.random() < 0.3:  # a burst, as a diverging run has
            start = random.randrange(STEPS)
            for i in range(start, min(STEPS, start + random.randrange(1, 20))):
                overflows[i] = True
        yield chosen, overflows


def encode(scale):
    mantissa, exponent = math.frexp(scale)
    if mantissa == 0.5:
        return f"e{exponent - 1}"
    return struct.pack(">f", scale).hex()


def write(name, fields, overflows, scales):
    pattern = sum(1 << i for i, overflow in enumerate(overflows) if overflow)
    encoded, count = [], 0
    for i, scale in enumerate(scales):
        count += 1
        if i + 1 == len(scales) or scales[i + 1] != scale:
            encoded.append(encode(scale) + (f"*{count}" if count > 1 else ""))
            count = 0
    print(name, *fields, f"{pattern:08x}", ",".join(encoded))


def record_torch():
    import torch

    settings = [
        (65536.0, 2.0, 0.5, 3), (65536.0, 2.0, 0.5, 1), (4.0, 2.0, 0.25, 2), (1.0, 2.0, 0.5, 5),
        (1000.0, 1.5, 0.75, 2), (512.0, 1.1, 0.8, 1), (3e4, 3.3, 0.07, 4), (2.0**94, 2.0, 0.5, 1),
    ]
    for (init, growth, backoff, interval), overflows in runs(settings):
        weight = torch.nn.Parameter(torch.ones(1))
        optimizer = torch.optim.SGD([weight], lr=1e-3)
        scaler = torch.amp.GradScaler("cpu", init, growth, backoff, interval)
        scales = []
        for overflow in overflows:
            optimizer.zero_grad()
            scaler.scale((weight * 1e-30).sum()).backward()
            if overflow:
                weight.grad.fill_(random.choice([math.inf, -math.inf, math.nan]))
            scaler.step(optimizer)
            scaler.update()
            scales.append(scaler.get_scale())
        write("torch", (init, growth, backoff, interval, "-", "-"), overflows, scales)


def record_megatron():
    import importlib.util
    import torch

    # Its scaler puts numbers on "cuda"; there may be none here, and they are as good on the CPU.
    plain = torch.tensor
    torch.tensor = lambda *args, **kwargs: plain(*args, **{**kwargs, "device": "cpu"})
    # The file alone: the package around it wants kernels that only a GPU has.
    root = importlib.util.find_spec("megatron").submodule_search_locations[0]
    spec = importlib.util.spec_from_file_location("g", f"{root}/core/optimizer/grad_scaler.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)

    settings = [
        (2.0**32, 1.0, 2.0, 0.5, 3, 2), (65536.0, 1.0, 2.0, 0.5, 3, 1), (8.0, 1.0, 2.0, 0.5, 2, 3),
        (16.0, 1.0, 2.0, 0.25, 1, 2), (1000.0, 2.5, 1.5, 0.75, 2, 2), (4.0, 4.0, 2.0, 0.5, 4, 4),
    ]
    for (init, least, growth, backoff, interval, hysteresis), overflows in runs(settings):
        scaler = module.DynamicGradScaler(init, least, growth, backoff, interval, hysteresis)
        scales = []
        for overflow in overflows:
            scaler.update(overflow)
            scales.append(scaler.scale.item())
        write("megatron", (init, growth, backoff, interval, least, hysteresis), overflows, scales)


def record_flax():
    import jax
    from flax.training.dynamic_scale import DynamicScale

    step = jax.jit(lambda scale, x: scale.value_and_grad(lambda w: (w * x).sum())(1.0)[:2])
    settings = [
        (65536.0, 2.0, 0.5, 3, None), (65536.0, 2.0, 0.5, 1, None), (4.0, 2.0, 0.25, 2, 1.0),
        (1.0, 2.0, 0.5, 5, 1.0), (1000.0, 1.5, 0.75, 2, 2.5), (512.0, 1.25, 0.5, 4, None),
    ]
    for (init, growth, backoff, interval, least), overflows in runs(settings):
        bound = {} if least is None else {"minimum_scale": least}
        scaler = DynamicScale(growth, backoff, interval, scale=jax.numpy.float32(init), **bound)
        scales = []
        for overflow in overflows:
            scaler, finite = step(scaler, math.inf if overflow else 1e-30)
            assert bool(finite) != overflow
            scales.append(float(scaler.scale))
        least = "-" if least is None else least
        write("flax", (init, growth, backoff, interval, least, "-"), overflows, scales)


if __name__ == "__main__":
    {"torch": record_torch, "megatron": record_megatron, "flax": record_flax}[sys.argv[1]]()
