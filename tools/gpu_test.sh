#!/usr/bin/env bash
# Builds with the machine's own Python and torch and runs the tests that need a GPU. Installs nothing and asks no network:
# what the machine lacks comes from .gpu-bundle/ (make gpu-bundle, on a machine that has it).
set -euo pipefail
cd "$(dirname "$0")/.."
python=$(command -v "${PYTHON:-python3}") || { echo "gpu-test: there is no ${PYTHON:-python3}; say PYTHON=..." >&2; exit 1; }
folder=build/gpu
mkdir -p "$folder"

need() {
  echo "gpu-test: $1" >&2
  exit 1
}
for program in cmake ninja g++; do
  command -v "$program" >/dev/null || need "$program is missing on this machine; it must be there already"
done
"$python" -c 'import torch' 2>/dev/null || need "$python has no torch; say which Python has: make gpu-test PYTHON=/path/to/python3"
"$python" -c 'import pytest' 2>/dev/null || need "$python has no pytest; carry its wheels here (pip download pytest) and put them on PYTHONPATH"
"$python" -c 'import sys, torch; sys.exit(not torch.cuda.is_available())' || need "torch sees no GPU here (torch.cuda.is_available() is false)"

# The C++ tests are built too: they show that all of it compiles against this torch.
{ cmake -S . -B "$folder" -G Ninja -DPython_EXECUTABLE="$python" -DCMAKE_PREFIX_PATH="$PWD/.gpu-bundle" && cmake --build "$folder"; } >"$folder/build.log" 2>&1 || {
  grep -E -A12 'error|Error|FAILED' "$folder/build.log" | head -n 60 >&2
  need "the build failed; the first errors are above, all of it in $folder/build.log"
}
echo "gpu-test: built with $("$python" -c 'import torch; print("torch", torch.__version__, "on", torch.cuda.get_device_name())')"
PYTHONPATH=$PWD/python ZEROPAGE_COMMAND=$PWD/$folder/zeropage "$python" -m pytest -q -m gpu tests "$@"
