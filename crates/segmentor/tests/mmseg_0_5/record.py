"""Checkpoints and logits of MMSegmentation 0.5.0 itself, narrow, in the format of its time.

    PYTHONPATH=MMSEG_0.5.0:MMCV_1.7.2 python record.py OUT

MMSegmentation 0.5.0 (July 2020) builds the networks from configurations as its `configs/fp16` had them, SyncBN
included, and MMCV 1.7.2 saves them. PyTorch 1.5, which it was published with, wrote the format from before the
zip archives: `_use_new_zipfile_serialization=False` asks a later one for it.
"""
import functools
import os
import sys
import types

import numpy as np
import torch
from safetensors.torch import save_file

stub = types.ModuleType('mmcv.ops')
stub.__getattr__ = lambda name: None if not name.startswith('__') else (_ for _ in ()).throw(
    AttributeError(name))
sys.modules['mmcv.ops'] = stub
import mmcv  # noqa: E402
import mmseg  # noqa: E402
from mmcv.runner import save_checkpoint  # noqa: E402

# It wants an MMCV of its own months.
mmcv.__version__ = '1.0.5'
from mmseg.core.evaluation import get_classes, get_palette  # noqa: E402
from mmseg.models import build_segmentor  # noqa: E402

HEADS = dict(
    fcn="type='FCNHead', num_convs=2, concat_input=True",
    pspnet="type='PSPHead', pool_scales=(1, 2, 3, 6)",
    deeplabv3="type='ASPPHead', dilations=(1, 12, 24, 36)",
    deeplabv3plus="type='DepthwiseSeparableASPPHead', dilations=(1, 12, 24, 36), "
                  "c1_in_channels=2, c1_channels=4")
CONFIG = '''
norm_cfg = dict(type='SyncBN', requires_grad=True)
model = dict(
    type='EncoderDecoder',
    pretrained=None,
    backbone=dict(
        type='ResNetV1c',
        depth=18,
        stem_channels=4,
        base_channels=2,
        num_stages=4,
        out_indices=(0, 1, 2, 3),
        dilations=(1, 1, 2, 4),
        strides=(1, 2, 1, 1),
        norm_cfg=norm_cfg,
        norm_eval=False,
        style='pytorch',
        contract_dilation=True),
    decode_head=dict(
        HEAD,
        in_channels=16,
        in_index=3,
        channels=4,
        dropout_ratio=0.1,
        num_classes=19,
        norm_cfg=norm_cfg,
        align_corners=False,
        loss_decode=dict(type='CrossEntropyLoss', use_sigmoid=False, loss_weight=1.0)),
    auxiliary_head=dict(
        type='FCNHead',
        in_channels=8,
        in_index=2,
        channels=4,
        num_convs=1,
        concat_input=False,
        dropout_ratio=0.1,
        num_classes=19,
        norm_cfg=norm_cfg,
        align_corners=False,
        loss_decode=dict(type='CrossEntropyLoss', use_sigmoid=False, loss_weight=0.4)))
train_cfg = dict()
test_cfg = dict(mode='whole')
optimizer = dict(type='SGD', lr=0.01, momentum=0.9, weight_decay=0.0005)
optimizer_config = dict(type='Fp16OptimizerHook', loss_scale=512.)
lr_config = dict(policy='poly', power=0.9, min_lr=1e-4, by_epoch=False)
total_iters = 80000
'''


def main():
    for seed, (method, head) in enumerate(HEADS.items()):
        folder = os.path.join(sys.argv[1], method)
        os.makedirs(folder, exist_ok=True)
        source = os.path.join(folder, 'config.py')
        with open(source, 'w') as f:
            f.write(CONFIG.replace('HEAD', head))
        cfg = mmcv.Config.fromfile(source)
        os.remove(source)
        torch.manual_seed(seed)
        model = build_segmentor(cfg.model, train_cfg=cfg.train_cfg, test_cfg=cfg.test_cfg)
        g = torch.Generator().manual_seed(seed)
        for m in model.modules():
            if isinstance(m, torch.nn.Conv2d):
                m.weight.data.normal_(0, (2 / m.weight[0].numel()) ** 0.5, generator=g)
                if m.bias is not None:
                    m.bias.data.normal_(0, 0.1, generator=g)
            elif isinstance(m, torch.nn.modules.batchnorm._BatchNorm):
                assert isinstance(m, torch.nn.SyncBatchNorm)
                m.weight.data.uniform_(0.5, 1.5, generator=g)
                m.bias.data.normal_(0, 0.1, generator=g)
                m.running_mean.normal_(0, 0.1, generator=g)
                m.running_var.uniform_(0.5, 1.5, generator=g)
        model.eval()
        image = torch.randn(1, 3, 33, 49, generator=g)
        metas = [dict(ori_shape=(33, 49, 3), img_shape=(33, 49, 3), flip=False)]
        with torch.no_grad():
            out = model.encode_decode(image, metas)
            scale = 2 / out.std()
            model.decode_head.conv_seg.weight.mul_(scale)
            model.decode_head.conv_seg.bias.mul_(scale)
            out = model.encode_decode(image, metas)
        torch_save = torch.save
        torch.save = functools.partial(torch_save, _use_new_zipfile_serialization=False)
        save_checkpoint(
            model, os.path.join(folder, 'model.pth'),
            meta=dict(mmseg_version=mmseg.__version__, config=cfg.pretty_text if hasattr(
                cfg, 'pretty_text') else cfg.text, CLASSES=get_classes('cityscapes'),
                PALETTE=get_palette('cityscapes')))
        torch.save = torch_save
        save_file(dict(image=image, out=out.contiguous()),
                  os.path.join(folder, 'logits.safetensors'))
        print(method, mmseg.__version__, tuple(out.shape), float(out.std()))


if __name__ == '__main__':
    main()
