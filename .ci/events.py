#!/usr/bin/env python3
"""Trains a tiny network with event files, kills it, resumes it, and has TensorBoard read all back: every line of the log
once. The argument is the program."""
import json
import os
import pathlib
import signal
import subprocess
import sys
import tempfile
import time

try:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
except ImportError:
    print("this Python has no TensorBoard: its own reading of event files is not checked")
    sys.exit(75)

TINY = """--method fcn --backbone resnet18 --data synthetic --scale 64x32 --crop 32x32 --batch 2
  --set model.stem_channels=8 --set model.base_channels=4 --set model.head_channels=8 --set model.aux_channels=8
  --set data.synthetic_train=4 --set data.synthetic_val=2 --set train.pictures=0 --eval-every 4
  --checkpoint-every 3 --iterations 100000 --quiet""".split()
TAGS = {
    "train": {"loss/total": "loss", "loss/decode": "decode_loss", "train/accuracy": "accuracy",
              "train/learning_rate": "lr", "train/loss_scale": "scale", "train/skipped_steps": "skipped",
              "time/seconds_an_iteration": "step_s"},
    "eval": {"eval/mIoU": "miou", "eval/aAcc": "aacc"},
}

program = sys.argv[1]
with tempfile.TemporaryDirectory() as folder:
    run, events = pathlib.Path(folder, "run"), pathlib.Path(folder, "events")
    shown = ["--out", run, "--tensorboard", events]

    def killed(command, lines):
        """Runs `command` until the log has so many lines, and kills it."""
        process = subprocess.Popen([program, "train", *command, *shown])
        log = run / "log.jsonl"
        began = time.monotonic()
        while not log.exists() or len(log.read_bytes().splitlines()) < lines:
            assert process.poll() is None, "it ended by itself"
            assert time.monotonic() - began < 300, "no line for minutes"
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        process.wait()

    killed(TINY, 30)
    killed(["--resume", "--quiet"], 60)
    # One that is not shown: its lines are made up.
    last = int((run / "last_checkpoint").read_text().split("_")[1].split(".")[0])
    resume = [program, "train", "--resume", "--quiet", "--out", run, "--iterations"]
    subprocess.run([*resume, str(last + 5)], check=True)
    subprocess.run([*resume, str(last + 9), "--tensorboard", events], check=True)

    lines = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    read = EventAccumulator(os.fspath(events), size_guidance={"scalars": 0})
    read.Reload()
    checked = 0
    for event, tags in TAGS.items():
        for tag, key in tags.items():
            factor = 100 if event == "eval" else 1
            expected = [(line["iteration"], factor * line[key]) for line in lines
                        if line["event"] == event and line[key] is not None]
            found = [(scalar.step, scalar.value) for scalar in read.Scalars(tag)]
            assert [step for step, _ in found] == [step for step, _ in expected], (tag, found, expected)
            for (step, value), (_, wanted) in zip(found, expected):
                assert abs(value - wanted) <= 1e-6 * abs(wanted) + 1e-12, (tag, step, value, wanted)
            checked += len(found)
    assert any(tag.startswith("iou/") for tag in read.Tags()["scalars"])
    print(f"TensorBoard read {checked} values of {len(lines)} lines, each once, after two kills and two resumptions")
