#!/usr/bin/env bash
# Checks and measures halfseg on a GPU machine without Rust, from the folder that bundle.sh packed.
#
#   ./run.sh                             on the first NVIDIA GPU, in less than eight minutes
#   ./run.sh --device cuda:1 --out DIR
#   ./run.sh --parts speed,kernels       some of the parts: replay, speed, train, kernels, cudnn
#   ./run.sh --device flex --smoke       a self-check of this script on the CPU, with small networks
#
# replay   recordings of MMSegmentation, errors against what PyTorch itself is off by on this device
# speed    inference and training of the four methods: time and memory, each followed by the peer in
#          PyTorch (AMP, channels_last, cudnn.benchmark) if `python3` has it
# train    FCN in f16 and in f32 on the images of the bundle, or on generated ones: both curves
# kernels  the time of a training step by kernel
# cudnn    training of FCN with cuDNN's convolutions, where PyTorch or the system has cuDNN 9
#
# Everything goes to --out (./results): results.md with all tables and verdicts, results.json, the
# output of each command; OUT.tar.gz beside it packs the folder. All of it is written anew after each
# command, so that whatever ends this script leaves what was measured until then. Each part has a
# deadline, and a command that reaches it is interrupted and keeps what it has. What there was no time
# or no peer for is "not measured". The exit status is 0 if every command succeeded and nothing of the
# chosen parts is missing.
#
# Kernels that were compiled, and which of them are fastest, are kept in --cache (./cache). The first
# run on a machine spends most of its time on them; if something was not measured, run it again. If
# the machine is lent for a short time, run a part at a time with the same --cache and --out.
#
# A GPU needs the driver, and CUDA 11 to 13: NVRTC and the headers. CUDA_PATH names the toolkit; without
# it /usr/local/cuda is taken, or the packages that PyTorch came with. --limit (470 s; an hour for the
# self-check) bounds all.
set -uo pipefail
here=$(cd "$(dirname "$0")" && pwd)

device=cuda smoke='' out=$here/results cache=$here/cache parts=replay,speed,train,kernels,cudnn
limit=''
usage() {
  sed -n '2,/^set/p' "$0" | sed '$d; s/^# \{0,1\}//' >&2
  exit 2
}
while [ $# -gt 0 ]; do
  case $1 in
    --smoke) smoke=1; shift; continue ;;
    --device | --out | --cache | --parts | --limit) [ $# -ge 2 ] || usage ;;
    *) usage ;;
  esac
  case $1 in
    --device) device=$2 ;;
    --out) out=$2 ;;
    --cache) cache=$2 ;;
    --parts) parts=$2 ;;
    --limit) limit=$2 ;;
  esac
  shift 2
done
for part in ${parts//,/ }; do
  case $part in
    replay | speed | train | kernels | cudnn) ;;
    *) echo "--parts: expected replay, speed, train, kernels or cudnn, found $part" >&2; exit 2 ;;
  esac
done
# The self-check is to end, not to be on time.
[ -n "$limit" ] || { [ -n "$smoke" ] && limit=3600 || limit=470; }
case $limit in *[!0-9]*) echo "--limit: expected seconds, found $limit" >&2; exit 2 ;; esac
mkdir -p "$out" "$cache" || exit 1
out=$(cd "$out" && pwd) cache=$(cd "$cache" && pwd)

if [ -n "$smoke" ]; then
  backbone=resnet18 train_size=64x128 infer_size=64x128 passes=1 warmup=1 iterations=4 crop=64x128
  small=(--scale 128x64 --set data.synthetic_train=8)
  # PyTorch takes minutes for f16 on a CPU.
  half=bf16
else
  backbone=resnet101 train_size=512x1024 infer_size=1024x2048 passes=20 warmup=5 iterations=200
  crop=512x1024 small=() half=f16
fi
data=synthetic
[ -d "$here/images" ] && data=$here/images
python=${PYTHON:-python3}
peer=''
"$python" -c 'import torch' 2>/dev/null && peer=1
command -v "$python" >/dev/null || echo "there is no $python: outputs of commands, but no tables"
gpu='' peer_device=$device
case $device in
  cuda*) gpu=${device#cuda} gpu=${gpu#:} gpu=${gpu:-0} ;;
  flex) peer_device=cpu ;;
  *) peer='' ;;
esac

# Where CUDA is. Its libraries are named to our programs only: PyTorch brings its own.
libraries=${LD_LIBRARY_PATH:-}
if [ -n "$gpu" ]; then
  toolkit=${CUDA_PATH:-/usr/local/cuda}
  packages=$("$python" -c 'import nvidia; print(*nvidia.__path__, sep="\n")' 2>/dev/null | head -n 1)
  if [ ! -e "$toolkit/include/cuda_fp16.h" ] && [ -n "$packages" ]; then
    header=$(find -L "$packages" -name cuda_fp16.h 2>/dev/null | sort | tail -n 1)
    toolkit=${header%/include/*}
  fi
  export CUDA_PATH=$toolkit
  nvrtc=''
  [ -n "$packages" ] && nvrtc=$(find -L "$packages" -name 'libnvrtc.so.*' 2>/dev/null | head -n 1)
  for folder in "$toolkit/lib64" "$toolkit/lib" "${nvrtc%/*}"; do
    [ -n "$folder" ] && [ -d "$folder" ] && libraries=${libraries:+$libraries:}$folder
  done
fi
ours=(env "LD_LIBRARY_PATH=$libraries")

# CubeCL reads its settings from the folder that programs are started in. The driver keeps what it
# compiles too.
cd "$cache" || exit 1
cat >cubecl.toml <<TOML
[environment]
path = { directory = "$cache" }
[compilation]
cache = true
[autotune.logger]
level = "minimal"
file = "$cache/autotune.log"
TOML
export CUDA_CACHE_PATH=$cache/driver CUDA_CACHE_MAXSIZE=1073741824

# Sums up what there is so far.
report() {
  [ ! -e "$cache/autotune.log" ] || cp "$cache/autotune.log" "$out/autotune.log"
  "$python" "$here/report.py" "$out" ${smoke:+--smoke} --parts "$parts" >"$out/report.log" 2>&1
  local status=$?
  tar -C "$(dirname "$out")" -czf "$out.tar.gz.part" "$(basename "$out")" &&
    mv "$out.tar.gz.part" "$out.tar.gz"
  return $status
}

# finish BY NAME COMMAND...: runs a command until BY seconds after the start at most, with its output
# in NAME (its stderr in NAME.err unless NAME is a log), and notes how it ended. A command that is out
# of time is interrupted, and killed if that takes it longer than 10 s. What an earlier run measured
# stays if there is no time to begin.
failed=0 sampler=''
quiet() {
  [ -z "$sampler" ] || kill "$sampler" 2>/dev/null
  sampler=''
}
trap quiet EXIT
trap 'echo interrupted; report; exit 130' INT TERM
finish() {
  local by=$1 name=$2 started=$SECONDS left status log
  shift 2
  if [ -n "$smoke" ] || [ "$by" -gt "$limit" ]; then by=$limit; fi
  left=$((by - SECONDS))
  if [ "$left" -le 2 ]; then
    printf '%s\t%s\t%s\t%s\n' "$name" 'no time' 0 "$*" >>"$out/commands.tsv"
    return
  fi
  rm -f "$out/$name" "$out/$name.err" "$out/${name%.*}.json" "$out/$name.mib"
  case $name in
    *.log) log=$out/$name ;;
    *) log=$out/$name.err ;;
  esac
  if [ -n "$gpu" ] && command -v nvidia-smi >/dev/null; then
    nvidia-smi -i "$gpu" --query-gpu=memory.used --format=csv,noheader,nounits -lms 250 \
      >"$out/$name.mib" 2>/dev/null &
    sampler=$!
  fi
  # The command in the foreground, so that Ctrl-C reaches it too.
  if [ "$log" = "$out/$name" ]; then
    timeout --foreground -s INT -k 10 "$left" "$@" >"$out/$name" 2>&1
  else
    timeout --foreground -s INT -k 10 "$left" "$@" >"$out/$name" 2>"$log"
  fi
  status=$?
  quiet
  printf '%s\t%s\t%s\t%s\n' "$name" "$status" $((SECONDS - started)) "$*" >>"$out/commands.tsv"
  if [ "$status" -ne 0 ]; then
    failed=$((failed + 1))
    printf '%s: status %s after %s s: %s\n' "$name" "$status" $((SECONDS - started)) "$*"
    tail -n 4 "$log"
  fi
  report
}

chosen() { [[ ,$parts, == *,$1,* ]]; }
# When the other parts end, for the last one to have its time.
before_cudnn=$limit
chosen cudnn && [ -n "$gpu" ] && before_cudnn=$((limit - 35))

{
  date -u +%FT%TZ
  echo "halfseg $(cat "$here/version")"
  uname -srm
  if [ -n "$gpu" ]; then
    nvidia-smi -i "$gpu" --query-gpu=name,driver_version,memory.total,clocks.max.sm \
      --format=csv,noheader 2>&1 || echo 'nvidia-smi failed'
    echo "CUDA_PATH $CUDA_PATH"
    "$CUDA_PATH/bin/nvcc" --version 2>/dev/null | tail -n 2 | head -n 1
  fi
  [ -n "$peer" ] && "$python" -c 'import torch
print("torch", torch.__version__, "cuDNN", torch.backends.cudnn.version())'
  [ -z "$peer" ] && echo "no peer: $python has no PyTorch"
} >"$out/machine.txt"
cat "$out/machine.txt"

# Each part may use the time that those before it left.
if chosen replay; then
  echo "== replay ($SECONDS s)"
  limits=()
  if [ -n "$peer" ]; then
    finish 40 replay.peer.json "$python" "$here/peer/torch_peer.py" replay \
      --recordings "$here/recordings" --device "$peer_device"
    [ -s "$out/replay.peer.json" ] && limits=(--peer "$out/replay.peer.json")
  fi
  finish 110 replay.md "${ours[@]}" "$here/bin/replay" --recordings "$here/recordings" --device "$device" \
    --precisions f16,f32,bf16 ${limits[@]+"${limits[@]}"} --json "$out/replay.json"
  cat "$out/replay.md"
fi

if chosen speed; then
  echo "== speed and memory ($SECONDS s)"
  by=$before_cudnn
  chosen train && by=$((by - 100))
  chosen kernels && by=$((by - 35))
  for mode in inference training; do
    for method in fcn pspnet deeplabv3 deeplabv3plus; do
      size=$infer_size batch=1 flags=() peer_flags=(--softmax)
      [ $mode = training ] && size=$train_size batch=2 flags=(--train) peer_flags=(--train)
      case=(--method "$method" --backbone $backbone --size $size --batch $batch --precision $half
        --iterations $passes --warmup $warmup)
      name=$mode-$method
      # No more than this for one: what it tuned until then is kept.
      most=$((SECONDS + 110))
      [ "$most" -lt "$by" ] || most=$by
      finish "$most" "$name.log" "${ours[@]}" "$here/bin/halfseg" bench "${case[@]}" ${flags[@]+"${flags[@]}"} \
        --device "$device" --json "$out/$name.json"
      if [ -n "$peer" ]; then
        most=$((SECONDS + 50))
        [ "$most" -lt "$by" ] || most=$by
        finish "$most" "$name.peer.json" "$python" "$here/peer/torch_peer.py" model "${case[@]}" \
          "${peer_flags[@]}" --cudnn-benchmark --device "$peer_device"
      fi
    done
  done
fi

if chosen train; then
  echo "== training on $data ($SECONDS s)"
  end=$before_cudnn
  chosen kernels && end=$((end - 35))
  by=$((SECONDS + (end - SECONDS) / 2))
  for precision in f16 f32; do
    # Checkpoints are large: they stay out of the results. Nothing is evaluated: that would choose and
    # compile kernels for another size.
    rm -rf "$cache/train-$precision"
    finish "$by" "train-$precision.log" "${ours[@]}" "$here/bin/halfseg" train --method fcn \
      --backbone $backbone --data "$data" --crop $crop --batch 2 --iterations $iterations \
      --precision $precision --device "$device" --seed 1 --eval-every 0 --checkpoint-every 0 \
      --set 'data.val_split=""' ${small[@]+"${small[@]}"} --out "$cache/train-$precision"
    cp "$cache/train-$precision/log.jsonl" "$out/train-$precision.jsonl" 2>/dev/null
    by=$end
  done
fi

if chosen kernels && [ -n "$gpu" ]; then
  echo "== kernels ($SECONDS s)"
  rm -f "$out/kernels.txt"
  CUBECL_DEBUG_OPTION=profile CUBECL_DEBUG_LOG=$out/kernels.txt finish "$before_cudnn" kernels.log \
    "${ours[@]}" "$here/bin/halfseg" bench --method fcn --backbone $backbone --size $train_size --train \
    --precision f16 --iterations 2 --warmup 2 --device "$device"
fi

if chosen cudnn && [ -n "$gpu" ]; then
  echo "== convolutions by cuDNN ($SECONDS s)"
  found=''
  [ -n "$packages" ] && found=$(find -L "$packages" -name libcudnn.so.9 2>/dev/null | head -n 1)
  finish "$limit" cudnn.log env "LD_LIBRARY_PATH=$libraries${found:+:${found%/*}}" HALFSEG_GPU_KERNEL=cudnn \
    "$here/bin/halfseg" bench --method fcn --backbone $backbone --size $train_size --train --batch 2 \
    --precision f16 --iterations $passes --warmup $warmup --device "$device" --json "$out/cudnn.json"
fi

report
complete=$?
cat "$out/results.md" "$out/report.log"
echo "== done in $SECONDS s, $failed command(s) failed; results in $out and $out.tar.gz"
[ "$failed" -eq 0 ] && [ "$complete" -eq 0 ]
