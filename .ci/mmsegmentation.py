#!/usr/bin/env python3
"""Trains tiny networks of the four methods, exports them as .pth, and has PyTorch and MMSegmentation load them. The
argument is the program."""
import pathlib
import subprocess
import sys
import tempfile
import types
import warnings

import numpy as np
import torch

warnings.filterwarnings("ignore")


def missing(name):
    # Python asks any module for some.
    if name.startswith("__"):
        raise AttributeError(name)

    def op(*_, **__):
        raise NotImplementedError(f"mmcv.ops.{name}")

    return op


# mmcv-lite has no compiled operators, which these networks do not call.
if "mmcv.ops" not in sys.modules:
    stub = types.ModuleType("mmcv.ops")
    stub.__getattr__ = missing
    sys.modules["mmcv.ops"] = stub

from mmseg.apis import inference_model, init_model  # noqa: E402
from PIL import Image  # noqa: E402
from safetensors.torch import load_file  # noqa: E402

TINY = """--backbone resnet18 --data synthetic --scale 128x64 --crop 64x64 --batch 2 --iterations 4
  --set model.stem_channels=16 --set model.base_channels=8 --set model.head_channels=16 --set model.aux_channels=16
  --set model.c1_channels=8 --set data.synthetic_train=4 --set data.synthetic_val=1 --set train.pictures=1
  --set precision.dtype=f32 --set eval.scale=own --quiet""".split()

program = sys.argv[1]


def halfseg(*arguments):
    subprocess.run([program, *map(str, arguments)], check=True)


with tempfile.TemporaryDirectory() as folder:
    folder = pathlib.Path(folder)
    for method in ("fcn", "pspnet", "deeplabv3", "deeplabv3plus"):
        run, out = folder / method, folder / f"{method}.pth"
        halfseg("train", "--method", method, "--out", run, *TINY)
        halfseg("export", "--checkpoint", run, "--to", "mmseg", "--out", out, "--quiet")
        plain = folder / f"{method}.safetensors"
        halfseg("export", "--checkpoint", run, "--to", "mmseg", "--out", plain, "--quiet")

        read = torch.load(out, weights_only=True)
        state, expected = read["state_dict"], load_file(plain)
        assert set(state) == set(expected), set(state) ^ set(expected)
        for name, tensor in expected.items():
            assert state[name].dtype == tensor.dtype and torch.equal(state[name], tensor), name
        assert read["meta"]["CLASSES"] == read["meta"]["dataset_meta"]["classes"]
        assert read["meta"]["PALETTE"][0] == [128, 64, 128]
        torch.load(out, weights_only=True, mmap=True)

        model = init_model(str(out.with_suffix(".py")), str(out), device="cpu")
        keys = model.load_state_dict(state, strict=True)
        assert not keys.missing_keys and not keys.unexpected_keys
        assert model.dataset_meta["classes"][0] == "road" and len(model.dataset_meta["palette"]) == 19

        picture = next((run / "pictures").glob("*_overlay.png"))
        maps = folder / f"{method}-maps"
        halfseg("predict", "--checkpoint", run, "--logits", "--out", maps, "--quiet", picture)
        ours = load_file(next(maps.glob("*.safetensors")))
        ours = next(value for value in ours.values() if value.ndim >= 3).squeeze(0)
        # As MMSegmentation reads pictures: BGR.
        image = np.ascontiguousarray(np.array(Image.open(picture).convert("RGB"))[:, :, ::-1])
        theirs = inference_model(model, image).seg_logits.data
        far = (ours - theirs).abs().max().item()
        same = (ours.argmax(0) == theirs.argmax(0)).float().mean().item()
        print(f"{method}: {len(state)} tensors bit for bit, logits {far:.1e} apart at most, classes equal in "
              f"{100 * same:.3f} % of the pixels")
        assert far < 1e-4 and same > 0.9999
        # And back.
        halfseg("eval", "--checkpoint", out, "--data", "synthetic", "--quiet", "--json", folder / "back.json")
print("4 passed, 0 failed")
