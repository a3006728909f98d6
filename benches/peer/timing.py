"""How a peer is timed, and what it says of it: one JSON line."""
import json
import math
import statistics
import time


def status_bytes(field):
    """A field of /proc/self/status in bytes, or None where there is no such file."""
    try:
        with open('/proc/self/status') as f:
            return next(int(line.split()[1]) * 1024 for line in f if line.startswith(field))
    except OSError:
        return None


def timed(step, warmup, iterations, warm=lambda: None):
    for _ in range(warmup):
        step()
    warm()
    seconds = []
    for _ in range(iterations):
        start = time.perf_counter()
        step()
        seconds.append(time.perf_counter() - start)
    return seconds


def summary(seconds, per_step):
    ordered, median = sorted(seconds), statistics.median(seconds)
    return dict(seconds=seconds, median_s=median, min_s=ordered[0],
                p95_s=ordered[math.ceil(0.95 * len(ordered)) - 1],
                images_per_s=per_step / median)


def size(text):
    height, width = map(int, text.split('x'))
    return height, width


def say(program, version, **row):
    print(json.dumps(dict(program=program, version=version, **row)), flush=True)
