#!/usr/bin/env bash
# Builds on a machine with a GPU (gpu_build.sh) and runs the tests that need one, in parallel and each with a timeout if
# pytest has the plug-ins xdist and timeout. Results go to ${OUT:-runs/gpu}: tests.xml and tests.log. Arguments go to
# pytest.
set -uo pipefail
cd "$(dirname "$0")/.."
folder=build/gpu
out=${OUT:-runs/gpu}
tools/gpu_build.sh "$folder" || exit 1
python=$(command -v "${PYTHON:-python3}")
"$python" -c 'import pytest' 2>/dev/null || {
  echo "gpu-test: $python has no pytest; copy its wheels here (pip download pytest) and put them on PYTHONPATH" >&2
  exit 1
}
mkdir -p "$out"
options=()
"$python" -c 'import xdist' 2>/dev/null && options+=(-n "$(($(nproc) < 8 ? $(nproc) : 8))")
"$python" -c 'import pytest_timeout' 2>/dev/null && options+=(--timeout=120)
PYTHONPATH=$PWD/python ZEROPAGE_COMMAND=$PWD/$folder/zeropage timeout "${GPU_TEST_SECONDS:-420}" \
  "$python" -m pytest -q -m gpu tests -rfE --junitxml="$out/tests.xml" "${options[@]}" "$@" 2>&1 | tee "$out/tests.log"
status=${PIPESTATUS[0]}
[ "$status" != 124 ] || echo "gpu-test: ended after ${GPU_TEST_SECONDS:-420} s (GPU_TEST_SECONDS)" >&2
echo "gpu-test: $(tail -n 1 "$out/tests.log"); the whole output is in $out/tests.log"
exit "$status"
