#!/usr/bin/env bash
# Times halfseg against PyTorch on this machine's CPU, in alternation, at two threads.
#
#   benches/vs_pytorch.sh                                  everything (hours on two cores)
#   benches/vs_pytorch.sh --only inference --methods fcn --precisions f32 --runs 2
#   benches/vs_pytorch.sh --help
#
# The peer (benches/peer) runs in a virtual environment at $HALFSEG_PEER_VENV, made at the first run.
# pip decides where torch comes from (PIP_INDEX_URL and the like); a build for CPUs alone is smaller
# and no faster. Results go to benches/results.
set -euo pipefail
cd "$(dirname "$0")/.."

venv=${HALFSEG_PEER_VENV:-$HOME/.cache/halfseg/peer-venv}
python=$venv/bin/python
if ! "$python" -c 'import torch, cv2, numpy, PIL' 2>/dev/null; then
  echo "installing the peer into $venv" >&2
  "${PYTHON:-python3}" -m venv "$venv"
  "$python" -m pip install --quiet --requirement benches/peer/requirements.txt
fi

# The whole workspace, so that Burn is built once with one set of features.
cargo build --locked --release --workspace --bins >&2
export HALFSEG_BIN=${CARGO_TARGET_DIR:-target}/release
exec "$python" benches/peer/compare.py "$@"
