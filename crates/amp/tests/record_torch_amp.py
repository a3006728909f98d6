"""Records what torch.amp does on the CPU, for `tests/torch_amp.rs`.

    pip install torch numpy
    python tests/record_torch_amp.py > tests/data/torch_amp.jsonl

One JSON object a line. Operations: name, dtype of autocast, of the input and of the result, the result
as a sum weighted by cos(0.7 i), and the dtype of the gradient that this sum gives the input, whose values
are summed up with the same weights. States: what `GradScaler.state_dict()` holds after a pattern of steps
(`x` overflows).

torch.autocast keeps lists for the CPU that are shorter than those for CUDA, which this crate follows:
what the CPU leaves in its input's dtype is recorded as it is, and the test names these operations.
"""
import json
import math

import torch
import torch.nn.functional as F


def values(shape, seed):
    """The values that `common::values` gives."""
    state = (seed * 2654435761 + 12345) & 0xFFFFFFFF
    out = []
    for _ in range(math.prod(shape)):
        state = (state ^ (state << 13)) & 0xFFFFFFFF
        state ^= state >> 17
        state = (state ^ (state << 5)) & 0xFFFFFFFF
        out.append((state >> 8) / (1 << 23) - 1.0)
    return torch.tensor(out, dtype=torch.float32).reshape(shape)


X = values([4, 6], 1) * 3
POSITIVE = X.abs() + 0.125
UNIT = X / 4
MATRIX = values([6, 5], 2)
MAPS = values([2, 3, 8, 7], 3)
KERNEL = values([4, 3, 3, 3], 4)
CLASSES = torch.tensor([0, 3, 1, 5])
TARGET = values([4, 6], 5).abs()

OPS = {
    "matmul": (X, lambda x: x @ MATRIX),
    "linear": (X, lambda x: F.linear(x, MATRIX.t(), values([5], 6))),
    "conv2d": (MAPS, lambda x: F.conv2d(x, KERNEL)),
    "exp": (X, torch.exp),
    "sinh": (X, torch.sinh),
    "cosh": (X, torch.cosh),
    "tan": (UNIT, torch.tan),
    "acos": (UNIT, torch.acos),
    "asin": (UNIT, torch.asin),
    "log": (POSITIVE, torch.log),
    "log1p": (POSITIVE, torch.log1p),
    "square": (X, torch.square),
    "powf_scalar": (POSITIVE, lambda x: x.pow(2.5)),
    "recip": (POSITIVE, torch.reciprocal),
    "softmax": (X, lambda x: F.softmax(x, 1)),
    "log_softmax": (X, lambda x: F.log_softmax(x, 1)),
    "softplus": (X, F.softplus),
    "sum": (X, torch.sum),
    "cumsum": (X, lambda x: x.cumsum(1)),
    "mean": (X, torch.mean),
    "prod_dim": (X, lambda x: x.prod(1, keepdim=True)),
    "norm": (X, lambda x: torch.linalg.vector_norm(x)),
    "layer_norm": (X, lambda x: F.layer_norm(x, [6])),
    "group_norm": (MAPS, lambda x: F.group_norm(x, 3)),
    "cross_entropy": (X, lambda x: F.cross_entropy(x, CLASSES)),
    "mse": (X, lambda x: F.mse_loss(x, TARGET.to(x.dtype))),
    "binary_cross_entropy_with_logits": (
        X, lambda x: F.binary_cross_entropy_with_logits(x, TARGET.to(x.dtype))),
    "interpolate": (MAPS, lambda x: F.interpolate(x, size=[11, 9], mode="bilinear")),
    "relu": (X, F.relu),
    "add": (X, lambda x: x + TARGET),
    "cat": (X, lambda x: torch.cat([x, TARGET], 1)),
}


def weighted(x):
    """The sum of all values times cos(0.7 i), in f64."""
    weights = torch.cos(0.7 * torch.arange(x.numel(), dtype=torch.float64))
    return (x.double().flatten() * weights).sum()


def name(dtype):
    return {torch.float32: "f32", torch.float16: "f16", torch.bfloat16: "bf16"}[dtype]


def main():
    for half in [torch.float16, torch.bfloat16]:
        for op, (x, function) in OPS.items():
            for dtype in [torch.float32, half]:
                given = x.detach().clone().to(dtype).requires_grad_()
                with torch.autocast("cpu", half):
                    y = function(given)
                total = weighted(y)
                total.backward()
                print(json.dumps({
                    "op": op, "autocast": name(half), "input": name(dtype), "output": name(y.dtype),
                    "sum": total.item(), "gradient": name(given.grad.dtype),
                    "gradient_sum": weighted(given.grad).item(),
                }))
    for init, growth, backoff, interval, pattern in [
        (65536.0, 2.0, 0.5, 2000, "..x."), (1024.0, 3.0, 0.25, 2, "...x....x"), (8.0, 1.5, 0.75, 5, "."),
    ]:
        scaler = torch.amp.GradScaler("cpu", init, growth, backoff, interval)
        weight = torch.nn.Parameter(torch.zeros(1))
        optimizer = torch.optim.SGD([weight], lr=0.1)
        for step in pattern:
            optimizer.zero_grad()
            scaler.scale(weight.sum() * (math.inf if step == "x" else 1.0)).backward()
            scaler.step(optimizer)
            scaler.update()
        state = scaler.state_dict()
        resumed = torch.amp.GradScaler("cpu")
        resumed.load_state_dict(state)
        assert resumed.state_dict() == state
        print(json.dumps({"pattern": pattern, "torch": torch.__version__, "init": init, "state": state}))


if __name__ == "__main__":
    main()
