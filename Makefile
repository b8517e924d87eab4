# Every target does the set-up it needs; when that is done already it costs a fraction of a second.
#   PYTHON=python3.12   which Python the virtual environment is made from (3.11 or newer)
#   TORCH='torch==2.12.0'   another torch than the tested one; an installed torch is never replaced
PYTHON ?= python3
TORCH ?=
#   TORCH_VERSIONS=2.11.0   what check-torch compiles against
TORCH_VERSIONS ?= 2.11.0 2.14.1
#   SAMPLE=20   how many files of them; without it all
SAMPLE ?=
#   COVERAGE=1   test counts the lines that run
COVERAGE ?=
BUILD := build/dev
BIN := .venv/bin
export PATH := $(CURDIR)/$(BIN):$(PATH)

.PHONY: setup venv venv-tests build install-alias demo demo-cpp demo-infinity test test-fast check-torch mutants sanitize sanitize-torch bench fuzz lint tidy format stubs wheel gpu-bundle gpu-test gpu-bench clean

setup: venv ## everything a newcomer needs: packages, .venv with torch, the package and the commands
	@tools/build.sh $(BUILD) zeropage_python zeropage_cli

build: venv-tests ## all that can be built: the above, the C++ library, its example, the tests
	@tools/build.sh $(BUILD)

venv:
	@PYTHON="$(PYTHON)" TORCH="$(TORCH)" tools/setup.sh

venv-tests:
	@PYTHON="$(PYTHON)" TORCH="$(TORCH)" tools/setup.sh tests

install-alias: setup ## programs that import deepspeed get zeropage (python -m zeropage alias remove ends that)
	@$(BIN)/python -m zeropage alias install

demo: setup ## trains a small language model on two ranks, stages 0 to 3
	@$(BIN)/python examples/demo.py

demo-infinity: setup ## trains a model whose state is ten times the memory that the process may use
	@$(BIN)/python examples/demo_infinity.py

demo-cpp: build ## the same in C++, at stage 2: examples/cpp
	@$(BIN)/zeropage --num_gpus=2 $(BUILD)/examples/cpp/train_gpt --config examples/ds_config.json --steps 30

test: lint ## what CI runs; COVERAGE=1: in a build of its own, which counts how many lines of zeropage/ run
	@$(if $(COVERAGE),tools/coverage.sh,tools/build.sh $(BUILD) && tools/test.sh $(BUILD))

test-fast: build ## a minute and a half: C++ tests without torch, and the Python tests that find most
	@tools/test.sh $(BUILD) fast

check-torch: venv-tests ## compiles the torch-facing files against the oldest and the newest supported torch (wheels of 530 MB, once)
	@$(BIN)/python tools/check_torch.py $(if $(SAMPLE),--sample $(SAMPLE)) $(TORCH_VERSIONS)

mutants: venv-tests ## engines with one wait for the device removed: the tests must find each; half an hour (WORDS=... chooses)
	@$(BIN)/python tests/simulated_device/mutants.py $(WORDS)

bench: setup ## the measurements, one line of JSON each
	@tools/bench.sh

sanitize: venv-tests ## the C++ tests without torch under AddressSanitizer, UndefinedBehaviorSanitizer and ThreadSanitizer
	@tools/sanitize.sh asan-ubsan tsan

sanitize-torch: venv-tests ## the C++ tests of paging, reduction and the engine under ThreadSanitizer
	@tools/sanitize.sh tsan-torch

fuzz: ## libFuzzer on what reads untrusted files, for a minute; needs clang (tools/setup.sh fuzz)
	@tools/fuzz.sh

lint: venv-tests ## layers, format, lengths of files, what tests catch, and what ruff and mypy find in Python files, clang-tidy in changed C++ files
	@$(BIN)/python tools/check_layers.py
	@$(BIN)/python tools/check_names.py
	@$(BIN)/python tools/check_tests.py
	@$(BIN)/python tools/check_style.py $(BIN)/clang-format --width
	@$(BIN)/ruff check --quiet && $(BIN)/ruff format --check --quiet && echo "ruff: no findings"
	@$(BIN)/mypy
	@$(BIN)/python tools/tidy.py --seconds 90

tidy: venv-tests ## clang-tidy on all C++ files, an hour on two cores
	@$(BIN)/python tools/tidy.py --all

stubs: build ## python/zeropage/_C.pyi, the signatures of the C++ module, from what is built
	@$(BIN)/stubgen -q -m zeropage._C -o python && $(BIN)/ruff format --quiet python/zeropage/_C.pyi

format: venv-tests ## rewrites all files in the project's format
	@$(BIN)/ruff check --quiet --fix && $(BIN)/ruff format --quiet
	@$(BIN)/python tools/check_style.py $(BIN)/clang-format --fix

wheel: venv-tests ## dist/zeropage-*.whl: the package, the commands and the C++ library, for the torch of .venv
	@$(BIN)/python -m pip wheel -q --no-build-isolation --no-deps --wheel-dir dist . && ls dist/*.whl

gpu-bundle: venv-tests ## what a GPU machine without internet lacks, into .gpu-bundle/
	@tools/gpu_bundle.sh

gpu-test: ## on a machine with a GPU: uses its own $(PYTHON) and torch, installs nothing
	@PYTHON="$(PYTHON)" tools/gpu_test.sh

gpu-bench: ## on a machine with a GPU: step times and memory, compared with plain PyTorch, FSDP2 and DeepSpeed, within BUDGET_S
	@PYTHON="$(PYTHON)" tools/gpu_bench.sh

clean: ## what the build made; .venv stays
	@rm -rf build dist python/zeropage/_C.so && echo "clean: removed build/, dist/ and python/zeropage/_C.so"
