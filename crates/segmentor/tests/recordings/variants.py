"""Recordings of the family's other members with MMSegmentation 1.2.2, by ../shared/reference.

    python variants.py SHARED_REFERENCE OUT [NAME ...]
"""
import os.path as osp
import sys

sys.path.insert(0, sys.argv[1])
OUT = sys.argv[2]
WANTED = sys.argv[3:]
import make_reference
import oracle_common as oc

SMALL = ('--base-channels 2 --stem-channels 4 --channels 4 --aux-channels 4 --c1-channels 4 '
         '--num-classes 4 --features --all-updates').split()
# In bf16, maps of a few pixels at strides 16 and 32 say little: these are larger.
SIZES = {'fcn_caffe_v1d-d16': ('65', '97'), 'pspnet_v1b-d32': ('65', '97')}
official = oc.model_config


def changed(**changes):
    """The method's own configuration, with some of its settings changed."""
    def config(args):
        cfg = official(args)
        for part, settings in changes.items():
            cfg.model[part].update(settings)
        return cfg
    return config


D16 = dict(strides=(1, 2, 2, 1), dilations=(1, 1, 1, 2))
VARIANTS = {
    'fcn-d6_v1c-d16': ('fcn', 18, 'fcn-d6_r50-d16_4xb2-80k_cityscapes-512x1024.py', official),
    'fcn-d6_v1b-d16_align': ('fcn', 18, 'fcn-d6_r50b-d16_4xb2-80k_cityscapes-769x769.py', official),
    'pspnet_v1b-d32': ('pspnet', 18, 'pspnet_r50b-d32_4xb2-80k_cityscapes-512x1024.py', official),
    'pspnet_v1d-d8': ('pspnet', 18, None, changed(backbone=dict(type='ResNetV1d'))),
    'deeplabv3_v1c-d16-mg124': (
        'deeplabv3', 50, 'deeplabv3_r101-d16-mg124_4xb2-80k_cityscapes-512x1024.py', official),
    'deeplabv3plus_v1c-d16-mg124': (
        'deeplabv3plus', 18, 'deeplabv3plus_r101-d16-mg124_4xb2-80k_cityscapes-512x1024.py',
        official),
    'deeplabv3plus_v1b-d8': (
        'deeplabv3plus', 18, 'deeplabv3plus_r50b-d8_4xb2-80k_cityscapes-512x1024.py', official),
    'fcn_caffe_v1d-d16': ('fcn', 50, None, changed(
        backbone=dict(type='ResNetV1d', style='caffe', contract_dilation=False, **D16),
        decode_head=dict(num_convs=3, concat_input=False),
        auxiliary_head=dict(num_convs=2, dilation=2, concat_input=True))),
    'pspnet_odd': ('pspnet', 34, None, changed(
        backbone=dict(type='ResNet', deep_stem=True, avg_down=False, multi_grid=(2, 1, 3),
                      strides=(2, 1, 2, 1), dilations=(1, 2, 1, 3), contract_dilation=True),
        decode_head=dict(pool_scales=(2, 5)),
        auxiliary_head=dict(in_channels=4, in_index=1))),
}
for name, (method, depth, config, model_config) in VARIANTS.items():
    if WANTED and name not in WANTED:
        continue
    oc.model_config = model_config
    sys.argv = ['make_reference.py', '--method', method, '--depth', str(depth), *SMALL,
                '--size', *SIZES.get(name, ('33', '49')), '--out', osp.join(OUT, name)]
    if config:
        sys.argv += ['--config', config]
    if 'legacy' in name or name.startswith('fcn-d6_v1c'):
        sys.argv.append('--legacy-pth')
    make_reference.main()
    print('wrote', name, flush=True)
