#!/usr/bin/env bash
# fuzz.sh [SECONDS]: runs libFuzzer with sanitizers on every fuzz/*_fuzz.cc, all at once, for SECONDS, from the corpus
# in the repository; new inputs go to build/fuzz/. Fails, and keeps the input, when one crashes, hangs or uses more than
# 512 MiB. Needs clang.
set -euo pipefail
cd "$(dirname "$0")/.."
seconds=${1:-60}
clang=$(command -v clang++ || compgen -c clang++- | sort -V | tail -n 1) || true
[ -n "$clang" ] || { echo "fuzz: clang++ is missing. Debian, Ubuntu: tools/setup.sh fuzz" >&2; exit 1; }
folder=build/fuzz
mkdir -p "$folder"
sources=(zeropage/checkpoint/{host_values,manifest,shard_file,tensor_info,untrusted_json}.cc
  zeropage/base/{checked,digest,json_text,machine_json,read_file,suggest}.cc zeropage/planner/{files,model,model_config,safetensors}.cc
  zeropage/comm/world.cc zeropage/launch/{agent_messages,allocation,hostfile,wire}.cc)
common=(-std=c++20 -O1 -g -I. -DFMT_HEADER_ONLY '-DZEROPAGE_VERSION="fuzz"' -fsanitize=address,undefined -fno-sanitize-recover=undefined)
objects=()
for source in "${sources[@]}"; do
  objects+=("$folder/$(basename "$source" .cc).o")
  rm -f "${objects[-1]}" # so that linking fails if compiling fails
  "$clang" "${common[@]}" -fsanitize=fuzzer-no-link -c "$source" -o "${objects[-1]}" &
  [ $((${#objects[@]} % $(nproc))) != 0 ] || wait
done
wait

# Builds and runs one target.
fuzz() {
  local name=$1
  "$clang" "${common[@]}" -fsanitize=fuzzer "fuzz/${name}_fuzz.cc" "${objects[@]}" -o "$folder/$name" -pthread
  mkdir -p "$folder/corpus/$name"
  "$folder/$name" -max_total_time="$seconds" -timeout=5 -rss_limit_mb=512 -max_len=65536 -dict=fuzz/json.dict -print_final_stats=1 \
    -artifact_prefix="$folder/$name-" "$folder/corpus/$name" "fuzz/corpus/$name" >"$folder/$name.log" 2>&1 || {
    tail -n 40 "$folder/$name.log" >&2
    echo "fuzz: $name found a defect; its input is $folder/$name-*" >&2
    return 1
  }
  echo "fuzz: $name: $(sed -n 's/^stat::number_of_executed_units: *//p' "$folder/$name.log") inputs in $seconds s, none wrong"
}

running=()
for target in fuzz/*_fuzz.cc; do
  fuzz "$(basename "$target" _fuzz.cc)" &
  running+=($!)
done
status=0
for target in "${running[@]}"; do wait "$target" || status=1; done
exit $status
