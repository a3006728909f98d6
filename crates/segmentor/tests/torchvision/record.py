"""Logits of torchvision's own segmentors with random weights, narrow (torch 2.8, torchvision 0.23).

    python record.py OUT [--full]

--full records the real `fcn_resnet101` and `deeplabv3_resnet101` (of 21 classes) instead.
"""
import json
import os
import sys

import torch
from safetensors.torch import save_file
from torch import nn
from torchvision.models import resnet
from torchvision.models._utils import IntermediateLayerGetter
from torchvision.models.segmentation.deeplabv3 import (ASPP, DeepLabHead, DeepLabV3,
                                                       deeplabv3_resnet101)
from torchvision.models.segmentation.fcn import FCN, FCNHead, fcn_resnet101


class Narrow(resnet.ResNet):
    """torchvision's ResNet-50 whose stages are `width` times 1, 2, 4 and 8 wide."""

    def __init__(self, stem, width):
        layers = (3, 4, 6, 3)
        super().__init__(resnet.Bottleneck, layers,
                         replace_stride_with_dilation=[False, True, True])
        self.inplanes, self.dilation = stem, 1
        self.conv1 = nn.Conv2d(3, stem, 7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(stem)
        for stage, count in enumerate(layers):
            layer = self._make_layer(resnet.Bottleneck, width << stage, count,
                                     stride=1 if stage == 0 else 2, dilate=stage > 1)
            setattr(self, f'layer{stage + 1}', layer)


class NarrowDeepLabHead(DeepLabHead):
    """torchvision's head, which is 256 wide whatever it reads, `width` wide."""

    def __init__(self, in_channels, classes, width):
        nn.Sequential.__init__(
            self, ASPP(in_channels, [12, 24, 36], width),
            nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU(),
            nn.Conv2d(width, classes, 1))


def randomise(model, seed):
    g = torch.Generator().manual_seed(seed)
    for m in model.modules():
        if isinstance(m, nn.Conv2d):
            m.weight.data.normal_(0, (2 / m.weight[0].numel()) ** 0.5, generator=g)
            if m.bias is not None:
                m.bias.data.normal_(0, 0.1, generator=g)
        elif isinstance(m, nn.BatchNorm2d):
            m.weight.data.uniform_(0.5, 1.5, generator=g)
            m.bias.data.normal_(0, 0.1, generator=g)
            m.running_mean.normal_(0, 0.1, generator=g)
            m.running_var.uniform_(0.5, 1.5, generator=g)
    for name, m in model.named_modules():
        if isinstance(m, resnet.Bottleneck):
            m.bn3.weight.data *= 0.2


def narrow(name):
    backbone = IntermediateLayerGetter(
        Narrow(4, 2), return_layers=dict(layer4='out', layer3='aux'))
    if name == 'fcn':
        return FCN(backbone, FCNHead(64, 5), FCNHead(32, 5))
    return DeepLabV3(backbone, NarrowDeepLabHead(64, 5, 8), FCNHead(32, 5))


def main():
    for seed, name in enumerate(('fcn', 'deeplabv3')):
        if '--full' in sys.argv:
            make = dict(fcn=fcn_resnet101, deeplabv3=deeplabv3_resnet101)[name]
            model = make(weights=None, weights_backbone=None, num_classes=21, aux_loss=True)
        else:
            model = narrow(name)
        randomise(model, seed)
        model.eval()
        g = torch.Generator().manual_seed(100 + seed)
        image = torch.randn(1, 3, 33, 49, generator=g)
        with torch.no_grad():
            out = model(image)
            scale = 2 / out['out'].std()
            cls = model.classifier[4]
            cls.weight.mul_(scale)
            cls.bias.mul_(scale)
            out = model(image)
            double = model.double()(image.double())
            model.float()
        folder = os.path.join(sys.argv[1], name)
        os.makedirs(folder, exist_ok=True)
        torch.save(model.state_dict(), os.path.join(folder, "model.pth"),
                   _use_new_zipfile_serialization=name != "fcn")
        save_file(dict(image=image, out=out['out'], aux=out['aux']),
                  os.path.join(folder, 'logits.safetensors'))
        print(name, {k: tuple(v.shape) for k, v in out.items()}, float(out['out'].std()),
              float((double['out'] - out['out']).abs().max()))


if __name__ == '__main__':
    main()
