#!/usr/bin/env bash
# test.sh FOLDER [fast]: the C++ tests of FOLDER, then the Python tests. Runs all even if the first fail, so that one
# run shows all failures. fast: C++ tests without torch, and in parallel the Python tests that find most in little time.
set -uo pipefail
cd "$(dirname "$0")/.."
folder=$1
status=0
export ZEROPAGE_COMMAND=$PWD/$folder/zeropage PATH=$PWD/$folder:$PATH

if [ "${2:-}" = fast ]; then
  ctest --test-dir "$folder" -L torch-free --output-on-failure --no-tests=error >"$folder/test-fast.log" 2>&1 &
  quick=(built_for data_types errors lifetime monitor optimizers options p_grad plan python_api stage_equality wrap)
  .venv/bin/python -m pytest -q -m "not gpu and not slow" $(printf "tests/test_%s.py " "${quick[@]}") || status=1
  wait $! || status=1
  tail -n 25 "$folder/test-fast.log"
  [ $status = 0 ] && echo "test-fast: all passed" || echo "test-fast: FAILED" >&2
  exit $status
fi

ctest --test-dir "$folder" -j "$(nproc)" --progress --output-on-failure --no-tests=error || status=1
cpp=$SECONDS

# Tests for accelerators run on the simulated one (tests/simulated_device/README.md), in a separate process, because
# torch there reports an accelerator. They run parallel to the others, which wait for processes half of the time.
simulated=$folder/test-simulated.log
.venv/bin/python -m pytest -q -m "gpu and not cuda" tests >"$simulated" 2>&1 &
# 5: no tests were collected, which is a failure here too.
.venv/bin/python -m pytest -q -m "not gpu" tests python || status=1
wait $! || status=1
echo "test: on the simulated device:"
cat "$simulated"
echo "test: C++ tests took $cpp s, Python tests $((SECONDS - cpp)) s"

[ $status = 0 ] && echo "test: all passed" || echo "test: FAILED; the failing tests are named above" >&2
exit $status
