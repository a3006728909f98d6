"""Records losses, optimizers and learning rates of PyTorch and MMSegmentation.

    python record_training.py > data/training.json    # torch 2.8.0 and mmsegmentation 1.2.2 were used

A further argument is another seed than that of the committed file; HALFSEG_TRAINING names another file for the
tests. Everything runs on the CPU, losses in float64 and rounded once, optimizers in float32.
"""

import json
import sys
import unittest.mock

import torch
import torch.nn.functional as F

# Operators on GPUs, which are not needed here and not in mmcv-lite.
sys.modules["mmcv._ext"] = unittest.mock.MagicMock()

from mmseg.models.losses import LovaszLoss
from mmseg.structures import OHEMPixelSampler

N, C, H, W = 2, 4, 5, 6
IGNORED = 255


def values(tensor):
    return [float(v) for v in tensor.detach().reshape(-1)]


def losses(generator):
    logits = 2 * torch.randn(N, C, H, W, generator=generator, dtype=torch.float64)
    labels = torch.randint(0, C - 1, (N, H, W), generator=generator)  # the last class is absent
    labels[torch.rand(N, H, W, generator=generator) < 0.2] = IGNORED
    weights = torch.tensor([0.5, 2.0, 1.5, 3.0], dtype=torch.float64)
    counted = labels != IGNORED
    safe = labels.masked_fill(~counted, 0)
    one_hot = F.one_hot(safe, C).permute(0, 3, 1, 2) * counted[:, None]
    all_pixels = labels.numel()

    def cross_entropy(x, reduction="sum", **more):
        return F.cross_entropy(x, labels, ignore_index=IGNORED, reduction=reduction, **more)

    def focal(x):
        own = x.log_softmax(1).gather(1, safe[:, None])[:, 0]
        return (-(1 - own.exp()) ** 2 * own * weights[safe] * counted).sum() / all_pixels

    def dice(x):
        p = x.softmax(1) * counted[:, None]
        sums = lambda t: t.sum((0, 2, 3))
        return 1 - ((2 * sums(p * one_hot) + 1) / (sums(p) + sums(one_hot) + 1)).mean()

    def ohem(x):
        class Head:
            ignore_index = IGNORED
        sampler = OHEMPixelSampler(Head(), thresh=0.3, min_kept=7)
        hard = sampler.sample(x.detach(), labels[:, None])
        return (cross_entropy(x, "none") * hard.to(x.dtype)).sum() / all_pixels

    def lovasz(x):
        loss = LovaszLoss(loss_type="multi_class", classes="present", reduction="none")
        return loss(x.float(), labels, ignore_index=IGNORED)  # in float32: it makes masks of these

    def binary(x):
        each = F.binary_cross_entropy_with_logits(x, one_hot.to(x.dtype), reduction="none")
        return (each * counted[:, None] * weights[None, :, None, None]).sum() / (all_pixels * C)

    cases = {
        "class_weights": lambda x: cross_entropy(x, weight=weights) / all_pixels,
        "label_smoothing": lambda x: cross_entropy(x, weight=weights, label_smoothing=0.1) / all_pixels,
        "focal": focal,
        "ohem": ohem,
        "dice": dice,
        "lovasz": lovasz,
        "sigmoid": binary,
        "sum": lambda x: 0.5 * cross_entropy(x) / all_pixels + 2 * dice(x) + 0.75 * lovasz(x),
    }
    found = {}
    for name, loss in cases.items():
        x = logits.clone().requires_grad_()
        value = loss(x)
        value.sum().backward()
        found[name] = {"loss": float(value.sum()), "gradient": values(x.grad)}
    return {
        "shape": [N, C, H, W],
        "logits": values(logits),
        "labels": values(labels),
        "class_weights": values(weights),
        "cases": found,
    }


def optimizers(generator):
    steps = 20
    start = torch.randn(2, 3, generator=generator)
    gradients = [torch.randn(2, 3, generator=generator) for _ in range(steps)]

    def run(make):
        parameters = [torch.nn.Parameter(row.clone()) for row in start]
        # The second row has ten times the learning rate and no decay.
        groups = [{"params": [parameters[0]]}, {"params": [parameters[1]], "lr": 0.2, "weight_decay": 0.0}]
        optimizer = make(groups)
        after = []
        for gradient in gradients:
            for parameter, row in zip(parameters, gradient):
                parameter.grad = row.clone()
            optimizer.step()
            after.append([values(parameter) for parameter in parameters])
        return after

    return {
        "start": [values(row) for row in start],
        "gradients": [[values(row) for row in gradient] for gradient in gradients],
        "adamw": run(lambda groups: torch.optim.AdamW(groups, lr=0.02, betas=(0.9, 0.98), eps=1e-6, weight_decay=0.05)),
        "sgd": run(lambda groups: torch.optim.SGD(groups, lr=0.02, momentum=0.9, weight_decay=0.05)),
    }


def run(generator):
    """Twenty steps of everything at once: two parts of a batch with class weights, AdamW, a warm-up, a cosine, averages,
    and a step that is left out since its gradients overflow."""
    from torch.optim import lr_scheduler as s
    from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

    steps, parts, left_out = 20, 2, 6
    model = torch.nn.Linear(3, C)
    torch.nn.init.normal_(model.weight, generator=generator)
    torch.nn.init.normal_(model.bias, generator=generator)
    start = [values(p) for p in model.parameters()]
    inputs = torch.randn(steps, 8, 3, generator=generator)
    labels = torch.randint(0, C, (steps, 8), generator=generator)
    weights = torch.tensor([0.5, 2.0, 1.5, 3.0])
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.05, betas=(0.9, 0.98), eps=1e-6, weight_decay=0.05)
    schedulers = [
        s.CosineAnnealingLR(optimizer, T_max=steps - 1),
        s.LinearLR(optimizer, start_factor=0.25, total_iters=6),
    ]
    averaged = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.9))
    after = []
    for step in range(steps):
        optimizer.zero_grad()
        for x, y in zip(inputs[step].chunk(parts), labels[step].chunk(parts)):
            each = F.cross_entropy(model(x), y, weight=weights, reduction="none")
            (each.mean() / parts).backward()
        if step != left_out:
            optimizer.step()
            averaged.update_parameters(model)
        for scheduler in schedulers:
            scheduler.step()
        after.append([[values(p) for p in of.parameters()] for of in (model, averaged)])
    return {
        "parts": parts,
        "left_out": left_out,
        "start": start,
        "inputs": [values(x) for x in inputs],
        "labels": labels.tolist(),
        "class_weights": values(weights),
        "after": after,
    }


def schedules():
    from torch.optim import lr_scheduler as s

    iterations = 21

    def run(*makes):
        optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.5)
        schedulers = [make(optimizer) for make in makes]
        rates = []
        for _ in range(iterations):
            rates.append(optimizer.param_groups[0]["lr"])
            optimizer.step()
            for scheduler in schedulers:
                scheduler.step()
        return rates

    last = iterations - 1
    warmup = lambda o: s.LinearLR(o, start_factor=0.25, total_iters=6)
    return {
        "poly": run(lambda o: s.PolynomialLR(o, total_iters=last, power=0.9)),
        "poly_warmup": run(lambda o: s.PolynomialLR(o, total_iters=last, power=0.9), warmup),
        "cosine": run(lambda o: s.CosineAnnealingLR(o, T_max=last, eta_min=0.125)),
        "step_warmup": run(lambda o: s.MultiStepLR(o, milestones=[8, 15], gamma=0.3), warmup),
        "constant_warmup": run(warmup),
    }


def main():
    generator = torch.Generator().manual_seed(int(sys.argv[1]) if len(sys.argv) > 1 else 20261129)
    found = {
        "torch": torch.__version__,
        "losses": losses(generator),
        "optimizers": optimizers(generator),
        "schedules": schedules(),
        "run": run(generator),
    }
    json.dump(found, sys.stdout)
    print()


if __name__ == "__main__":
    main()
