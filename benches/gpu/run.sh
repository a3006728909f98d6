#!/usr/bin/env bash
# Checks and measures halfseg on a GPU machine without Rust, from the folder that bundle.sh packed.
#
#   ./run.sh                             on the first NVIDIA GPU, in less than eight minutes
#   ./run.sh --device cuda:1 --out DIR
#   ./run.sh --device flex --smoke       a self-check of this script on the CPU, with small networks
#
# 1. replays recordings of MMSegmentation and prints errors, 2. trains FCN in f16 and in f32 and prints
# both curves, 3. measures training and inference of the four methods, in alternation with the peer
# in PyTorch if `python3` has it, 4. breaks a training step down by kernel. Results, a table in
# Markdown and all output go to --out. What there was no time or no peer for is "not measured".
#
# Kernels that CubeCL chose and compiled are kept in ./cache, so that a second run starts faster.
# A GPU needs the driver, NVRTC and the CUDA headers; CUDA_PATH names the toolkit.
set -uo pipefail
here=$(cd "$(dirname "$0")" && pwd)

device=cuda smoke='' out='' limit=${HALFSEG_LIMIT_S:-470}
while [ $# -gt 0 ]; do
  case $1 in
    --device) device=$2; shift 2 ;;
    --out) out=$2; shift 2 ;;
    --smoke) smoke=1; shift ;;
    *) sed -n '2,/^set/p' "$0" | sed '$d; s/^# \{0,1\}//' >&2; exit 2 ;;
  esac
done
out=${out:-$here/results}
mkdir -p "$out" "$here/cache"
out=$(cd "$out" && pwd)
cd "$here/cache" || exit 1
printf '[environment]\npath = { directory = "%s" }\n' "$here/cache" >cubecl.toml

if [ -n "$smoke" ]; then
  backbone=resnet18 train_size=64x128 infer_size=64x128 passes=1 warmup=0 iterations=4
  precisions=(f32 f16) crop=64x128
  small=(--scale 128x64 --set data.synthetic_train=8 --set data.synthetic_val=2)
else
  backbone=resnet101 train_size=512x1024 infer_size=1024x2048 passes=20 warmup=5 iterations=200
  precisions=(f16) crop=512x1024 small=()
fi
data=synthetic
[ -d "$here/images" ] && data=$here/images
peer_device=$device
[ "$device" = flex ] && peer_device=cpu
python=${PYTHON:-python3}
peer=''
"$python" -c 'import torch' 2>/dev/null && peer=1

# Runs a command for the time that is left at most, with its output in a file.
failed=0
timed() {
  local log=$out/$1 left=$((limit - SECONDS))
  shift
  if [ "$left" -le 0 ]; then
    echo "no time is left: not measured: $*" | tee "$log"
    return
  fi
  timeout "$left" "$@" >"$log" 2>&1
  local status=$?
  if [ "$status" -ne 0 ]; then
    failed=$((failed + 1))
    printf 'failed with %s: %s\n' "$status" "$*" | tee -a "$log"
    tail -n 5 "$log"
  fi
}

{
  date -u +%FT%TZ
  cat "$here/version"
  uname -srm
  nvidia-smi --query-gpu=name,driver_version,memory.total,clocks.max.sm --format=csv,noheader \
    2>/dev/null || echo 'no NVIDIA GPU'
} >"$out/machine.txt"
cat "$out/machine.txt"

echo "== recordings ($SECONDS s)"
timed replay.md "$here/bin/replay" --recordings "$here/recordings" --device "$device" \
  --json "$out/replay.json"
cat "$out/replay.md"

echo "== training on $data ($SECONDS s)"
for precision in f16 f32; do
  rm -rf "$out/train-$precision"
  timed "train-$precision.log" "$here/bin/halfseg" train --method fcn --backbone $backbone \
    --data "$data" --crop $crop --batch 2 --iterations $iterations --precision $precision \
    --device "$device" --seed 1 --eval-every 0 --checkpoint-every 0 "${small[@]}" \
    --out "$out/train-$precision"
done

echo "== speed and memory ($SECONDS s)"
# Inference first: it is what most people run.
for mode in inference training; do
  for method in fcn pspnet deeplabv3 deeplabv3plus; do
    for precision in "${precisions[@]}"; do
      size=$infer_size batch=1 flags=()
      [ $mode = training ] && size=$train_size batch=2 flags=(--train)
      case="--method $method --backbone $backbone --size $size --batch $batch"
      name=$mode-$method-$precision
      # shellcheck disable=SC2086
      timed "$name.log" "$here/bin/halfseg" bench $case --precision "$precision" "${flags[@]}" \
        --iterations $passes --warmup $warmup --device "$device" --json "$out/$name.json"
      if [ -n "$peer" ]; then
        # shellcheck disable=SC2086
        timed "$name.peer.json" "$python" "$here/peer/torch_peer.py" model $case \
          --precision "$precision" "${flags[@]}" --iterations $passes --warmup $warmup \
          --device "$peer_device"
      fi
    done
  done
done

echo "== kernels ($SECONDS s)"
if [ "$device" != flex ]; then
  CUBECL_DEBUG_OPTION=profile CUBECL_DEBUG_LOG=$out/kernels.txt timed kernels.log \
    "$here/bin/halfseg" bench --method fcn --backbone $backbone --size $train_size --train \
    --precision f16 --iterations 2 --warmup 1 --device "$device"
fi

"$python" "$here/report.py" "$out" | tee "$out/results.md"
echo "== done in $SECONDS s, $failed command(s) failed; results in $out"
[ "$failed" -eq 0 ]
