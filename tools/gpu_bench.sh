#!/usr/bin/env bash
# Builds on a machine with a GPU (gpu_build.sh) and runs bench/gpu.py. Results go to ${OUT:-runs/gpu}: gpu.jsonl and
# gpu.txt.
# BUDGET_S: seconds for all rows together (240). Arguments go to bench/gpu.py.
set -euo pipefail
cd "$(dirname "$0")/.."
folder=build/gpu
out=${OUT:-runs/gpu}
tools/gpu_build.sh "$folder"
PYTHONPATH=$PWD/python "${PYTHON:-python3}" bench/gpu.py --budget_s "${BUDGET_S:-240}" --out "$out" "$@"
echo "gpu-bench: the lines above are in $out/gpu.jsonl, the table in $out/gpu.txt"
