#!/usr/bin/env bash
# Runs every measurement in bench/ (each is a program whose first line describes it), one after the other, so that they
# do not disturb each other. Continues after a failure and reports it at the end.
set -uo pipefail
cd "$(dirname "$0")/.."
failed=
echo "bench: bench/optim_main.cc"
{ cmake --build build/dev --target bench_optim >build/dev/bench.log && build/dev/bench_optim; } || failed+=" bench/optim_main.cc"
cmake --build build/dev --target bench_nvme >build/dev/bench.log || failed+=" bench/nvme_main.cc"
for file in bench/*.py; do
  grep -q '__name__ == "__main__"' "$file" || continue
  echo "bench: $file"
  .venv/bin/python "$file" || failed+=" $file"
done
echo "bench: bench/step_time.py --hogs 2"
.venv/bin/python bench/step_time.py --hogs 2 || failed+=" bench/step_time.py --hogs 2"
[ -z "$failed" ] || { echo "bench: failed:$failed" >&2; exit 1; }
