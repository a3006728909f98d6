"""The peer: the four networks, the training pipeline and the scores in PyTorch, OpenCV and numpy.

Written for halfseg's comparison of speed, after what MMSegmentation 1.2 and mmcv 2.1 do. Each
command measures one case in a process of its own and prints one JSON line:

    torch_peer.py params                                parameters of the four networks
    torch_peer.py model --method fcn --size 512x1024    inference, or with --train a training step
    torch_peer.py replay --recordings DIR               how far half precision and TF32 are off
    torch_peer.py pipeline --data ROOT                  PNG to normalised crop, images/s on one core
    torch_peer.py confusion --size 1024x2048            scores of one pair of class maps
"""
import argparse
import collections
import contextlib
import ctypes
import json
import os
import random
import re
import sys
import tempfile

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from timing import say, size, status_bytes, summary, timed

# Parameters with the auxiliary head, ResNet-101, 19 classes.
EXPECTED = dict(fcn=68_489_862, pspnet=67_967_622, deeplabv3=87_105_158,
                deeplabv3plus=62_582_006)
BLOCKS = dict(resnet18=(2, 2, 2, 2), resnet34=(3, 4, 6, 3), resnet50=(3, 4, 6, 3),
              resnet101=(3, 4, 23, 3), resnet152=(3, 8, 36, 3))
CLASSES, IGNORE = 19, 255
MEAN, STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)


def conv_bn(cin, cout, kernel, stride=1, dilation=1, groups=1, relu=True):
    layers = [nn.Conv2d(cin, cout, kernel, stride, dilation * (kernel // 2), dilation, groups,
                        bias=False), nn.BatchNorm2d(cout)]
    return nn.Sequential(*layers, *([nn.ReLU(inplace=True)] if relu else []))


def separable(cin, cout, dilation=1):
    return nn.Sequential(conv_bn(cin, cin, 3, dilation=dilation, groups=cin),
                         conv_bn(cin, cout, 1))


def resize(x, size):
    return F.interpolate(x, size, mode='bilinear', align_corners=False)


class Block(nn.Module):
    """A residual block: two 3x3 convolutions, or 1x1, 3x3, 1x1 with four times the width."""

    def __init__(self, cin, width, stride, dilation, bottleneck):
        super().__init__()
        cout = width * (4 if bottleneck else 1)
        if bottleneck:
            self.body = nn.Sequential(conv_bn(cin, width, 1),
                                      conv_bn(width, width, 3, stride, dilation),
                                      conv_bn(width, cout, 1, relu=False))
        else:
            self.body = nn.Sequential(conv_bn(cin, width, 3, stride, dilation),
                                      # The second convolution keeps the stage's dilation 1:
                                      # BasicBlock of mmseg dilates its first one only.
                                      conv_bn(width, cout, 3, relu=False))
        self.skip = None
        if stride != 1 or cin != cout:
            self.skip = conv_bn(cin, cout, 1, stride, relu=False)

    def forward(self, x):
        y = self.body(x)
        y += x if self.skip is None else self.skip(x)
        return F.relu(y, inplace=True)


class ResNetV1cD8(nn.Module):
    """Deep stem, strides 1, 2, 1, 1, dilations 1, 1, 2, 4, contracted first dilation."""

    def __init__(self, name, base=64, stem=64):
        super().__init__()
        bottleneck = name not in ('resnet18', 'resnet34')
        half = stem // 2
        self.stem = nn.Sequential(conv_bn(3, half, 3, 2), conv_bn(half, half, 3),
                                  conv_bn(half, stem, 3), nn.MaxPool2d(3, 2, 1))
        stages, cin = [], stem
        for i, count in enumerate(BLOCKS[name]):
            width, stride, dilation = base << i, (1, 2, 1, 1)[i], (1, 1, 2, 4)[i]
            blocks = []
            for b in range(count):
                first = b == 0
                blocks.append(Block(cin, width, stride if first else 1,
                                    max(dilation // 2, 1) if first else dilation, bottleneck))
                cin = width * (4 if bottleneck else 1)
            stages.append(nn.Sequential(*blocks))
        self.stages = nn.ModuleList(stages)

    def forward(self, x):
        x, maps = self.stem(x), []
        for stage in self.stages:
            x = stage(x)
            maps.append(x)
        return maps


class Head(nn.Module):
    """What every head ends with: channel dropout and a 1x1 classifier."""

    def __init__(self, channels, classes):
        super().__init__()
        self.dropout = nn.Dropout2d(0.1)
        self.classifier = nn.Conv2d(channels, classes, 1)

    def forward(self, maps):
        return self.classifier(self.dropout(self.features(maps)))


class FcnHead(Head):
    def __init__(self, cin, channels, classes, stage=3, convs=2, concat=True):
        super().__init__(channels, classes)
        self.stage = stage
        self.convs = nn.Sequential(*[conv_bn(cin if i == 0 else channels, channels, 3)
                                     for i in range(convs)])
        self.fuse = conv_bn(cin + channels, channels, 3) if concat else None

    def features(self, maps):
        x = maps[self.stage]
        y = self.convs(x)
        return y if self.fuse is None else self.fuse(torch.cat([x, y], 1))


class PspHead(Head):
    def __init__(self, cin, channels, classes):
        super().__init__(channels, classes)
        self.branches = nn.ModuleList([
            nn.Sequential(nn.AdaptiveAvgPool2d(bins), conv_bn(cin, channels, 1))
            for bins in (1, 2, 3, 6)])
        self.fuse = conv_bn(cin + 4 * channels, channels, 3)

    def features(self, maps):
        x = maps[3]
        pooled = [resize(branch(x), x.shape[2:]) for branch in self.branches]
        return self.fuse(torch.cat([x, *pooled], 1))


class AsppHead(Head):
    def __init__(self, cin, channels, classes, separate=False):
        super().__init__(channels, classes)
        self.pool = nn.Sequential(nn.AdaptiveAvgPool2d(1), conv_bn(cin, channels, 1))
        dilated = [separable(cin, channels, d) if separate else
                   conv_bn(cin, channels, 3, dilation=d) for d in (12, 24, 36)]
        self.branches = nn.ModuleList([conv_bn(cin, channels, 1), *dilated])
        self.fuse = conv_bn(5 * channels, channels, 3)

    def features(self, maps):
        x = maps[3]
        pooled = resize(self.pool(x), x.shape[2:])
        return self.fuse(torch.cat([pooled, *[branch(x) for branch in self.branches]], 1))


class AsppPlusHead(AsppHead):
    def __init__(self, cin, channels, classes, c2, low):
        super().__init__(cin, channels, classes, separate=True)
        self.low = conv_bn(c2, low, 1)
        self.refine = nn.Sequential(separable(channels + low, channels),
                                    separable(channels, channels))

    def features(self, maps):
        low = self.low(maps[0])
        deep = resize(super().features(maps), low.shape[2:])
        return self.refine(torch.cat([deep, low], 1))


class Segmentor(nn.Module):
    """`widths` are the channels of the first stage, stem, decode head, auxiliary head and of the
    detail branch of DeepLabV3+; the published ones unless given."""

    def __init__(self, method, backbone, widths=None, classes=CLASSES):
        super().__init__()
        small = backbone in ('resnet18', 'resnet34')
        published = (64, 64, 128, 64, 12) if small else (64, 64, 512, 256, 48)
        base, stem, channels, aux, low = widths or published
        c2 = base if small else 4 * base
        c4, c5 = 4 * c2, 8 * c2
        self.backbone = ResNetV1cD8(backbone, base, stem)
        self.decode = dict(
            fcn=lambda: FcnHead(c5, channels, classes),
            pspnet=lambda: PspHead(c5, channels, classes),
            deeplabv3=lambda: AsppHead(c5, channels, classes),
            deeplabv3plus=lambda: AsppPlusHead(c5, channels, classes, c2, low))[method]()
        self.aux = FcnHead(c4, aux, classes, stage=2, convs=1, concat=False)

    def forward(self, x):
        return resize(self.decode(self.backbone(x)), x.shape[2:])

    def loss(self, x, labels):
        maps, total = self.backbone(x), 0.0
        for head, weight in ((self.decode, 1.0), (self.aux, 0.4)):
            logits = resize(head(maps).float(), x.shape[2:])
            loss = F.cross_entropy(logits, labels, ignore_index=IGNORE, reduction='none')
            total = total + weight * loss.mean()
        return total


def build(method, backbone):
    model = Segmentor(method, backbone)
    count = sum(p.numel() for p in model.parameters())
    if backbone == 'resnet101' and count != EXPECTED[method]:
        raise SystemExit(f'{method}: expected {EXPECTED[method]} parameters, found {count}')
    return model, count


class ClassMap(nn.Module):
    """A class for each pixel of the picture: network, logits at the picture's size, argmax."""

    def __init__(self, network):
        super().__init__()
        self.network = network

    def forward(self, x, softmax=False):
        logits = self.network(x)
        if softmax:
            logits = logits.softmax(1)
        return logits.argmax(1).to(torch.uint8)


def settle(model):
    """Statistics of batch normalisation of random weights' own maps, as training leaves them.

    With the initial ones maps shrink from layer to layer: half of the values of DeepLabV3+ end as
    subnormal numbers of f16, and the classes of all pixels are one.
    """
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    for norm in norms:
        norm.momentum = None
    with torch.no_grad():
        model.train()(torch.randn(2, 3, 65, 129))
    for norm in norms:
        norm.momentum = 0.1
    return model.eval()


@contextlib.contextmanager
def convolutions(found):
    """Appends to `found` the convolutions that oneDNN runs meanwhile: pass, precision and kernel.

    oneDNN prints them, so that the standard output is a file for that time.
    """
    libc, before = ctypes.CDLL(None), os.dup(1)
    with tempfile.TemporaryFile('w+') as printed:
        sys.stdout.flush()
        os.dup2(printed.fileno(), 1)
        try:
            with torch.backends.mkldnn.verbose(torch.backends.mkldnn.VERBOSE_ON):
                yield
        finally:
            sys.stdout.flush()
            libc.fflush(None)
            os.dup2(before, 1)
            os.close(before)
        printed.seek(0)
        for line in printed:
            match = re.match(r'onednn_verbose,.*?,?exec,cpu,convolution,([^,]*),(forward|backward)'
                             r'\w*,src[:_](\w+?):', line)
            if match:
                found.append((match[2], match[3], match[1]))


def reference_gradients(dtype):
    """Whether oneDNN has nothing but its reference code, hundreds of times slower, for gradients of
    convolutions in `dtype`: for those of weights in f16 that is so with the torch of 2025."""
    found, conv = [], nn.Conv2d(64, 64, 3, padding=1).to(memory_format=torch.channels_last)
    with convolutions(found), torch.autocast('cpu', dtype=dtype):
        conv(torch.randn(1, 64, 16, 16, requires_grad=True)).float().sum().backward()
    return any(kernel.startswith('ref') for _, _, kernel in found)


def report(**row):
    say('torch', torch.__version__, **row)


def memory(on_gpu):
    """The most memory that was held; on a GPU since the warm-up, whose trials do not count."""
    if on_gpu:
        return dict(peak_bytes=torch.cuda.max_memory_allocated(),
                    peak_reserved_bytes=torch.cuda.max_memory_reserved(),
                    peak_source='max_memory_allocated after warm-up')
    return dict(peak_bytes=status_bytes('VmHWM'), peak_source='VmHWM')


def run_params(_):
    report(parameters={method: build(method, 'resnet101')[1] for method in EXPECTED})


def run_model(args):
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    on_gpu = args.device != 'cpu'
    if on_gpu:
        torch.cuda.set_device(args.device)
        torch.backends.cudnn.benchmark = args.cudnn_benchmark
    model, parameters = build(args.method, args.backbone)
    layout = torch.contiguous_format if args.nchw else torch.channels_last
    dtype = dict(f32=None, f16=torch.float16, bf16=torch.bfloat16)[args.precision]
    kind = args.device.split(':')[0]
    cast = torch.autocast(kind, dtype=dtype or torch.bfloat16, enabled=dtype is not None)
    with cast:
        if dtype is not None and not torch.is_autocast_enabled(kind):
            return report(left_out=f'torch {torch.__version__} has no autocast to '
                                   f'{args.precision} on this device')
    if args.train and not on_gpu and dtype is not None and reference_gradients(dtype):
        return report(left_out='oneDNN has only its reference code here for gradients of '
                               f'convolutions in {args.precision}: a step takes minutes')
    if not args.train:
        settle(model)
    model = model.to(args.device, memory_format=layout)
    (height, width), batch = args.size, args.batch or (2 if args.train else 1)
    images = torch.randn(batch, 3, height, width).to(args.device, memory_format=layout)
    before = status_bytes('VmRSS')
    if args.train:
        model.train()
        labels = torch.randint(0, CLASSES, (batch, height, width), device=args.device)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, weight_decay=5e-4)
        scaler = torch.amp.GradScaler(kind, init_scale=512.0, growth_interval=2 ** 31 - 1,
                                      enabled=dtype is not None)
        loss_of = torch.compile(model.loss, dynamic=False) if args.compile else model.loss

        def step():
            optimizer.zero_grad(set_to_none=True)
            with cast:
                loss = loss_of(images, labels)
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
            loss.item()
            if on_gpu:
                torch.cuda.synchronize()
    else:
        segment = ClassMap(model).eval()
        without_gradients = torch.inference_mode
        if args.compile:
            import torch._inductor.config as inductor
            # Folds batch normalisation and packs weights; it wants `no_grad`.
            inductor.freezing = True
            segment, without_gradients = torch.compile(segment, dynamic=False), torch.no_grad

        def step(**settings):
            with without_gradients(), cast:
                # Copying to the host waits for the GPU.
                segment(images, **settings).cpu().numpy()

    def warm():
        if on_gpu:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
    kernels, warmup = [], args.warmup
    if warmup and not on_gpu:
        warmup -= 1
        with convolutions(kernels):
            step()
    seconds = timed(step, warmup, args.iterations, warm)
    extra = {}
    if args.warmup and not on_gpu:
        convs = sum(isinstance(m, nn.Conv2d) and (args.train or not name.startswith('aux.'))
                    for name, m in model.named_modules())
        forward = collections.Counter(f'{precision} {kernel}' for direction, precision, kernel
                                      in kernels if direction == 'forward')
        extra = dict(convolutions=forward,
                     other_convolutions=max(convs - sum(forward.values()), 0))
    if args.softmax:
        # As MMSegmentation does, though it changes no class.
        extra['with_softmax'] = summary(
            timed(lambda: step(softmax=True), 1, args.iterations), batch)
    report(mode='training' if args.train else 'inference', method=args.method,
           backbone=args.backbone, size=f'{height}x{width}', batch=batch,
           precision=args.precision, threads=torch.get_num_threads(), compiled=args.compile,
           layout='nchw' if args.nchw else 'channels_last', parameters=parameters,
           cudnn_benchmark=on_gpu and args.cudnn_benchmark,
           bf16_instructions=bool(torch.ops.mkldnn._is_mkldnn_bf16_supported()),
           device=torch.cuda.get_device_name() if on_gpu else 'cpu',
           **summary(seconds, batch), **memory(on_gpu), **extra, resident_before_bytes=before)


# Names of MMSegmentation's modules for those of the peer, in the order of trial.
NAMES = [(re.compile(pattern), name) for pattern, name in (
    (r'backbone\.stem\.(\d)\.(\d)', lambda m: f'backbone.stem.{3 * int(m[1]) + int(m[2])}'),
    (r'backbone\.stages\.(\d)\.(\d+)\.body\.(\d)\.(\d)', lambda m:
        f'backbone.layer{int(m[1]) + 1}.{m[2]}.{("conv", "bn")[int(m[4])]}{int(m[3]) + 1}'),
    (r'backbone\.stages\.(\d)\.(\d+)\.skip\.(\d)', lambda m:
        f'backbone.layer{int(m[1]) + 1}.{m[2]}.downsample.{m[3]}'),
    (r'(decode|aux)\.classifier', lambda m: f'{HEADS[m[1]]}.conv_seg'),
    (r'(decode|aux)\.convs\.(\d)\.(\d)', lambda m: f'{HEADS[m[1]]}.convs.{m[2]}.{PART[m[3]]}'),
    (r'decode\.(fuse|low)\.(\d)', lambda m: f'decode_head.{m[1]}.{PART[m[2]]}'),
    (r'decode\.pool\.1\.(\d)', lambda m: f'decode_head.image_pool.1.{PART[m[1]]}'),
    (r'decode\.refine\.(\d)\.(\d)\.(\d)', lambda m:
        f'decode_head.sep_bottleneck.{m[1]}.{SEPARABLE[m[2]]}.{PART[m[3]]}'),
    (r'decode\.branches\.(\d)\.(\d)\.(\d)', lambda m:
        f'decode_head.aspp_modules.{m[1]}.{SEPARABLE[m[2]]}.{PART[m[3]]}'),
    (r'decode\.branches\.(\d)\.(\d)', lambda m:
        f'decode_head.aspp_modules.{m[1]}.{PART[m[2]]}'),
)]
HEADS = dict(decode='decode_head', aux='auxiliary_head')
PART, SEPARABLE = {'0': 'conv', '1': 'bn'}, {'0': 'depthwise_conv', '1': 'pointwise_conv'}


def mmseg_name(method, name):
    """The name that MMSegmentation gives to a parameter or statistic of the peer."""
    for pattern, renamed in NAMES:
        match = pattern.match(name)
        if match:
            name = renamed(match) + name[match.end():]
            break
    if method == 'pspnet':
        # Its branches begin with the pooling layer.
        name = re.sub(r'aspp_modules\.(\d)\.pointwise_conv', r'psp_modules.\1.1', name)
    fuse = 'conv_cat' if method == 'fcn' else 'bottleneck'
    return name.replace('head.fuse', f'head.{fuse}').replace('head.low', 'head.c1_bottleneck')


def safetensors(path):
    """All f32 tensors of a file. Its format is a length, a JSON header, and the values."""
    with open(path, 'rb') as f:
        header = json.loads(f.read(int.from_bytes(f.read(8), 'little')))
        values = f.read()
    tensors = {}
    for name, entry in header.items():
        if name != '__metadata__' and entry['dtype'] == 'F32':
            begin, end = entry['data_offsets']
            tensor = torch.frombuffer(bytearray(values[begin:end]), dtype=torch.float32)
            tensors[name] = tensor.reshape(entry['shape'])
    return tensors


def to_tf32(x):
    """`x` with a mantissa of 10 bits, rounded to nearest even: what a tensor core reads of an f32."""
    bits = x.view(torch.int32)
    return ((bits + 0xFFF + ((bits >> 13) & 1)) & ~0x1FFF).view(torch.float32)


def recorded(folder):
    """The network of a recording with its weights, and the image and logits of the recording."""
    with open(os.path.join(folder, 'reference.json')) as f:
        args = json.load(f)['args']
    if args.get('align_corners') or args.get('dilations'):
        raise ValueError('align_corners and other dilations are not supported')
    widths = [args[key] for key in ('base_channels', 'stem_channels', 'channels', 'aux_channels',
                                    'c1_channels')]
    model = Segmentor(args['method'], f'resnet{args["depth"]}', widths, args['num_classes'])
    weights = safetensors(os.path.join(folder, 'model.safetensors'))
    state = model.state_dict()
    for name in state:
        if not name.endswith('num_batches_tracked'):
            state[name] = weights[mmseg_name(args['method'], name)]
    model.load_state_dict(state)
    values = safetensors(os.path.join(folder, 'reference.safetensors'))
    return model.eval(), values['image'], values['decode_logits_full']


def run_replay(args):
    """Largest error of a logit in each precision.

    That of the recorded image is one sample of what rounding does, and the largest of few pixels. So
    seven more images are taken, which differ from it by noise of 1e-3, and the largest of all errors
    counts; each is against the peer itself in f32, that of the recorded image also in f32 against
    MMSegmentation.
    """
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cuda.matmul.allow_tf32 = False
    kind, found = args.device.split(':')[0], {}
    for folder, _, files in sorted(os.walk(args.recordings)):
        if 'reference.json' not in files:
            continue
        name = os.path.relpath(folder, args.recordings)
        model, image, expected = recorded(folder)
        torch.manual_seed(0)
        images = [image] + [image + 1e-3 * torch.randn_like(image) for _ in range(7)]
        model, images = model.to(args.device), [image.to(args.device) for image in images]

        def run(image, dtype=None):
            with torch.inference_mode(), torch.autocast(kind, dtype=dtype or torch.bfloat16,
                                                        enabled=dtype is not None):
                return model(image).float().cpu()
        exact = [run(image) for image in images]
        errors = dict(f32=(exact[0] - expected).abs().max().item())

        def measure(precision, dtype=None):
            errors[precision] = max((run(image, dtype) - logits).abs().max().item()
                                    for image, logits in zip(images, exact))
        measure('f16', torch.float16)
        measure('bf16', torch.bfloat16)
        # Not what cuDNN would do, which may choose a kernel without TF32 for so few channels.
        for conv in (m for m in model.modules() if isinstance(m, nn.Conv2d)):
            conv.weight.data = to_tf32(conv.weight.data)
            conv.register_forward_pre_hook(lambda _, inputs: (to_tf32(inputs[0]),))
        measure('tf32')
        found[name] = errors
    if not found:
        raise SystemExit(f'{args.recordings}: expected recordings (reference.json), found none')
    report(mode='replay', device=args.device, max_abs=found)


# The training pipeline, as mmcv and mmseg transforms do it: on whole pictures, step by step.

def load(image, label):
    import cv2
    from PIL import Image
    with open(image, 'rb') as f:
        bgr = cv2.imdecode(np.frombuffer(f.read(), np.uint8), cv2.IMREAD_COLOR)
    # mmseg's LoadAnnotations decodes label maps with Pillow.
    return bgr, np.array(Image.open(label)).squeeze().astype(np.uint8)


def random_resize(bgr, label, scale=(2048, 1024), ratio=(0.5, 2.0)):
    import cv2
    drawn = np.random.random_sample() * (ratio[1] - ratio[0]) + ratio[0]
    bound = [int(edge * drawn) for edge in scale]
    h, w = bgr.shape[:2]
    factor = min(max(bound) / max(h, w), min(bound) / min(h, w))
    to = (int(w * factor + 0.5), int(h * factor + 0.5))
    return (cv2.resize(bgr, to, interpolation=cv2.INTER_LINEAR),
            cv2.resize(label, to, interpolation=cv2.INTER_NEAREST))


def random_crop(bgr, label, crop=(512, 1024), limit=0.75):
    def draw():
        top = np.random.randint(0, max(bgr.shape[0] - crop[0], 0) + 1)
        left = np.random.randint(0, max(bgr.shape[1] - crop[1], 0) + 1)
        return slice(top, top + crop[0]), slice(left, left + crop[1])

    box = draw()
    for _ in range(10):
        ids, counts = np.unique(label[box], return_counts=True)
        counts = counts[ids != IGNORE]
        if len(counts) > 1 and counts.max() / counts.sum() < limit:
            break
        box = draw()
    return bgr[box], label[box]


def random_flip(bgr, label):
    if np.random.random_sample() < 0.5:
        return np.flip(bgr, axis=1), np.flip(label, axis=1)
    return bgr, label


def convert(image, alpha=1.0, beta=0.0):
    return np.clip(image.astype(np.float32) * alpha + beta, 0, 255).astype(np.uint8)


def photometric(bgr):
    import cv2
    if random.getrandbits(1):
        bgr = convert(bgr, beta=random.uniform(-32, 32))
    contrast_first = random.getrandbits(1)

    def contrast(image):
        return convert(image, alpha=random.uniform(0.5, 1.5)) if random.getrandbits(1) else image

    if contrast_first:
        bgr = contrast(bgr)
    if random.getrandbits(1):
        hsv = cv2.cvtColor(bgr, cv2.COLOR_BGR2HSV)
        hsv[:, :, 1] = convert(hsv[:, :, 1], alpha=random.uniform(0.5, 1.5))
        bgr = cv2.cvtColor(hsv, cv2.COLOR_HSV2BGR)
    if random.getrandbits(1):
        hsv = cv2.cvtColor(bgr, cv2.COLOR_BGR2HSV)
        hsv[:, :, 0] = (hsv[:, :, 0].astype(int) + random.randint(-18, 17)) % 180
        bgr = cv2.cvtColor(hsv, cv2.COLOR_HSV2BGR)
    return bgr if contrast_first else contrast(bgr)


def pack(bgr, label, crop=(512, 1024)):
    """PackSegInputs and SegDataPreProcessor: to a tensor, RGB, f32, normalised, padded."""
    image = torch.from_numpy(np.ascontiguousarray(bgr.transpose(2, 0, 1)))
    label = torch.from_numpy(np.ascontiguousarray(label).astype(np.int64))
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (MEAN, STD))
    image = (image[[2, 1, 0]].float() - mean) / std
    h, w = label.shape
    padding = (0, crop[1] - w, 0, crop[0] - h)
    return F.pad(image, padding, value=0), F.pad(label, padding, value=IGNORE)


def pairs(root):
    found = []
    for folder, _, names in sorted(os.walk(os.path.join(root, 'leftImg8bit', 'train'))):
        for name in sorted(names):
            image = os.path.join(folder, name)
            label = image.replace('leftImg8bit' + os.sep, 'gtFine' + os.sep)
            found.append((image, label.replace('_leftImg8bit.png', '_gtFine_labelTrainIds.png')))
    if not found:
        raise SystemExit(f'{root}: expected pictures under leftImg8bit/train, found none')
    return found


def run_pipeline(args):
    import cv2
    # One core: a data loader has a worker per core, each with OpenCV's threads off.
    torch.set_num_threads(1)
    cv2.setNumThreads(0)
    np.random.seed(0)
    random.seed(0)
    files, state = pairs(args.data), dict(next=0)

    def step():
        bgr, label = load(*files[state['next'] % len(files)])
        state['next'] += 1
        bgr, label = random_flip(*random_crop(*random_resize(bgr, label)))
        pack(photometric(bgr), label)
    seconds = timed(step, args.warmup, args.iterations)
    rate = len(seconds) / sum(seconds)
    row = summary(seconds, 1)
    # The rate over all pictures, since their ratios and so their costs differ.
    row['images_per_s'] = rate
    report(mode='pipeline', threads=1, opencv=cv2.__version__, numpy=np.__version__,
           pictures=len(files), **row)


def run_confusion(args):
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    height, width = args.size
    # Maps in patches, as predictions and labels are.
    coarse = torch.randint(0, CLASSES, (1, 1, height // 32 + 1, width // 32 + 1)).float()
    label = F.interpolate(coarse, (height, width), mode='nearest')[0, 0].long()
    wrong = torch.rand(height, width) < 0.1
    prediction = torch.where(wrong, torch.randint(0, CLASSES, (height, width)), label)
    label[torch.rand(height, width) < 0.1] = IGNORE

    def histograms():
        """IoUMetric.intersect_and_union."""
        mask = label != IGNORE
        p, t = prediction[mask], label[mask]
        hit = p[p == t]
        areas = [torch.histc(v.float(), bins=CLASSES, min=0, max=CLASSES - 1)
                 for v in (hit, p, t)]
        return areas[1] + areas[2] - areas[0]

    def matrix():
        """A confusion matrix by torch.bincount."""
        mask = label != IGNORE
        pair = CLASSES * label[mask] + prediction[mask]
        return torch.bincount(pair, minlength=CLASSES ** 2).reshape(CLASSES, CLASSES)

    step = dict(histc=histograms, bincount=matrix)[args.by]
    seconds = timed(step, args.warmup, args.iterations)
    report(mode='confusion', by=args.by, size=f'{height}x{width}', threads=args.threads,
           **summary(seconds, 1))


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    commands.add_parser('params').set_defaults(run=run_params)

    def command(name, run, iterations, warmup):
        sub = commands.add_parser(name)
        sub.set_defaults(run=run)
        sub.add_argument('--iterations', type=int, default=iterations)
        sub.add_argument('--warmup', type=int, default=warmup)
        sub.add_argument('--threads', type=int, default=2)
        return sub

    sub = command('model', run_model, 3, 1)
    sub.add_argument('--method', choices=EXPECTED, required=True)
    sub.add_argument('--backbone', choices=BLOCKS, default='resnet101')
    sub.add_argument('--size', type=size, default=(512, 1024))
    sub.add_argument('--precision', choices=('f32', 'f16', 'bf16'), default='f32')
    sub.add_argument('--batch', type=int)
    sub.add_argument('--train', action='store_true')
    sub.add_argument('--compile', action='store_true',
                     help='with torch.compile (inductor); in inference with frozen weights')
    sub.add_argument('--nchw', action='store_true')
    sub.add_argument('--device', default='cpu', help='cpu, cuda or cuda:N')
    sub.add_argument('--cudnn-benchmark', action='store_true')
    sub.add_argument('--softmax', action='store_true',
                     help='inference: also measure with a softmax before the argmax')
    sub = commands.add_parser('replay')
    sub.set_defaults(run=run_replay)
    sub.add_argument('--recordings', required=True)
    sub.add_argument('--device', default='cpu', help='cpu, cuda or cuda:N')
    sub = command('pipeline', run_pipeline, 40, 4)
    sub.add_argument('--data', required=True)
    sub = command('confusion', run_confusion, 20, 3)
    sub.add_argument('--size', type=size, default=(1024, 2048))
    sub.add_argument('--by', choices=('histc', 'bincount'), default='bincount')
    args = parser.parse_args()
    args.run(args)


if __name__ == '__main__':
    main()
