#!/usr/bin/env bash
# test.sh FOLDER: the C++ tests of FOLDER, then the Python tests. Runs both even if the first fails, so that one run shows all.
set -uo pipefail
cd "$(dirname "$0")/.."
folder=$1
status=0

ctest --test-dir "$folder" --output-on-failure --no-tests=error || status=1

# 5: no tests were collected, which is a failure here too.
export ZEROPAGE_COMMAND=$PWD/$folder/zeropage
.venv/bin/python -m pytest -q -m "not gpu" tests python || status=1

# What is for accelerators, on the simulated one (tests/simulated_device/README.md): in a process of its own, which torch takes to have one.
.venv/bin/python -m pytest -q -m "gpu and not cuda" tests || status=1

[ $status = 0 ] && echo "test: all passed" || echo "test: FAILED; the failing tests are named above" >&2
exit $status
