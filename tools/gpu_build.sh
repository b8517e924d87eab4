#!/usr/bin/env bash
# gpu_build.sh FOLDER: builds for this machine's GPU only, with the machine's Python and torch, without the C++ tests.
# Installs nothing and uses no network: missing libraries are taken from .gpu-bundle/ (made with make gpu-bundle on a
# machine that has them). Prints whether the CUDA kernels were built, and fails if there is an nvcc but they were not.
set -euo pipefail
cd "$(dirname "$0")/.."
folder=$1

fail() {
  echo "gpu-build: $1" >&2
  exit 1
}

python=$(command -v "${PYTHON:-python3}") || fail "there is no ${PYTHON:-python3}; set PYTHON=..."
for program in cmake ninja g++; do
  command -v "$program" >/dev/null || fail "$program is missing on this machine; it must be installed already"
done
"$python" -c 'import torch' 2>/dev/null || fail "$python has no torch; set the Python that has it: make gpu-test PYTHON=/path/to/python3"
capability=$("$python" -c '
import torch
print("".join(map(str, torch.cuda.get_device_capability())) if torch.cuda.is_available() else "")')
[ -n "$capability" ] || fail "the torch of $python finds no GPU (torch.cuda.is_available() is false); run this on a machine with a GPU, with a torch for CUDA (PYTHON=...)"

mkdir -p "$folder"
started=$SECONDS
{ CUDAARCHS=$capability cmake -S . -B "$folder" -G Ninja -DPython_EXECUTABLE="$python" -DCMAKE_PREFIX_PATH="$PWD/.gpu-bundle" -DZEROPAGE_TESTS=OFF &&
  cmake --build "$folder"; } >"$folder/build.log" 2>&1 || {
  grep -E -A12 'error|Error|FAILED' "$folder/build.log" | head -n 60 >&2
  fail "the build failed; the first errors are above, the whole output in $folder/build.log"
}
if [ -e "$folder/libzeropage_cuda.a" ]; then
  kernels="CUDA kernels for sm_$capability ($(sed -n 's/^ZEROPAGE_NVCC:.*=//p' "$folder/CMakeCache.txt"))"
else
  nvcc=$(command -v nvcc || compgen -G '/usr/local/cuda*/bin/nvcc' | head -n 1 || true)
  [ -z "$nvcc" ] || fail "there is a CUDA compiler, $nvcc, and the kernels were not built: see the lines with CUDA in $folder/build.log"
  kernels="no CUDA kernels: there is no nvcc on this machine, so updates use torch's operators"
fi
echo "gpu-build: $("$python" -c 'import torch; print("torch", torch.__version__, "on", torch.cuda.get_device_name())'), $kernels, $((SECONDS - started)) s"
