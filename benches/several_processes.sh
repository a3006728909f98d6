#!/usr/bin/env bash
# Two processes with one thread each against one process with two: the time of a training step, and the
# exchange of gradients against a bare MPI_Allreduce. On an idle machine with two cores or more:
#
#   cargo build --release -p halfseg-cli --features mpi
#   benches/several_processes.sh [PROGRAM] [ROUNDS]
set -euo pipefail
cd "$(dirname "$0")/.."
program=${1:-${CARGO_TARGET_DIR:-target}/release/halfseg}
rounds=${2:-3}
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
mpi="mpirun --allow-run-as-root --oversubscribe --bind-to none -np 2"

echo "$("$program" --version), $(nproc) cores, load $(cut -d' ' -f1-3 /proc/loadavg)"
train() {
  local out=$1 threads=$2
  shift 2
  RAYON_NUM_THREADS=$threads "$@" "$program" -q train --method fcn --backbone resnet50 --data synthetic \
    --precision f32 --crop 256x512 --scale 1024x512 --batch 4 --iterations 6 --out "$out" \
    --set data.val_split= --set data.workers=1 --set data.synthetic_train=24 --checkpoint-every 0 >/dev/null
}
for round in $(seq "$rounds"); do
  train "$folder/one-$round" 2 env
  train "$folder/two-$round" 1 $mpi
done
python3 - "$folder" "$rounds" <<'PYTHON'
import json, statistics, sys

folder, rounds = sys.argv[1], int(sys.argv[2])
medians = {}
for how in ("one", "two"):
    seconds = []
    for round in range(1, rounds + 1):
        lines = [json.loads(line) for line in open(f"{folder}/{how}-{round}/log.jsonl")]
        steps = [line for line in lines if line["event"] == "train"]
        # The first fills caches.
        seconds += [step["step_s"] - step["data_wait_s"] for step in steps[1:]]
    medians[how] = statistics.median(seconds)
    print(f"{how} process(es): median {medians[how]:.3f} s, {min(seconds):.3f} to {max(seconds):.3f} s a step")
print(f"two processes / one: {medians['two'] / medians['one']:.3f}")
PYTHON
for transport in vader,self tcp,self; do
  for precision in f32 f16; do
    echo "-- $transport"
    $mpi --mca btl "$transport" "$program" bench --exchange --method fcn --backbone resnet50 \
      --exchange-precision "$precision" --iterations 9
  done
done
