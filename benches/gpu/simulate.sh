#!/usr/bin/env bash
# Runs halfseg's CUDA path where there is no GPU: on ../shared/cuda-sim beside the checkout, a CUDA driver
# in software. NVRTC compiles each kernel, an interpreter executes it on the CPU and checks every access;
# new memory is filled with NaN. It shows neither time nor what real hardware does otherwise.
#
#   benches/gpu/simulate.sh --out DIR                    all parts
#   benches/gpu/simulate.sh --out DIR --parts train,eval
#   benches/gpu/simulate.sh --out DIR --bin FOLDER       with programs that were built before
#
# replay    recordings of MMSegmentation in three precisions
# train     twenty iterations of the four methods from one seed, dropout included, losses beside the CPU's; where
#           those come further apart than the limit with other instructions, or a learning rate a millionth
#           larger, twice as far is allowed
# ways      recomputed blocks, a resumed run, two devices, a device that is too small
# eval      scores and class maps of a network, whole, in windows, over six scales; predict; audit
# kernels   tests of the kernels, and of training steps, for each architecture
# archs     two iterations of the four methods in f16 for each architecture
# each      the tests of the convolutions with each kernel that tuning may choose, one after the other
# cudnn     the same by cuDNN, for which a stand-in computes on the CPU, and where there is none
# amp       the tests of halfseg-amp, and the launches of a step of fifty layers
# own       examples/own-network: a network of Burn's layers, ten steps beside the CPU
# memory    memory and launches of a training step and an inference at full size, nothing executed
#
# METHODS, PRECISIONS and ARCHS choose among them. Everything goes to --out: results.md with a line for
# each check, the output of each command, and the simulator's report on it. The exit status is 0 if every
# check passed. Each command has its own cache of tuning, so that no choice made here is taken for a GPU's.
set -uo pipefail
root=$(cd "$(dirname "$0")/../.." && pwd)

parts=replay,train,ways,eval,kernels,archs,each,cudnn,amp,own,memory out='' bin=''
usage() {
  sed -n '2,/^set/p' "$0" | sed '$d; s/^# \{0,1\}//' >&2
  exit 2
}
while [ $# -gt 0 ]; do
  [ $# -ge 2 ] || usage
  case $1 in
    --out) out=$2 ;;
    --bin) bin=$(cd "$2" && pwd) || exit 2 ;;
    --parts) parts=$2 ;;
    *) usage ;;
  esac
  shift 2
done
[ -n "$out" ] || usage
run=${CUDA_SIM:-$root/../shared/cuda-sim}/run.sh
if [ ! -x "$run" ]; then
  echo "there is no simulator at $run" >&2
  exit 75
fi
methods=${METHODS:-fcn pspnet deeplabv3 deeplabv3plus}
precisions=${PRECISIONS:-f32 f16 bf16}
archs=${ARCHS:-75 80 86 89 90 100 120}
iterations=${ITERATIONS:-20}
chosen() { [[ ",$parts," == *",$1,"* ]]; }

if [ -z "$bin" ]; then
  cd "$root" || exit 2
  cargo fetch -q --locked && bash benches/gpu/offline-llvm.sh || exit 1
  # Little optimisation: compiling takes longer than what is run on the host.
  export CARGO_PROFILE_DEV_OPT_LEVEL=${CARGO_PROFILE_DEV_OPT_LEVEL:-1} CARGO_PROFILE_DEV_DEBUG=false
  bin=${CARGO_TARGET_DIR:-$root/target}/debug
  packages=(-p halfseg-cli -p halfseg-benches -p halfseg-kernels -p halfseg-train -p halfseg-amp -p halfseg-own-network
    --features "halfseg-cli/cuda,halfseg-benches/cuda,halfseg-kernels/cuda,halfseg-train/cuda,halfseg-amp/cuda"
    --features halfseg-own-network/cuda,halfseg-kernels/cudnn)
  tests=(--test gpu --test launches)
  for test in crates/amp/tests/*.rs; do
    tests+=(--test "$(basename "$test" .rs)")
  done
  cargo build --locked "${packages[@]}" --bins || exit 1
  # Tests are started from the folders of their caches, so their files have to be known.
  cargo test --locked "${packages[@]}" "${tests[@]}" --no-run --message-format=json >"$bin/tests.json" || exit 1
  grep -o '"executable":"[^"]*/deps/[^"]*"' "$bin/tests.json" | cut -d'"' -f4 >"$bin/all-tests"
  grep '/gpu-[^/]*$' "$bin/all-tests" >"$bin/gpu-tests"
  grep -v '/gpu-[^/]*$' "$bin/all-tests" >"$bin/amp-tests"
fi
mkdir -p "$out"
out=$(cd "$out" && pwd)
results=$out/results.tsv
touch "$results"

# note PART WHAT FOUND WANTED STATUS: a line of the table; a later one of the same check replaces it.
note() {
  local line
  line=$(printf '%s\t%s\t%s\t%s\t%s' "$1" "$2" "$3" "$4" "$([ "$5" = 0 ] && echo yes || echo '**no**')")
  awk -F'\t' -v part="$1" -v what="$2" '!($1 == part && $2 == what)' "$results" >"$results.part"
  printf '%s\n' "$line" >>"$results.part"
  mv "$results.part" "$results"
  {
    printf '# halfseg on a simulated NVIDIA GPU\n\nVersion %s, %s iterations a training run.\n\n' \
      "$(git -C "$root" describe --always --dirty)" "$iterations"
    printf '| part | check | found | wanted | reached |\n|---|---|---|---|---|\n'
    awk -F'\t' '{ printf "| %s | %s | %s | %s | %s |\n", $1, $2, $3, $4, $5 }' "$results"
  } >"$out/results.md"
  printf '%s\n' "$line"
}

# sim NAME COMMAND ...: on a simulated device. Fails as the command does, and on any fault that was seen; with 2
# where the command did well without a device.
sim() {
  local name=$1 cache=$out/cache-$1 status=0
  shift
  rm -rf "$cache" "$out/$name.report"
  mkdir -p "$cache"
  # Candidates are timed once. "enforced" gives each tensor an allocation of its own, so that accesses
  # beyond one are seen.
  cat >"$cache/cubecl.toml" <<TOML
[environment]
path = { directory = "$cache" }
[autotune]
level = "minimal"
[autotune.logger]
level = "full"
file = "$cache/autotune.log"
[autotune.bench]
min_samples = 1
max_samples = 1
short_circuit_samples = 1
[memory]
persistent_memory = "${PERSISTENT:-enforced}"
TOML
  # What is in use is written down at each allocation: of the order of 100 MB for a run.
  if [ -n "${IN_USE:-}" ]; then
    printf '[memory.logger]\nlevel = "full"\nfile = "%s"\n' "$cache/memory.log" >>"$cache/cubecl.toml"
  fi
  (cd "$cache" && CUDA_SIM_POISON=${POISON:-1} CUDA_SIM_REPORT=$out/$name.report \
    timeout "${LIMIT:-1800}" "$run" "$@") >"$out/$name.log" 2>&1 || status=$?
  [ "$status" = 0 ] || return 1
  [ -e "$out/$name.report" ] || return 2
  grep -q '"errors": \[\]' "$out/$name.report" || return 1
}
host() { # NAME COMMAND ...: the same on the CPU.
  local name=$1
  shift
  "$@" >"$out/$name.log" 2>&1
}
halfseg() { # sim|host NAME COMMAND ARGUMENT ...
  local where=$1 name=$2 command=$3
  shift 3
  rm -rf "${out:?}/$name"
  "$where" "$name" "$bin/halfseg" "$command" "$@"
}

# Narrow networks on small pictures.
narrow=(--set model.stem_channels=16 --set model.base_channels=16 --set model.head_channels=32
  --set model.aux_channels=16 --set model.c1_channels=16 --set 'model.dilations=[1,2,4,6]')
small=(--backbone resnet18 "${narrow[@]}" --data synthetic --crop 64x64 --scale 128x64 --batch 2 --seed 1
  --workers 1 --eval-every 0 --checkpoint-every 0 --set data.synthetic_train=8 --set data.synthetic_val=2)

# The largest difference of the losses of two runs, relative; "none" where one has fewer.
apart() {
  python3 - "$out/$1/log.jsonl" "$out/$2/log.jsonl" <<'PYTHON'
import json, sys
def losses(path):
    try:
        events = [json.loads(line) for line in open(path)]
    except OSError:
        return []
    return [event['loss'] for event in events if event.get('event') == 'train']
a, b = map(losses, sys.argv[1:])
whole = a and len(a) == len(b) and None not in a + b
print(f'{max(abs(x - y) / abs(y) for x, y in zip(a, b)):.1e}' if whole else 'none')
PYTHON
}
at_most() { awk -v found="$1" -v limit="$2" 'BEGIN { exit !(found ~ /^[0-9]/ && found + 0 <= limit + 0) }'; }
# check_losses PART WHAT NAME PEER LIMIT STATUS [OTHER ...]: twice as far as other runs of the peer are from it is allowed,
# too.
check_losses() {
  local part=$1 what=$2 name=$3 peer=$4 limit=$5 status=$6 wanted="losses within $5" found other noise=0
  shift 6
  found=$(apart "$name" "$peer")
  for other; do
    noise=$(printf '%s\n' "$noise" "$(apart "$other" "$peer")" | sort -g | tail -n 1)
  done
  if [ $# -gt 0 ]; then
    limit=$(awk -v noise="$noise" -v limit="$limit" 'BEGIN { print (2 * noise > limit ? 2 * noise : limit) }')
    wanted+=", or twice what the CPU's runs are apart, $noise"
  fi
  at_most "$found" "$limit" || status=1
  note "$part" "$what" "$found" "$wanted" "$status"
}
limit_of() { case $1 in f32) echo 1e-5 ;; f16) echo 1e-4 ;; bf16) echo 1e-3 ;; esac; }

if chosen replay; then
  for precision in $precisions; do
    status=0
    sim "replay-$precision" "$bin/replay" --device cuda --precisions "$precision" \
      --recordings "${RECORDINGS:-$root/crates/segmentor/tests/recordings}" \
      --json "$out/replay-$precision.json" || status=1
    found=$(grep -o '.* lines are beyond a limit' "$out/replay-$precision.log")
    note replay "$precision" "${found:-no table}" "none beyond" "$status"
  done
fi

if chosen train; then
  for method in $methods; do
    for precision in $precisions; do
      name=train-$method-$precision status=0
      train=(--method "$method" "${small[@]}" --iterations "$iterations" --precision "$precision")
      halfseg host "$name-host" train "${train[@]}" --device cpu --out "$out/$name-host" || status=1
      # How far rounding alone takes two runs apart: three of the networks normalise two values of a channel somewhere.
      HALFSEG_ISA=portable halfseg host "$name-portable" train "${train[@]}" --device cpu --out "$out/$name-portable" || status=1
      halfseg host "$name-moved" train "${train[@]}" --lr 0.01000001 --device cpu --out "$out/$name-moved" || status=1
      halfseg sim "$name" train "${train[@]}" --device cuda --out "$out/$name" || status=1
      check_losses train "$method in $precision" "$name" "$name-host" "$(limit_of "$precision")" "$status" "$name-portable" "$name-moved"
    done
  done
fi

if chosen ways; then
  train=(--method deeplabv3plus "${small[@]}" --precision f16 --device cuda)
  on_two=(--method deeplabv3plus "${small[@]}" --precision f16 --devices cuda:0,cuda:1)
  status=0
  halfseg sim ways-whole train "${train[@]}" --iterations 4 --out "$out/ways-whole" || status=1
  halfseg sim ways-again train "${train[@]}" --iterations 4 --gradient-checkpointing \
    --out "$out/ways-again" || status=1
  check_losses ways "blocks recomputed" ways-again ways-whole 1e-4 "$status"
  status=0
  resumed=("$bin/halfseg" train "${train[@]}" --iterations 4 --out "$out/ways-resumed")
  rm -rf "$out/ways-resumed"
  # Ended by a signal once the second iteration is in the log, which saves and exits with 130.
  sim ways-interrupted bash -c 'log=$1; shift
    "$@" & until [ "$(grep -c event.:.train "$log" 2>/dev/null)" -ge 2 ]; do
      kill -0 $! 2>/dev/null || exit 1
      sleep 0.1
    done
    kill -TERM $!; wait $!; [ $? = 130 ]' - "$out/ways-resumed/log.jsonl" "${resumed[@]}" || status=1
  sim ways-resumed "${resumed[@]}" --resume || status=1
  check_losses ways "resumed" ways-resumed ways-whole 1e-4 "$status"
  status=0
  CUDA_SIM_DEVICES=2 halfseg sim ways-two train "${on_two[@]}" --iterations 4 \
    --out "$out/ways-two" || status=1
  check_losses ways "two devices" ways-two ways-whole 1e-4 "$status"
fi

if chosen ways; then
  # What a step of ResNet-101 does not fit into.
  status=0
  CUDA_SIM_MEMORY_GB=1 CUDA_SIM_MODE=null PERSISTENT=enabled halfseg sim ways-small bench --train \
    --method fcn --backbone resnet101 --size 512x1024 --precision f16 --device cuda --iterations 1 && status=1
  grep -q 'memory' "$out/ways-small.log" && ! grep -q 'panicked' "$out/ways-small.log" || status=1
  note ways "a device of 1 GiB" "$(tail -n 1 "$out/ways-small.log" | cut -c 1-160 | tr '|' '/')" \
    "a message about memory" "$status"
fi

# Scores of two JSON files and how many class maps of two folders are the same.
compare_maps() {
  python3 - "$@" <<'PYTHON'
import filecmp, glob, os, sys
a, b = sys.argv[1:]
files = sorted(os.path.relpath(f, a) for f in glob.glob(a + '/**/*.png', recursive=True))
same = sum(os.path.exists(f'{b}/{f}') and filecmp.cmp(f'{a}/{f}', f'{b}/{f}', False) for f in files)
print(f'{same} of {len(files)}')
sys.exit(not files)
PYTHON
}
# In percent.
miou() {
  python3 -c 'import json, sys; print("%.2f" % (100 * json.load(open(sys.argv[1]))["miou"]))' "$1" 2>/dev/null
}

if chosen eval; then
  for method in $methods; do
    start=$out/start-$method
    [ -e "$start/done" ] || { halfseg host "start-$method" train --method "$method" "${small[@]}" \
      --iterations 30 --lr 0.05 --device cpu --out "$start" && touch "$start/done"; }
    for precision in $precisions; do
      for way in whole slide ms-flip; do
        case $way in
          whole) flags=() ;;
          slide) flags=(--mode slide --crop 64x64 --stride 32x32) ;;
          ms-flip) flags=(--ms-flip) ;;
        esac
        name=eval-$method-$precision-$way status=0
        args=(--checkpoint "$start" --data synthetic --set data.scale=128x64 --set data.synthetic_val=2
          --precision "$precision" "${flags[@]}")
        halfseg host "$name-host" eval "${args[@]}" --device cpu --json "$out/$name-host.scores" \
          --save-predictions "$out/$name-host" || status=1
        halfseg sim "$name" eval "${args[@]}" --device cuda --json "$out/$name.scores" \
          --save-predictions "$out/$name" || status=1
        a=$(miou "$out/$name.scores") b=$(miou "$out/$name-host.scores")
        awk -v a="$a" -v b="$b" 'BEGIN { exit !(a != "" && b != "" && (a - b) ^ 2 <= 0.25) }' || status=1
        maps=$(compare_maps "$out/$name" "$out/$name-host") || status=1
        note eval "$method in $precision, $way" "mIoU $a, CPU $b; $maps maps equal" "mIoU within 0.5" "$status"
      done
    done
  done
fi

if chosen eval; then
  start=$out/start-deeplabv3plus
  for precision in $precisions; do
    status=0
    args=(--checkpoint "$start" --precision "$precision" --scale 128x64 "$root/docs")
    halfseg host "predict-$precision-host" predict "${args[@]}" --device cpu --out "$out/predict-$precision-host" || status=1
    halfseg sim "predict-$precision" predict "${args[@]}" --device cuda --out "$out/predict-$precision" || status=1
    maps=$(compare_maps "$out/predict-$precision" "$out/predict-$precision-host") || status=1
    note eval "predict in $precision" "$maps pictures equal" "it runs" "$status"
  done
  status=0
  audit=(--method deeplabv3plus "${small[@]}")
  halfseg host audit-host audit "${audit[@]}" --device cpu --json "$out/audit-host.json" || status=1
  halfseg sim audit audit "${audit[@]}" --device cuda --json "$out/audit.json" || status=1
  note eval audit "$(grep -c '' "$out/audit.log") lines, CPU $(grep -c '' "$out/audit-host.log")" "it runs" "$status"
fi

# From sm_90 on kernels by TMA are tried, which the simulator has not: these are all others that are compared.
kernels_of() { [ "$1" -lt 90 ] || echo pointwise,split,sync_mma,mma,mma_rows; }
if chosen kernels; then
  for arch in $archs; do
    while read -r test; do
      name=kernels-$arch-$(basename "${test%-*}")-$(basename "$test") status=0
      HALFSEG_GPU_KERNEL=$(kernels_of "$arch") CUDA_SIM_ARCH=$arch HALFSEG_REQUIRE_GPU=1 LIMIT=3600 \
        sim "$name" "$test" --test-threads 1 --nocapture || status=1
      found=$(grep '^test result' "$out/$name.log" | cut -d';' -f1,2 | cut -d. -f2)
      note kernels "sm_$arch, $(grep -c '^test ' "$out/$name.log") tests" "${found:-none ended}" "all pass" "$status"
    done <"$bin/gpu-tests"
  done
fi

if chosen archs; then
  for method in $methods; do
    train=(--method "$method" "${small[@]}" --iterations 2 --precision f16)
    of_host=0
    halfseg host "archs-$method-host" train "${train[@]}" --device cpu --out "$out/archs-$method-host" || of_host=1
    for arch in $archs; do
      name=archs-$arch-$method status=$of_host
      HALFSEG_GPU_KERNEL=$(kernels_of "$arch") CUDA_SIM_ARCH=$arch \
        halfseg sim "$name" train "${train[@]}" --device cuda --out "$out/$name" || status=1
      check_losses archs "$method on sm_$arch" "$name" "archs-$method-host" "$(limit_of f16)" "$status"
    done
  done
fi

test_of_convolutions() {
  for test in $(<"$bin/gpu-tests"); do
    "$test" --list 2>/dev/null | grep '^convolutions_and_all' >/dev/null && echo "$test" && break
  done
}
if chosen each; then
  test=$(test_of_convolutions)
  for kernel in ${KERNELS:-pointwise split sync_cmma sync_mma async_cmma async_mma tma_cmma tma_mma mma mma_rows mma_ordered \
    mma_tma mma_tma_specialized cmma cmma_rows cmma_ordered unit unit_small naive}; do
    name=each-$kernel status=0
    HALFSEG_GPU_KERNEL=$kernel HALFSEG_REQUIRE_GPU=1 LIMIT=3600 \
      sim "$name" "$test" --test-threads 1 --nocapture convolution || status=1
    found=$(grep '^test result' "$out/$name.log" | cut -d';' -f1,2 | cut -d. -f2)
    note each "$kernel" "${found:-none ended}" "all pass" "$status"
  done
fi

if chosen cudnn; then
  test=$(test_of_convolutions)
  mkdir -p "$out/cudnn-library"
  cc -O2 -fPIC -shared -o "$out/cudnn-library/libcudnn.so.9" "$root/benches/gpu/cudnn-stand-in.c" || exit 1
  for library in found absent; do
    name=cudnn-$library status=0
    LD_LIBRARY_PATH=$([ $library = found ] && echo "$out/cudnn-library") HALFSEG_GPU_KERNEL=cudnn \
      HALFSEG_REQUIRE_GPU=1 LIMIT=3600 sim "$name" "$test" --test-threads 1 --nocapture convolution || status=1
    # Loading it to see whether it is there says so, too.
    said=$(grep -o 'cuDNN stand-in: .*\|cuDNN computes no convolution.*' "$out/$name.log" | tail -n 1)
    [ $library = absent ] && wanted='computes no' || wanted='[1-9][0-9]* convolutions and [1-9]'
    grep -q "$wanted" <<<"$said" || status=1
    found=$(grep '^test result' "$out/$name.log" | cut -d';' -f1,2 | cut -d. -f2)
    note cudnn "$library" "${found:-none ended}, $said" "all pass" "$status"
  done
fi

if chosen amp; then
  while read -r test; do
    name=amp-$(basename "${test%-*}") status=0
    HALFSEG_REQUIRE_GPU=1 sim "$name" "$test" --test-threads 1 --nocapture || status=$?
    found=$(grep '^test result' "$out/$name.log" | cut -d';' -f1,2 | cut -d. -f2)
    # What a disabled policy does is held on the CPU.
    [ "$status" != 2 ] || { found+=', none on a device' status=0; }
    note amp "$(basename "${test%-*}")" "${found:-it did not end}" "all pass" "$status"
  done <"$bin/amp-tests"
fi

if chosen own; then
  for precision in $precisions; do
    name=own-$precision status=0
    host "$name-host" "$bin/halfseg-own-network" "$precision" cpu 10 || status=1
    sim "$name" "$bin/halfseg-own-network" "$precision" gpu 10 || status=1
    found=$(paste <(grep -o 'loss .*' "$out/$name.log") <(grep -o 'loss .*' "$out/$name-host.log") |
      awk '{ d = ($2 - $4) / $4; d = d < 0 ? -d : d; if (d > most) most = d } END { printf "%.1e %d", most, NR }')
    [ "${found#* }" = 10 ] && at_most "${found% *}" 1e-2 || status=1
    note own "$precision" "losses within ${found% *}, $(tail -n 1 "$out/$name.log")" "losses within 1e-2" "$status"
  done
fi

# Numbers of the simulator's report: of a run with more passes less those of one with fewer, without those of CubeCL's probe of
# what a launch costs, which goes on for some time.
counts() {
  python3 - "$@" <<'PYTHON'
import json, sys
few, many, more = json.load(open(sys.argv[1])), json.load(open(sys.argv[2])), int(sys.argv[3])
per = lambda key: (key(many) - key(few)) / more
probes = lambda r: sum(k["launches"] for k in r["kernels"] if k["name"].startswith("launch_overhead"))
print(f'{per(lambda r: r["launches"] - probes(r)):.0f} launches, {per(lambda r: r["copies"]["count"]):.0f} copies a pass,'
      f' {few["modules"]} kernels, {many["memory"]["peak"] / 2**30:.2f} GiB given by the driver')
PYTHON
}
# The most that was in use, by what CubeCL wrote down at each allocation.
most_in_use() {
  awk '/^\[[A-Za-z]/ { device = /^\[Main GPU/; summary = 0 }
    /^## Summary/ { summary = 1 }
    device && summary && /Bytes in use:/ {
      factor = $5 == "GB" ? 1e9 : $5 == "MB" ? 1e6 : $5 == "KB" ? 1e3 : 1
      if ($4 * factor > most) most = $4 * factor
      summary = 0
    }
    END { printf "%.2f", most / 2 ^ 30 }' "$1"
}
# GiB that a step may have in use at most.
step_limit() { case $1 in fcn | pspnet) echo 4.0 ;; deeplabv3) echo 4.3 ;; deeplabv3plus) echo 4.5 ;; esac; }
if chosen memory; then
  for method in $methods; do
    for what in train inference recomputed; do
      flags=(--method "$method") name=memory-$method-$what status=0 limit=
      case $what in
        train) flags+=(--train --batch 2) limit=$(step_limit "$method") ;;
        recomputed)
          [ "$method" = fcn ] || continue
          flags+=(--train --batch 2 --gradient-checkpointing) limit=2.2
          ;;
      esac
      for passes in 1 5; do
        # Whole: tuning tries what it tries on a device.
        IN_USE=yes POISON=0 PERSISTENT=enabled CUDA_SIM_MODE=null sim "$name-$passes" "$bin/halfseg" bench "${flags[@]}" \
          --backbone resnet101 --size 512x1024 --precision f16 --device cuda --warmup 1 \
          --iterations "$passes" --json "$out/$name-$passes.json" || status=1
      done
      found=$(counts "$out/$name-1.report" "$out/$name-5.report" 4 2>&1 | tail -n 1)
      in_use=$(most_in_use "$out/cache-$name-5/memory.log")
      found+=", $in_use in use at most"
      wanted='it runs'
      if [ -n "$limit" ]; then
        predicted=$(python3 -c 'import json, sys
print("%.2f" % (json.load(open(sys.argv[1]))["predicted"]["peak"] / 2**30))' "$out/$name-5.json" 2>/dev/null)
        wanted="at most $limit in use, and within a tenth of the $predicted predicted"
        awk -v found="$in_use" -v limit="$limit" -v predicted="$predicted" 'BEGIN {
          exit !(found > 0 && found <= limit && found <= 1.1 * predicted && found >= predicted / 1.1) }' || status=1
      fi
      rm -f "$out/cache-$name"-*/memory.log
      note memory "$method, $what" "$found" "$wanted" "$status"
    done
  done
fi

if grep -q '\*\*no\*\*$' "$results"; then
  echo "checks failed: see $out/results.md" >&2
  exit 1
fi
