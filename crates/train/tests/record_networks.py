"""Records steps of MMSegmentation 1.2.2 with parts of the backbone frozen, and of a network with one output for two
classes, by the programs in ../shared/reference.

    python record_networks.py SHARED_REFERENCE data/networks [SEED]

Each folder has `model.pth`, the network at first, and `values.safetensors`: the batch, what the network computes at
inference, the losses of each step and all tensors after the last.
"""
import os
import os.path as osp
import sys

sys.path.insert(0, sys.argv[1])
OUT = sys.argv[2]
SEED = sys.argv[3] if len(sys.argv) > 3 else "0"
import argparse

import make_reference
import oracle_common as oc
import torch
from mmseg.structures import SegDataSample
from safetensors.torch import save_file

STEPS = 3
SMALL = ("--base-channels 2 --stem-channels 4 --channels 4 --aux-channels 4 --c1-channels 4 --depth 18 "
         "--seed").split() + [SEED]
ONE_OUTPUT = dict(out_channels=1, threshold=0.4)
CASES = {
    "frozen": ("fcn", 4, dict(backbone=dict(frozen_stages=2))),
    "norm_eval": ("pspnet", 4, dict(backbone=dict(frozen_stages=0, norm_eval=True))),
    "binary": ("pspnet", 2, dict(decode_head=ONE_OUTPUT, auxiliary_head=ONE_OUTPUT)),
}


def record(name, method, classes, changes):
    parser = argparse.ArgumentParser()
    oc.add_model_args(parser)
    args = parser.parse_args(["--method", method, "--num-classes", str(classes), *SMALL])
    args.legacy_pth = False
    cfg = oc.model_config(args)
    for part, settings in changes.items():
        cfg.model[part].update(settings)
        if "out_channels" in settings:
            cfg.model[part].loss_decode.use_sigmoid = True
    model = oc.MODELS.build(oc.ConfigDict(cfg.model))
    oc.randomise(model, args.seed)
    folder = osp.join(OUT, name)
    os.makedirs(folder, exist_ok=True)
    images = [oc.random_image(args.seed, 49, 65, f"image{i}") for i in range(2)]
    images = oc.preprocess(model, images)
    labels = [oc.random_labels(args.seed, 49, 65, classes, f"label{i}") for i in range(2)]
    labels = torch.stack([torch.from_numpy(label) for label in labels])
    oc.calibrate_classifiers(model, images, args.seed)
    make_reference.save_model(model, cfg, args, folder)
    os.remove(osp.join(folder, "model.safetensors"))

    model.eval()
    found = {"image": images, "label": labels.to(torch.uint8)}
    with torch.no_grad():
        metas = [dict(img_shape=images.shape[2:])] * len(images)
        found["logits"] = model.encode_decode(images, metas)
        samples = model.predict(images, [SegDataSample(metainfo=dict(ori_shape=images.shape[2:], **metas[0]))
                                         for _ in images])
        found["classes"] = torch.stack([sample.pred_sem_seg.data[0] for sample in samples]).to(torch.uint8)
    model.train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, weight_decay=5e-4)
    losses = []
    for _ in range(STEPS):
        total, log = make_reference.loss_of(model, images, labels)
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
        losses.append([log[key] for key in ("loss", "decode.loss_ce", "aux.loss_ce")])
    found["losses"] = torch.tensor(losses)
    found.update({f"after.{key}": value for key, value in model.state_dict().items()})
    save_file(make_reference.tensors(found), osp.join(folder, "values.safetensors"))


for name, case in CASES.items():
    record(name, *case)
    print("wrote", name, flush=True)
