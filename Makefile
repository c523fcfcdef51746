# Everything runs in a virtual environment of its own, .venv; `make` sets it up when it is needed.
PYTHON ?= python3
TORCH ?= torch==2.13.0
BIN := .venv/bin

.PHONY: demo test test-fast test-slow dev lint lint-python lint-types lint-imports lint-cxx lint-deploy hooks format sanitize aarch64 docs figures bench bench-quick clean

demo: .venv/installed
	$(BIN)/lolrt generate --model journey --script examples/journey.txt -o out/demo.mp4 --seconds 120

# Tests have three tiers: fast ones have no mark, the others are marked `whole` or `slow` (CONTRIBUTING.md). A file's tests stay in one
# process, and share what it builds. Slow tests run alone: a browser plays in real time.
IN_TWO_PROCESSES := -n 2 --dist loadfile

test: .venv/installed
	$(BIN)/pytest $(IN_TWO_PROCESSES) -m "not slow"

test-fast: .venv/installed
	$(BIN)/pytest $(IN_TWO_PROCESSES) -m "not whole and not slow"

test-slow: .venv/installed .venv/jax .venv/ray .venv/ggml
	$(BIN)/pytest -m slow

dev: .venv/installed .venv/linters

lint: .venv/installed lint-python lint-types lint-imports lint-cxx lint-deploy

lint-python: .venv/linters
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

lint-types: .venv/linters
	$(BIN)/mypy

lint-imports: .venv/linters
	$(BIN)/lint-imports --no-cache --no-logo

lint-cxx: .venv/linters
	$(BIN)/clang-format --dry-run --Werror $(CXX_FILES)

lint-deploy: .venv/linters
	$(BIN)/hadolint deploy/Dockerfile
	$(BIN)/kubernetes-validate --strict deploy/kubernetes/*.yaml

# `git commit` then runs what `make lint` runs, for the kinds of files that it changes.
hooks: .venv/linters
	$(BIN)/pre-commit install

format: .venv/linters
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .
	$(BIN)/clang-format -i $(CXX_FILES)

# The C++ tests under AddressSanitizer and UndefinedBehaviorSanitizer.
sanitize: .venv/installed
	$(BIN)/cmake -S . -B build/sanitize -G Ninja -DCMAKE_MAKE_PROGRAM=$(abspath $(BIN)/ninja) -DLOLRT_SANITIZE=ON -DLOLRT_TESTS=ON -DLOLRT_PYTHON=OFF -DLOLRT_CUDA=OFF
	$(BIN)/cmake --build build/sanitize
	cd build/sanitize && $(abspath $(BIN))/ctest --output-on-failure

# The library for 64-bit ARM, its C++ tests in an emulator, and the instructions of its inner loops (cmake/aarch64.cmake).
aarch64: .venv/installed
	$(BIN)/cmake -S . -B build/aarch64 -G Ninja -DCMAKE_MAKE_PROGRAM=$(abspath $(BIN)/ninja) -DCMAKE_TOOLCHAIN_FILE=cmake/aarch64.cmake -DLOLRT_TESTS=ON -DLOLRT_CUDA=OFF
	$(BIN)/cmake --build build/aarch64
	cd build/aarch64 && $(abspath $(BIN))/ctest --output-on-failure
	$(BIN)/pytest tests/test_codegen.py

# The manual, as a site in build/site; anything that it lacks is an error. The variable silences an advertisement.
docs: .venv/installed .venv/manual
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

# The pictures of the README, made anew.
figures: .venv/installed
	$(BIN)/python docs/figures.py

# Every op and model against its peers, minutes; the quick one takes less than one. `python -m bench.report` makes docs/benchmarks.md.
bench: .venv/installed .venv/benchmarks
	$(BIN)/python -m bench

bench-quick: .venv/installed .venv/benchmarks
	$(BIN)/python -m bench --quick

clean:
	rm -rf .venv build out lolrt/lib lolrt/include lolrt/_core*.so

CXX_FILES = $(shell git ls-files '*.c' '*.h' '*.hpp' '*.cpp' '*.cu' '*.cuh')
BUILD_FILES := pyproject.toml setup.py CMakeLists.txt $(shell find csrc cmake -type f)

# Of nvidia-cutlass tests read headers and layouts, 6 MB; what it depends on is ten times as large and not needed for that.
# torch comes first and by its exact version: the package itself asks for any recent one.
.venv/torch:
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check $(TORCH)
	touch $@

.venv/installed: .venv/torch $(BUILD_FILES)
	$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[test]'
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps nvidia-cutlass==4.2.0.0
	touch $@

.venv/benchmarks: .venv/installed
	$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[bench]'
	touch $@

# The handlers for JAX are built where it is: after it, and not in an isolated build.
.venv/jax: .venv/installed
	$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[jax]'
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	touch $@

# Not in an isolated build, which would lose the handlers for JAX.
.venv/ray: .venv/installed
	$(BIN)/pip install --quiet --disable-pip-version-check --no-build-isolation --editable '.[ray]'
	touch $@

# ggml's source, from a package that has it, for examples/embed_ggml.
.venv/ggml: .venv/torch
	$(BIN)/pip download --quiet --disable-pip-version-check --no-deps --no-binary :all: --dest .venv/ggml-source llama-cpp-python==0.3.36
	tar -xzf .venv/ggml-source/llama_cpp_python-0.3.36.tar.gz -C .venv/ggml-source
	touch $@

.venv/manual: .venv/linters
	$(BIN)/pip install --quiet --disable-pip-version-check --group docs
	touch $@

# Dependency groups need this pip.
.venv/linters: .venv/torch pyproject.toml
	$(BIN)/pip install --quiet --disable-pip-version-check 'pip>=25.1'
	$(BIN)/pip install --quiet --disable-pip-version-check --group dev
	touch $@
