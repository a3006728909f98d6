#!/usr/bin/env bash
# Times halfseg against PyTorch and OpenVINO on this machine's CPU, in alternation.
#
#   benches/vs_peers.sh                                    everything (hours on two cores)
#   benches/vs_peers.sh --only inference --methods fcn --precisions f32,bf16,f16 --runs 2
#   benches/vs_peers.sh --only inference --backbone resnet18 --size 256x512 --iterations 20
#   benches/vs_peers.sh --only inference --threads 1,2     a table for each, and what the second thread gains
#   benches/vs_peers.sh --only training --peers pytorch,compile
#   benches/vs_peers.sh --help
#
# The peers (benches/peer) run in a virtual environment at $HALFSEG_PEER_VENV, made at the first run with
# what requirements.txt and requirements-openvino.txt there name. pip decides where torch comes from
# (PIP_INDEX_URL and the like); a build for CPUs alone is smaller and no faster. The peer `compile` needs a
# C++ compiler. ONEDNN_MAX_CPU_ISA limits the peers' instruction sets, HALFSEG_ISA ours. Results go to
# benches/results.
set -euo pipefail
cd "$(dirname "$0")/.."

for argument; do
  case $argument in
  -h | --help) exec "${PYTHON:-python3}" benches/peer/compare.py --help ;;
  esac
done

venv=${HALFSEG_PEER_VENV:-$HOME/.cache/halfseg/peer-venv}
python=$venv/bin/python
if ! "$python" -c 'import torch, cv2, numpy, PIL' 2>/dev/null; then
  echo "installing the peers into $venv" >&2
  "${PYTHON:-python3}" -m venv "$venv"
  "$python" -m pip install --quiet --requirement benches/peer/requirements.txt
  # Where there is no OpenVINO, the other peers do without it.
  "$python" -m pip install --quiet --requirement benches/peer/requirements-openvino.txt || true
fi
# What is wrong with the options or missing of a peer comes out before a long build.
"$python" benches/peer/compare.py --check "$@"

# The whole workspace, so that Burn is built once with one set of features.
cargo build --locked --release --workspace --bins >&2
export HALFSEG_BIN=${CARGO_TARGET_DIR:-target}/release
exec "$python" benches/peer/compare.py "$@"
