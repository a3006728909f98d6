"""Records scores of torchmetrics, and boundary IoUs.

    python record_scores.py > data/scores.json    # torchmetrics 1.9.0 and scipy were used

A further argument is another seed than that of the committed file; HALFSEG_SCORES names another file for the tests. The
boundary of a mask is what an erosion takes off it, as the authors of the boundary IoU define it
(github.com/bowenc0221/boundary-iou-api, `mask_to_boundary`).
"""

import json
import sys

import numpy as np
import torch
from scipy.ndimage import binary_erosion
from torchmetrics import classification as m

IGNORED = 255
# Classes, width and height of two pictures, and how many classes occur.
CASES = [(5, (60, 44), 5), (4, (131, 97), 3), (2, (23, 90), 2), (7, (300, 40), 6)]


def rectangles(rng, size, classes, count):
    width, height = size
    out = np.full((height, width), rng.integers(classes), np.uint8)
    for _ in range(count):
        x, y = rng.integers(width), rng.integers(height)
        w, h = rng.integers(1, width // 2 + 2), rng.integers(1, height // 2 + 2)
        out[y : y + h, x : x + w] = rng.integers(classes)
    return out


def runs(map):
    """Each value with how often it comes in a row."""
    flat = map.ravel()
    starts = np.flatnonzero(np.r_[True, flat[1:] != flat[:-1]])
    return [[int(flat[s]), int(n)] for s, n in zip(starts, np.diff(np.r_[starts, flat.size]))]


def boundary(mask):
    distance = max(1, int(round(0.02 * np.hypot(*mask.shape))))
    return mask & ~binary_erosion(mask, np.ones((3, 3)), iterations=distance, border_value=0)


def case(rng, classes, size, occurring):
    labels, predictions = [], []
    for _ in range(2):
        label = rectangles(rng, size, occurring, 9)
        prediction = label.copy()
        wrong = rectangles(rng, size, 4, 6) == 1
        prediction[wrong] = rectangles(rng, size, occurring, 9)[wrong]
        label[rectangles(rng, size, 6, 6) == 2] = IGNORED
        labels.append(label)
        predictions.append(prediction)
    truth, found = [torch.from_numpy(np.stack(maps)).long() for maps in (labels, predictions)]
    common = dict(num_classes=classes, ignore_index=IGNORED)
    by_class = {
        "iou": m.MulticlassJaccardIndex,
        "accuracy": m.MulticlassRecall,
        "precision": m.MulticlassPrecision,
        "dice": m.MulticlassF1Score,
    }
    each = {name: metric(average=None, **common)(found, truth).double().tolist() for name, metric in by_class.items()}
    means = {name: float(metric(average="macro", **common)(found, truth)) for name, metric in by_class.items()}
    means["aacc"] = float(m.MulticlassAccuracy(average="micro", **common)(found, truth))
    ious = []
    for k in range(classes):
        both = either = 0
        for label, prediction in zip(labels, predictions):
            counted = label != IGNORED
            of_truth, of_prediction = boundary(label == k) & counted, boundary(prediction == k) & counted
            both += int((of_truth & of_prediction).sum())
            either += int((of_truth | of_prediction).sum())
        ious.append(both / either if either else None)
    return {
        "classes": classes,
        "size": size,
        "labels": [runs(label) for label in labels],
        "predictions": [runs(prediction) for prediction in predictions],
        "by_class": each,
        "means": means,
        "boundary_iou": ious,
    }


rng = np.random.default_rng(int(sys.argv[1]) if len(sys.argv) > 1 else 20261129)
json.dump([case(rng, *shape) for shape in CASES], sys.stdout)
print()
