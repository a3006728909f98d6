#!/usr/bin/env bash
# Packs all that a GPU machine without Rust needs to check and measure halfseg into one archive:
# the programs, recordings, the peer in PyTorch, optionally real images, and run.sh.
#
#   benches/gpu/bundle.sh halfseg-gpu.tar.xz
#   benches/gpu/bundle.sh --images ROOT --count 48 halfseg-gpu.tar.xz    with images of ROOT, a folder
#                                                   in the Cityscapes layout, to train on
#   benches/gpu/bundle.sh --recordings DIR ...      with recordings below DIR too. The committed ones
#                                                   have 2 to 16 channels; tensor cores want more
#   benches/gpu/bundle.sh --flex ...                without CUDA: for run.sh's self-check on the CPU
#
# Then, on the GPU machine (x86-64 Linux; a driver, CUDA 11 to 13 with NVRTC; Python for the tables,
# with PyTorch for the peer; no Rust):
#
#   tar -xf halfseg-gpu.tar.xz && halfseg-gpu/run.sh --out results
#
# The CUDA build takes about half an hour of one core. It compiles kernels through NVRTC on the GPU
# machine; where Burn's LLVM cannot be downloaded, offline-llvm.sh stands in for it. Building needs a C
# compiler and python3. Images keep their own licence: do not publish an archive of images that may not
# be passed on. The archive must not exceed 60 MB.
set -euo pipefail
root=$(cd "$(dirname "$0")/../.." && pwd)

images='' count=48 recordings=("$root/crates/segmentor/tests/recordings") features=cuda out=''
while [ $# -gt 0 ]; do
  case $1 in
    --images) images=$(cd "$2" && pwd); shift 2 ;;
    --count) count=$2; shift 2 ;;
    --recordings) recordings+=("$(cd "$2" && pwd)"); shift 2 ;;
    --flex) features=''; shift ;;
    -*) sed -n '2,/^set/p' "$0" | sed '$d; s/^# \{0,1\}//' >&2; exit 2 ;;
    *) out=$1; shift ;;
  esac
done
: "${out:?name the archive to write, such as halfseg-gpu.tar.xz}"
case $out in /*) ;; *) out=$PWD/$out ;; esac
cd "$root"

if [ -n "$features" ]; then
  cargo fetch -q --locked
  bash benches/gpu/offline-llvm.sh
  cargo build --locked --release -p halfseg-cli -p halfseg-benches --bins \
    --features halfseg-cli/cudnn,halfseg-benches/cuda
else
  # The whole workspace, so that Burn is built once with one set of features.
  cargo build --locked --release --workspace --bins
fi
built=${CARGO_TARGET_DIR:-$root/target}/release

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
bundle=$folder/halfseg-gpu
mkdir -p "$bundle"/{bin,peer}
for program in halfseg replay; do
  strip -o "$bundle/bin/$program" "$built/$program"
done
# Of each recording, what `replay` and the peer read.
python3 - "$bundle/recordings" "${recordings[@]}" <<'PYTHON'
import json, os, shutil, sys

def copy_tensors(source, target, wanted):
    """Copies some tensors of a safetensors file: a length, a JSON header, and the values."""
    with open(source, 'rb') as f:
        header = json.loads(f.read(int.from_bytes(f.read(8), 'little')))
        values = f.read()
    kept, parts, at = {}, [], 0
    for name, entry in header.items():
        if name != '__metadata__' and wanted(name):
            begin, end = entry['data_offsets']
            kept[name] = dict(entry, data_offsets=[at, at + end - begin])
            parts.append(values[begin:end])
            at += end - begin
    text = json.dumps(kept).encode()
    text += b' ' * (-len(text) % 8)
    with open(target, 'wb') as f:
        f.write(len(text).to_bytes(8, 'little') + text + b''.join(parts))

to, *roots = sys.argv[1:]
for root in roots:
    found = False
    for folder, _, files in os.walk(root):
        if 'reference.json' not in files:
            continue
        found = True
        target = os.path.join(to, os.path.relpath(folder, root))
        if os.path.exists(target):
            sys.exit(f'{folder}: there is a recording of this name already')
        os.makedirs(target)
        for name in ('reference.json', 'model.safetensors'):
            shutil.copy(os.path.join(folder, name), target)
        for name, wanted in (
                ('reference.safetensors', lambda name: name in ('image', 'decode_logits_full')),
                ('train.safetensors',
                 lambda name: name in ('image', 'label') or name.startswith('grad64.'))):
            if name in files:
                copy_tensors(os.path.join(folder, name), os.path.join(target, name), wanted)
    if not found:
        sys.exit(f'{root}: expected recordings (reference.json), found none')
PYTHON
cp benches/peer/{torch_peer,timing}.py "$bundle/peer/"
cp benches/gpu/run.sh benches/gpu/report.py "$bundle/"
git describe --always --dirty >"$bundle/version"
if [ -n "$images" ]; then
  # Every n-th training image.
  files=$(cd "$images/leftImg8bit" && find train -name '*_leftImg8bit.*' | sort)
  [ -n "$files" ] || {
    echo "$images: expected images in leftImg8bit/train, found none" >&2
    exit 1
  }
  awk -v every=$(($(wc -l <<<"$files") / count)) -v wanted="$count" \
    'NR % (every > 1 ? every : 1) == 0 && n++ < wanted' <<<"$files" |
    while read -r file; do
      mkdir -p "$bundle/images/leftImg8bit/${file%/*}" "$bundle/images/gtFine/${file%/*}"
      cp "$images/leftImg8bit/$file" "$bundle/images/leftImg8bit/$file"
      cp "$images/gtFine/${file%_leftImg8bit.*}"_gtFine_*.png "$bundle/images/gtFine/${file%/*}/"
    done
fi

tar -C "$folder" -c halfseg-gpu | xz -T0 -6 >"$out"
bytes=$(stat -c %s "$out")
printf '%s: %s bytes\n' "$out" "$bytes"
if [ "$bytes" -gt 60000000 ]; then
  echo "the archive is larger than 60 MB: take fewer images (--count)" >&2
  exit 1
fi
