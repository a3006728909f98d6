"""Records augmentations of MMSegmentation and OpenCV.

    python record_augment.py > recordings/augment.json    # mmsegmentation 1.2.2, mmcv-lite 2.1.0, OpenCV 4.11

A further argument is another seed than that of the committed file; HALFSEG_AUGMENT names another file for the test.
"""

import json
import sys
import unittest.mock

import cv2
import numpy as np

# Operators on GPUs, which are not needed here and not in mmcv-lite.
sys.modules["mmcv._ext"] = unittest.mock.MagicMock()

from mmseg.datasets.transforms import RandomCutOut, RandomRotate

H, W = 11, 14


def flat(array):
    return [int(v) for v in array.reshape(-1)]


def rotated(image, label, degrees):
    rotate = RandomRotate(prob=1.0, degree=90.0)
    rotate.generate_degree = lambda: (True, degrees)
    out = rotate({"img": image.copy(), "gt": label.copy(), "seg_fields": ["gt"]})
    return out["img"], out["gt"]


def main():
    generator = np.random.default_rng(int(sys.argv[1]) if len(sys.argv) > 1 else 0)
    image = generator.integers(0, 256, (H, W, 3)).astype(np.uint8)
    bands = generator.integers(0, 65536, (H, W, 5)).astype(np.uint16)
    label = generator.integers(0, 4, (H, W)).astype(np.uint8)
    record = {"size": [W, H], "image": flat(image), "bands": flat(bands), "label": flat(label)}
    record["rotations"] = []
    for degrees in [-33.3, 7.0, 90.0, float(generator.uniform(-180, 180))]:
        of_image, of_label = rotated(image, label, degrees)
        # OpenCV's border value has four channels, as many as it takes.
        of_bands = np.stack([rotated(bands[..., c], label, degrees)[0] for c in range(5)], -1)
        record["rotations"].append(
            {"degrees": degrees, "image": flat(of_image), "label": flat(of_label), "bands": flat(of_bands)}
        )
    record["blurs"] = [
        {"sigma": sigma, "image": flat(cv2.GaussianBlur(image, (0, 0), sigma)),
         "bands": flat(cv2.GaussianBlur(bands, (0, 0), sigma))}
        for sigma in [0.6, 1.7]
    ]
    record["resizes"] = [
        {"size": size, "bands": flat(cv2.resize(bands, tuple(size), interpolation=cv2.INTER_LINEAR))}
        for size in [[23, 19], [9, 10]]
    ]
    cut = RandomCutOut(prob=1.0, n_holes=2, cutout_ratio=(0.4, 0.3))
    cut.generate_patches = lambda results: (True, 2, [3, 12], [1, 9], [0, 0])
    # Left, top, width and height of what becomes black, cut off at the border.
    holes = [[3, 1, int(0.4 * W), int(0.3 * H)], [12, 9, 2, 2]]
    record["cutout"] = {"holes": holes, "image": flat(cut({"img": image.copy()})["img"])}
    json.dump(record, sys.stdout, separators=(",", ":"))


main()
