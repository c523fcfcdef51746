#!/usr/bin/env bash
# On a machine with a GPU (sm_80 or later), nvcc and a CUDA build of torch: builds everything, runs the tests of the CUDA kernels on the
# GPU, and measures. PYTHON names the interpreter that has this torch. It is meant to take less than ten minutes; it has not run yet.
set -euo pipefail
cd "$(dirname "$0")/../.."
PYTHON=${PYTHON:-python3}

LOLRT_CUDA=ON "$PYTHON" -m pip install --quiet --editable '.[test,bench]'
"$PYTHON" -c 'from lolrt.ops.device import usable; print(usable("cuda"))'
"$PYTHON" -m pytest -q tests/cuda -k gpu
"$PYTHON" -m bench.gpu -o out/gpu.json
