#!/usr/bin/env bash
# setup.sh: prepares a fresh Debian or Ubuntu for building the project: packages, .venv, torch. It installs only what is
# missing, so a second run takes a fraction of a second. Each step prints one line; an error message says what to do.
# setup.sh tests: also installs what the tests and make lint need: GoogleTest, MPI, Slurm, Hugging Face's libraries,
# clang-tidy, ruff, mypy. setup.sh fuzz: installs only clang with libFuzzer, a download of about 100 MB, which only make
# fuzz needs.
set -euo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-python3}
tested_torch=torch==2.13.0
log=build/setup.log
mkdir -p build

fail() {
  echo "setup: $1" >&2
  exit 1
}

# run LINE COMMAND...: prints LINE, writes the command's output to the log, and shows its end if the command fails.
run() {
  local line=$1
  shift
  echo "setup: $line"
  "$@" >>"$log" 2>&1 || {
    tail -n 15 "$log" >&2
    return 1
  }
}

# missing_of_list: from standard input, lines of a header or program and the package that contains it.
missing_of_list() {
  local probe package
  while read -r probe package; do
    case $probe in
      *.h | *.hpp) [ -e "/usr/include/$probe" ] || [ -e "/usr/local/include/$probe" ] || echo "$package" ;;
      *) command -v "$probe" >/dev/null || echo "$package" ;;
    esac
  done
}

missing_packages() {
  missing_of_list <<'LIST'
g++ g++
cmake cmake
ninja ninja-build
ccache ccache
make make
git git
nlohmann/json.hpp nlohmann-json3-dev
CLI/CLI.hpp libcli11-dev
fmt/format.h libfmt-dev
spdlog/spdlog.h libspdlog-dev
xxhash.h libxxhash-dev
hwy/highway.h libhwy-dev
liburing.h liburing-dev
LIST
  command -v "$python" >/dev/null || { echo python3 python3-venv python3-dev; return; }
  [ -x .venv/bin/python ] || "$python" -c 'import ensurepip, venv' 2>/dev/null || echo python3-venv
  "$python" -c 'import os, sysconfig, sys; sys.exit(not os.path.exists(sysconfig.get_path("include") + "/Python.h"))' ||
    echo python3-dev
}

missing_test_packages() {
  missing_of_list <<'LIST'
gtest/gtest.h libgtest-dev
mpicc libopenmpi-dev
mpirun openmpi-bin
ssh openssh-client
/usr/sbin/sshd openssh-server
/usr/sbin/ip iproute2
/usr/sbin/slurmctld slurmctld
/usr/sbin/slurmd slurmd
srun slurm-client
/usr/sbin/munged munge
LIST
  # For the test that opens a report. Ubuntu's package only installs a snap, which does not work in containers.
  command -v chromium >/dev/null || command -v google-chrome >/dev/null || ! grep -q '^ID=debian' /etc/os-release || echo chromium
}

install_packages() { # PACKAGES: names, separated by blanks
  local packages=$1 sudo=
  [ -n "${packages// /}" ] || return 0
  command -v apt-get >/dev/null || fail "missing: $packages(Debian's names). Install them with this system's package manager and run this again."
  if [ "$(id -u)" != 0 ]; then
    command -v sudo >/dev/null || fail "missing: $packages. Become root and run: apt-get install $packages"
    sudo=sudo
  fi
  run "refreshing apt's lists" $sudo apt-get update -q || echo "setup: apt-get update failed; trying with the existing lists"
  # shellcheck disable=SC2086
  run "installing $packages" $sudo env DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends $packages ||
    fail "apt-get could not install: $packages. Its last lines are above; fix the cause and run this again."
}

# libFuzzer's library is a separate package, with clang's version in its name.
has_fuzzer() { echo 'extern "C" int LLVMFuzzerTestOneInput(const char*, unsigned long) { return 0; }' |
  clang++ -fsanitize=fuzzer,address -x c++ - -o /dev/null 2>/dev/null; }

install_clang() {
  command -v clang++ >/dev/null || install_packages clang
  has_fuzzer || install_packages "libclang-rt-$(clang++ -dumpversion | cut -d. -f1)-dev"
  has_fuzzer || fail "clang++ is installed but its libFuzzer is not, so make fuzz cannot run"
}

make_venv() {
  [ -x .venv/bin/python ] && return 0
  "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
    fail "Python 3.11 or newer is needed, $python is $("$python" -V 2>&1). Choose another: make PYTHON=python3.12 setup"
  run "making .venv with $("$python" -V 2>&1)" "$python" -m venv .venv || fail "could not make .venv; its last lines are above."
}

# in_venv MODULE: whether it is installed (looks at the folder, because importing torch would take seconds)
in_venv() { compgen -G ".venv/lib/python3*/site-packages/$1" >/dev/null; }

install_torch() {
  local want=${TORCH:-$tested_torch}
  in_venv torch/version.py && return 0
  run "installing $want (hundreds of MB; gigabytes if pip chooses a CUDA build)" .venv/bin/pip install -q "$want" ||
    fail "pip could not install $want. For another index set PIP_INDEX_URL; for another version: make TORCH='torch==2.12.0' setup"
}

# install_missing OPTION...: installs packages from standard input, as lines MODULE PACKAGE, except those whose module
# is installed.
install_missing() {
  local want=() module package
  while read -r module package; do
    in_venv "$module" || want+=("$package")
  done
  [ ${#want[@]} = 0 ] && return 0
  run "installing ${want[*]}" .venv/bin/pip install -q "$@" "${want[@]}" ||
    fail "pip could not install ${want[*]}. For another index set PIP_INDEX_URL and run this again."
}

install_python_packages() {
  install_missing <<'LIST'
numpy numpy
tqdm tqdm
safetensors safetensors
tensorboard tensorboard
LIST
}

install_test_packages() {
  install_missing <<'LIST'
pytest pytest
scikit_build_core scikit-build-core
transformers transformers
clang_format clang-format==14.0.6
clang_tidy clang-tidy==23.1.4
ruff ruff==0.17.6
mypy mypy==2.4.1
pytest_timeout.py pytest-timeout
LIST
  # Optimizers of other projects, for tests. Their dependencies would install another torch.
  install_missing --no-deps <<'LIST'
schedulefree schedulefree
pytorch_optimizer pytorch_optimizer
timm timm
torchao torchao
LIST
}

# The libraries of tests/hf, Ray (80 MB) for its example, and the small packages that these import. Without their other
# dependencies, so that torch is not replaced.
install_libraries() {
  local want=() module package
  while read -r module package; do
    in_venv "$module" || want+=("$package")
  done <<'LIST'
accelerate accelerate
psutil psutil
peft peft
trl trl
datasets datasets
pyarrow pyarrow
dill dill
pandas pandas
xxhash xxhash
multiprocess multiprocess
dateutil python-dateutil
six.py six
lightning lightning
torchmetrics torchmetrics
lightning_utilities lightning-utilities
ray ray
jsonschema jsonschema
jsonschema_specifications jsonschema-specifications
attrs attrs
referencing referencing
rpds rpds-py
msgpack msgpack
requests requests
urllib3 urllib3
certifi certifi
charset_normalizer charset-normalizer
tensorboardX tensorboardX
LIST
  [ ${#want[@]} = 0 ] && return 0
  run "installing ${want[*]}" .venv/bin/python -m pip install -q --no-deps "${want[@]}" ||
    fail "pip could not install ${want[*]}. For another index set PIP_INDEX_URL and run this again."
}

# The libraries of tests/architectures, in a folder that no other test imports from, because the libraries above behave
# differently if diffusers or torchvision is installed. Without dependencies; torchvision's operators, which are built
# for another torch, are not used.
install_architectures() {
  local folder=.venv/share/architectures
  local packages="torchvision==0.28.0 diffusers requests urllib3 certifi charset-normalizer"
  [ -d $folder/diffusers ] && [ -d $folder/torchvision ] && return 0
  # shellcheck disable=SC2086
  run "installing $packages for tests/architectures" .venv/bin/python -m pip install -q --no-deps --upgrade --target $folder $packages ||
    fail "pip could not install $packages. For another index set PIP_INDEX_URL and run this again."
}

# The package is used in place: the venv's import path gets the folder python/, and its bin/ the built command.
link_package() {
  local site
  for site in .venv/lib/python3*/site-packages; do
    [ "$(cat "$site/zeropage.pth" 2>/dev/null)" = "$PWD/python" ] || echo "$PWD/python" >"$site/zeropage.pth"
  done
  printf '#!/bin/sh\nexec "$(dirname "$0")/python" -m zeropage doctor "$@"\n' >.venv/bin/ds_report
  chmod +x .venv/bin/ds_report
  [ "$(readlink .venv/bin/zeropage)" = ../../build/dev/zeropage ] || ln -sf ../../build/dev/zeropage .venv/bin/zeropage
}

case ${1:-} in
  "") tests= ;;
  tests) tests=yes ;;
  fuzz)
    install_clang
    exit
    ;;
  *) fail "unknown argument: $1. Known arguments: tests, fuzz" ;;
esac
install_packages "$(missing_packages | tr '\n' ' ')${tests:+$(missing_test_packages | tr '\n' ' ')}"
make_venv
install_torch
install_python_packages
if [ "$tests" ]; then
  install_test_packages
  install_libraries
  install_architectures
fi
link_package
