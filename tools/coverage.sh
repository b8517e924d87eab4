#!/usr/bin/env bash
# coverage.sh: builds everything with counters in build/coverage, runs all tests, and prints how many lines of zeropage/
# ran. Exits with 1 when a test fails, or when fewer than 85 % of the lines ran.
set -uo pipefail
cd "$(dirname "$0")/.."
folder=build/coverage
tools/build.sh $folder || exit
.venv/bin/python tools/line_coverage.py --forget $folder || exit
status=0
tools/test.sh $folder || status=1
.venv/bin/python tools/line_coverage.py $folder --at-least 85 || status=1
# The Python modules lie in their packages whatever build made them. The next build must not take these for its own.
rm -f python/zeropage/_C.so tests/simulated_device/_device.so
[ ! -e build/dev/build.ninja ] || tools/build.sh build/dev zeropage_python || status=1
exit $status
