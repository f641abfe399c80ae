# A fresh clone needs two commands: `make setup`, `make test`. They need Rust, a C compiler, make and Python 3.10 or newer.
#
# Everything is compiled in one target directory: once in the dev profile (clippy, cargo test), once in the release profile, by the
# wheel; the tests of the C example and of the package build on what that left in target/release.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

PYTHON ?= python3
VENV ?= .venv
BIN := $(abspath $(VENV))/bin
export CARGO_TARGET_DIR ?= $(CURDIR)/target
# The raft crate generates its messages with protoc; setup installs one. One of your own in the environment wins.
export PROTOC ?= $(BIN)/protoc

TOOLS := $(VENV)/.tools
INSTALLED := $(VENV)/.installed
RELEASE_LIB := $(CARGO_TARGET_DIR)/release
SOURCES := $(shell find engine capi interop include raftify_ffi -type f \
	-not -name '*.pyc' -not -name '*.so' -not -name '_native.py' 2>/dev/null) \
	$(wildcard Cargo.toml Cargo.lock pyproject.toml setup.py MANIFEST.in)

.PHONY: help setup demo test bench bench-stress bench-scale bench-parts plots clean rust-fmt rust-lint rust-test sim known-bugs soak memcheck header wheel symbols py-lint py-types py-test

help: ## this list
	@grep -hE '^[a-z-]+:.*## ' Makefile | sed -E 's/^([a-z-]+):.*## /\1\t/' | expand -t 12

setup: $(INSTALLED) ## create .venv, build the package and install it with everything the tests use
	@echo "ready: make demo, make test, or . $(VENV)/bin/activate"

demo: $(INSTALLED) ## a cluster of three processes, shown live; Ctrl-C ends it
	@$(BIN)/python examples/python/demo.py

# The quick ones first.
test: rust-fmt py-lint wheel symbols py-types rust-lint rust-test sim known-bugs memcheck py-test ## everything CI runs
	@echo "make test: all passed"

bench: $(INSTALLED) ## proposals per second beside other libraries, which it builds, in windows that take turns
	@BENCH_PYTHON="$${BENCH_PYTHON:-$(BIN)/python}" $(BIN)/python benches/run.py $(BENCH)

bench-stress: $(INSTALLED) ## latency, failover, catching up, starting, idling under stress, beside their goals (BENCH="--full": the long forms)
	@PYTHONPATH=benches BENCH_PYTHON="$${BENCH_PYTHON:-$(BIN)/python}" $(BIN)/python -m stress $(BENCH)

bench-scale: $(INSTALLED) ## speed by nodes, by size of a command, by how many are in flight
	@BENCH_PYTHON="$${BENCH_PYTHON:-$(BIN)/python}" $(BIN)/python benches/scale.py $(BENCH)

bench-parts: $(INSTALLED) ## the core alone, without disk and network; the log engines alone; the bridge alone, in C and in Python
	@cargo build --quiet --release --locked --package raftify-engine --example bench_core --example bench_log
	@mkdir -p benches/out
	@$(RELEASE_LIB)/examples/bench_core | tee benches/out/core.jsonl
	@$(RELEASE_LIB)/examples/bench_log --dir benches/out $(BENCH)
	@BENCH_PYTHON="$${BENCH_PYTHON:-$(BIN)/python}" $(BIN)/python benches/bridge.py $(BENCH)

plots: $(TOOLS) ## curves of what bench-scale and bench-stress measured, in docs/plots
	@$(BIN)/pip install --quiet --disable-pip-version-check --requirement benches/requirements.txt
	@$(BIN)/python benches/plots.py $(BENCH)

clean: ## remove what the other commands made
	rm -rf $(VENV) target build dist benches/out *.egg-info .mypy_cache .ruff_cache .pytest_cache
	find raftify_ffi tests examples benches -name __pycache__ -type d -prune -exec rm -rf {} +

$(TOOLS): tests/requirements.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "Python 3.10 or newer is needed; name one: make setup PYTHON=python3.12")'
	@command -v cargo >/dev/null || { echo "Rust is needed: install it from https://rustup.rs"; exit 1; }
	@command -v cc >/dev/null || { echo "a C compiler is needed: apt-get install build-essential"; exit 1; }
	@echo "creating $(VENV)"
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/pip install --quiet --disable-pip-version-check --requirement tests/requirements.txt
	@touch $@

$(INSTALLED): $(TOOLS) $(SOURCES)
	@echo "building the library and the wheel (some minutes the first time)"
	@rm -rf dist
	@$(BIN)/pip wheel --quiet --disable-pip-version-check --no-deps --wheel-dir dist .
	@echo "installing dist/$$(cd dist && ls *.whl) in $(VENV)"
	@$(BIN)/pip install --quiet --disable-pip-version-check --force-reinstall --no-deps dist/raftify_ffi-*.whl
	@$(BIN)/pip install --quiet --disable-pip-version-check "$$(ls dist/raftify_ffi-*.whl)[cli,example,toml]"
	@touch $@

# ---- the parts of `make test`; each may be run alone

rust-fmt: $(TOOLS) ## formatting of the Rust code
	cargo fmt --all --check

rust-lint: $(TOOLS) ## clippy, warnings are errors
	cargo clippy --workspace --all-targets --locked -- -D warnings
	cargo clippy --package raftify-engine --all-targets --features known-bugs --locked -- -D warnings

rust-test: $(TOOLS) ## unit tests, simulation, the border's threads, C ABI, freshness of the header (dev profile)
	cargo test --workspace --locked --no-fail-fast --lib $(PLAIN)
	cargo test --workspace --locked --no-fail-fast --test '*'
	cargo test --workspace --locked --doc

# The engine's unit tests are quick, and take minutes to optimise; the simulator is not, and is worth it.
PLAIN := --config 'profile.dev.package.raftify-engine.opt-level=0'

# Always the whole workspace: with one package alone its dependencies have other features, and all is compiled again.
SIM := cargo test --workspace --locked --test sim -- seeds_keep_every_promise --nocapture

# Seeds that nobody ran before, for every commit, and the same ones whenever that commit is tested again.
SIM_BASE ?= $(shell printf %d 0x$$(git rev-parse HEAD 2>/dev/null | cut -c 1-7))
sim: $(TOOLS) ## the simulator, seeds by the commit (or SIM_BASE=time): 1,000 of a few seconds in any cluster, 600 of a minute in 3 to 5 nodes
	RAFTIFY_SIM_BASE=$(SIM_BASE) RAFTIFY_SIM_SEEDS=1000 $(SIM)
	RAFTIFY_SIM_BASE=$(SIM_BASE) RAFTIFY_SIM_SEEDS=600 RAFTIFY_SIM_SECONDS=60 $(SIM)

known-bugs: $(TOOLS) ## known bugs are put back, and the simulator finds each of them
	cargo test --workspace --locked --features raftify-engine/known-bugs --test known_bugs -- --nocapture

soak: $(TOOLS) ## the simulator, for HOURS (or 1) on all cores, or until a seed fails; leaves its shrunk script
	RAFTIFY_SIM_BASE=time RAFTIFY_SIM_HOURS=$(or $(HOURS),1) $(SIM)

# Cargo runs test programs by the runner that this variable of their platform names.
RUNNER = CARGO_TARGET_$(shell rustc -vV | sed -n 's/^host: //p' | tr 'a-z-' 'A-Z_')_RUNNER
MEMCHECK = valgrind --quiet --fair-sched=yes --show-leak-kinds=definite --error-exitcode=99 --leak-check=full --errors-for-leak-kinds=definite

memcheck: export RAFTIFY_TEST_TICK = 0.2
memcheck: $(TOOLS) ## the C ABI's tests under valgrind (left out where there is none)
	@if command -v valgrind >/dev/null; then \
		env $(RUNNER)="$(MEMCHECK)" cargo test --package raftify-capi --locked --lib --test arguments --test client --test node; \
		: 'a forked child leaks what it may not touch'; \
		env $(RUNNER)="$(MEMCHECK) --leak-check=no" cargo test --package raftify-capi --locked --test fork; \
	else echo "memcheck: left out, there is no valgrind here"; fi

header: $(TOOLS) ## write include/raftify.h anew after a change to the C ABI (rust-test fails while it is stale)
	RAFTIFY_WRITE_HEADER=1 cargo test --package raftify-capi --locked --test header

wheel: $(INSTALLED) ## build and install the wheel; import it from elsewhere than the source tree
	cd / && $(BIN)/python -c 'import raftify_ffi; print("wheel: imports", raftify_ffi.__file__)'
	$(BIN)/raftify_cli version

symbols: $(INSTALLED) ## nothing of the code in Cargo.lock that must not ship is in the library
	interop/check_symbols.sh "$$($(BIN)/python -I -c 'import raftify_ffi._library as it; print(it.library_path())')" \
		$(wildcard $(RELEASE_LIB)/libraftify_capi.so)

py-lint: $(TOOLS) ## ruff
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

py-types: $(INSTALLED) ## mypy --strict: the source, the wheel as a user sees it, the example and the benches against the wheel
	$(BIN)/mypy --strict
	cd $(VENV) && $(BIN)/mypy --strict -p raftify_ffi
	cd examples/python && $(BIN)/mypy --strict main.py demo.py
	cd benches && $(BIN)/mypy --strict --ignore-missing-imports *.py stress raftify_ffi_python/*.py
	cd benches && for node in peers/*/node.py; do $(BIN)/mypy --strict --ignore-missing-imports $$node || exit 1; done

py-test: $(INSTALLED) ## pytest against the installed wheel: nodes, processes, examples (C too), packaging
	RAFTIFY_TEST_PROFILE=release $(BIN)/pytest tests
