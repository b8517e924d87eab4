#!/usr/bin/env bash
# sanitize.sh PRESET...: builds what each preset names (asan-ubsan and tsan: the rooms without torch; tsan-torch:
# paging, reduction and the engine), and runs the tests. Exits with 1 when a build or a test fails.
set -uo pipefail
cd "$(dirname "$0")/.."
status=0
for preset in "$@"; do
  folder=build/$preset
  mkdir -p "$folder"
  started=$SECONDS
  if ! { cmake --preset "$preset" && cmake --build --preset "$preset"; } >"$folder/build.log" 2>&1; then
    grep -E -A12 'error:|^FAILED|CMake Error' "$folder/build.log" | head -n 60 >&2
    echo "sanitize: $preset: the build failed; the first errors are above, all of it in $folder/build.log" >&2
    status=1
    continue
  fi
  built=$SECONDS
  # Twice as many tests as cores, because some of them wait most of the time.
  if ctest --preset "$preset" -j $((2 * $(nproc))) --no-tests=error >"$folder/test.log" 2>&1; then
    echo "sanitize: $preset: $(grep 'tests passed' "$folder/test.log") (build $((built - started)) s, tests $((SECONDS - built)) s)"
  else
    tail -n 80 "$folder/test.log" >&2
    echo "sanitize: $preset: tests failed; the last lines are above, all of it in $folder/test.log" >&2
    status=1
  fi
done
exit $status
