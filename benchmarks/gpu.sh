#!/usr/bin/env bash
# Model, GRPO step and SFT step at 3B shapes on one device: correctness first, then speed, into one
# JSON file, in 9 minutes at most (a longer run is stopped; the file keeps what was measured).
#
#     bash benchmarks/gpu.sh OUT.json [--tiny]
#
# Needs `.[cuda]` on a machine with one NVIDIA GPU of 141 GB (H200); --tiny runs anywhere.
set -euo pipefail
cd "$(dirname "$0")/.."
out="${1:?usage: bash benchmarks/gpu.sh OUT.json [--tiny]}"
shift
mkdir -p "$(dirname "$out")"
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}"
exec timeout "${LIMIT_S:-540}" "${PYTHON:-python}" benchmarks/gpu.py "$out" "$@"
