#!/usr/bin/env bash
# Copies what a GPU machine without internet and apt lacks, the header-only libraries and the test framework, into
# .gpu-bundle/ (a few MB, ignored by git). Copy it to that machine with the checkout; make gpu-test uses it.
set -euo pipefail
cd "$(dirname "$0")/.."
bundle=.gpu-bundle

# where NAME: the folder on the compiler's path that contains NAME.
where() {
  local folder
  for folder in /usr/local/include /usr/include; do
    [ -e "$folder/$1" ] && { echo "$folder"; return; }
  done
  echo "gpu-bundle: there is no $1 in /usr/include; run make build first" >&2
  return 1
}

rm -rf "$bundle"
mkdir -p "$bundle/include" "$bundle/lib"
for name in nlohmann fmt spdlog CLI gtest hwy; do
  folder=$(where "$name")
  cp -rL "$folder/$name" "$bundle/include/"
done
for name in libgtest.a libgtest_main.a; do
  file=$("${CXX:-g++}" -print-file-name="$name")
  [ -e "$file" ] || { echo "gpu-bundle: there is no $name; run make build first" >&2; exit 1; }
  cp -L "$file" "$bundle/lib/"
done
echo "gpu-bundle: $(du -sh "$bundle" | cut -f1) in $bundle/; copy it with the checkout to the GPU machine and run make gpu-test there"
