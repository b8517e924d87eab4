#!/usr/bin/env bash
# build.sh FOLDER [TARGET...]: configures (once) and builds the targets, or everything, with .venv's torch. Tests and
# MPI are configured when everything is built: single targets need neither GoogleTest nor an MPI.
set -euo pipefail
cd "$(dirname "$0")/.."
folder=$1
targets=("${@:2}")
[ ${#targets[@]} -gt 0 ] || targets=(all)
mkdir -p "$folder"
# Two builds of one folder would overwrite each other's files.
exec 9>"$folder/.lock"
flock 9
configure() { # OPTION...
  echo "build: configuring $folder"
  local preset=dev
  [ "$folder" != build/coverage ] || preset=coverage
  cmake --preset $preset -B "$folder" "$@" >"$folder/configure.log" 2>&1 9>&- || {
    tail -n 20 "$folder/configure.log" >&2
    echo "build: cmake failed; its last lines are above, its whole output in $folder/configure.log" >&2
    exit 1
  }
}
if [ "${targets[0]}" = all ]; then
  # A folder that was configured by hand keeps its configuration.
  if [ ! -e "$folder/build.ninja" ] || [ -e "$folder/.without-tests" ]; then
    configure -DZEROPAGE_TESTS=ON -DZEROPAGE_WITH_MPI=AUTO
    rm -f "$folder/.without-tests"
  fi
elif [ ! -e "$folder/build.ninja" ]; then
  configure -DZEROPAGE_TESTS=OFF -DZEROPAGE_WITH_MPI=OFF
  touch "$folder/.without-tests"
fi
started=$SECONDS
cmake --build "$folder" --target "${targets[@]}" >"$folder/build.log" 2>&1 9>&- || {
  grep -E -A12 'error:|^FAILED' "$folder/build.log" | head -n 60 >&2
  echo "build: failed; the first errors are above, the whole output in $folder/build.log" >&2
  exit 1
}
if [ "${ZEROPAGE_WARNINGS:-}" = error ] && grep -E -A6 'warning:' "$folder/build.log" | head -n 60 >&2; then
  echo "build: warnings are errors here (ZEROPAGE_WARNINGS=error); the first are above, the whole output in $folder/build.log" >&2
  exit 1
fi
# Prints nothing for a build that had nothing to do.
[ $((SECONDS - started)) -lt 2 ] || echo "build: $folder is up to date ($((SECONDS - started)) s)"
