"""What a comparison ran on: machine, versions, and settings of the environment."""
import importlib.metadata
import os
import platform
import re
import subprocess

HERE = os.path.dirname(os.path.abspath(__file__))
FLAGS = ('avx2', 'fma', 'f16c', 'avx512f', 'avx512_bf16', 'avx512_fp16', 'amx_bf16', 'amx_fp16',
         'avx_vnni', 'asimd', 'asimdhp', 'bf16', 'i8mm')
# Variables that choose instruction sets, kernels or threads.
SETTINGS = ('HALFSEG_ISA', 'HALFSEG_F32', 'RAYON_NUM_THREADS', 'ONEDNN_MAX_CPU_ISA',
            'ONEDNN_DEFAULT_FPMATH_MODE', 'ATEN_CPU_CAPABILITY', 'OMP_NUM_THREADS',
            'OMP_WAIT_POLICY', 'LD_PRELOAD')


def machine():
    info = {}
    try:
        with open('/proc/cpuinfo') as f:
            text = f.read()
        model = re.search(r'model name\s*: (.*)', text)
        flags = re.search(r'(?:flags|Features)\s*: (.*)', text)
        info['cpu'] = model.group(1).strip() if model else platform.machine()
        info['flags'] = [f for f in FLAGS if flags and f in flags.group(1).split()]
        ids = [re.search(rf'{key}\s*: (\d+)', text)
               for key in ('cpu family', 'model', 'stepping')]
        info['family_model_stepping'] = '/'.join(m.group(1) if m else '?' for m in ids)
    except OSError:
        info.update(cpu=platform.processor() or platform.machine(), flags=[])
    info['cores'] = os.cpu_count()
    try:
        with open('/proc/meminfo') as f:
            info['memory_gib'] = round(int(f.readline().split()[1]) / 2 ** 20, 1)
    except OSError:
        pass
    info['system'] = platform.platform()
    info['load_at_start'] = round(os.getloadavg()[0], 2)
    return info


def settings():
    return {name: os.environ[name] for name in SETTINGS if name in os.environ}


def versions(program, openvino):
    """`program` is halfseg; `openvino` says whether that takes part."""
    def said(*command):
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
                              cwd=HERE)
        return done.stdout.strip() if done.returncode == 0 else 'unknown'

    import cv2
    import numpy
    import torch
    dirty = said('git', 'status', '--porcelain', '--untracked-files=no')
    found = dict(halfseg=said(program, '--version').removeprefix('halfseg '),
                 commit=said('git', 'rev-parse', '--short', 'HEAD') + ('+changes' if dirty else ''),
                 rustc=said('rustc', '--version'), python=platform.python_version(),
                 torch=torch.__version__,
                 onednn_bf16=bool(torch.ops.mkldnn._is_mkldnn_bf16_supported()),
                 onednn_f16=bool(torch.ops.mkldnn._is_mkldnn_fp16_supported()),
                 opencv=cv2.__version__, numpy=numpy.__version__)
    if openvino:
        found['openvino'] = importlib.metadata.version('openvino')
    return found
