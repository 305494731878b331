# `make demo` and `make test` need only Python (3.11 or later) and make. Both set up a virtual environment in .venv
# on first use, say what they do, and run at once when nothing has changed.

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed
OUT    ?= benchmarks/results
# Processes that run the tests: one more than a small machine has processors, because tests wait half of their time.
JOBS   ?= 3
FUZZ_STAMP := $(VENV)/.fuzz-installed

# Every test with a guest starts a Python, and each would compile the package anew where no bytecode may be written.
export PYTHONDONTWRITEBYTECODE :=

# Optional rules. "A checkpoint on every path" (91x) holds for the public coroutines; private helpers may return early.
# 114 wants a list of every startable function, 128 does not see a task_status that is passed on.
ASYNC_OPTIONAL := ASYNC910,ASYNC911,ASYNC912,ASYNC913,ASYNC114,ASYNC128

# Tests stage what these warn of: scopes without checkpoints, nurseries that race with what they close, fakes whose
# methods wait for nothing, cancellations that are looked at.
ASYNC_STAGED := ASYNC100,ASYNC103,ASYNC105,ASYNC110,ASYNC111,ASYNC112,ASYNC120,ASYNC124,ASYNC126,ASYNC401

# The modules in which such rules can be broken: reading a module takes a second.
ASYNC_FILES = grep -rlwE --include='*.py' 'async|await|trio' $(1)

# What runs in about a minute on each further Python, and says most: every layer, and real guests on top.
FAST := tests/wire tests/console tests/guests/test_guests.py tests/relay/test_relay.py tests/test_garbage.py

.PHONY: help demo test machines machines-gate test-pythons package check async-rules async-rules-of-tests types model mutants fuzz-fixed fuzz soak hostile bench bridge pythons nightly clean

help:
	@echo "make demo    set up what is needed and run the example session"
	@echo "make test    set up what is needed and run the tests (ARGS=... goes to pytest, JOBS=0 for one process)"
	@echo "make test-pythons  the quick part of the tests on Python 3.12 and 3.13 (ARGS=... instead: what to run)"
	@echo "make machines  run the tests that start virtual machines (emulated; as root it gets QEMU and kernels)"
	@echo "make package build the wheel and the sdist twice, compare, install and use them, and check types against them"
	@echo "make check   lint, formatting, async rules and types"
	@echo "make model   check the wake protocol's model over all interleavings (spin; installed if missing and root)"
	@echo "make mutants put small faults into the package, one at a time, which the tests must find (ARGS=... names them)"
	@echo "make fuzz-fixed  fuzz everything that reads strangers' bytes, with the same inputs every time"
	@echo "make fuzz    explore further from these, a minute each (adds atheris to .venv)"
	@echo "make soak    commands of eight clients at once for a minute: nothing is left or cut off (ARGS=... seconds)"
	@echo "make hostile eight honest clients beside eight hostile ones for a minute: no honest one loses anything (ARGS=...)"
	@echo "make bench   measure against the alternatives; table, JSON and plots (ARGS=... names rows, OUT=... the folder)"
	@echo "make bridge  run trio's own tests, and CPython's, in guests, and compare what fails with the kept lists (ARGS=... goes to pytest)"
	@echo "make pythons run the tests on 3.14, 3.15 and 3.14t, as far as they can be had (ARGS=... names some; needs root)"
	@echo "make nightly two and a half hours of it; what takes longer is done in two or three nights"
	@echo "make clean   remove what the above have made"

$(STAMP): pyproject.toml
	@echo "==> Setting up $(VENV) (once, and again when pyproject.toml changes)"
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "trio_console needs Python 3.11 or later: make PYTHON=python3.11 ...")'
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	@touch $(STAMP)

demo: $(STAMP)
	@echo "==> Running examples/agent_session.py, in a child process, which isolates nothing"
	@$(BIN)/python examples/agent_session.py
	@echo "==> Running examples/embed_vmm.py"
	@$(BIN)/python examples/embed_vmm.py
	@echo "==> Running examples/supervised.py"
	@$(BIN)/python examples/supervised.py
	@if command -v bwrap >/dev/null; then echo "==> Running examples/bubblewrap.py"; $(BIN)/python examples/bubblewrap.py; \
	    else echo "==> examples/bubblewrap.py needs bubblewrap: apt-get install bubblewrap, and run it"; fi
	@if $(BIN)/trio-console vm doctor >/dev/null; then \
	    echo "==> Running examples/microvm.py, in a virtual machine (the first time it is made, which takes some seconds)"; \
	    $(BIN)/python examples/microvm.py; \
	    else echo "==> examples/microvm.py was not run, because there can be no virtual machine here yet:"; \
	    $(BIN)/trio-console vm doctor; echo "==> trio-console vm setup gets what is missing"; fi

test: $(STAMP)
	@echo "==> Running the tests"
	@$(BIN)/python -m pytest -n $(JOBS) --dist worksteal $(ARGS)

# What machines need, got once and not by each process of the tests at the same time.
SETUP = if [ "$$(id -u)" = 0 ]; then $(BIN)/trio-console vm setup; fi

# Two processes: a machine that is emulated needs a processor for itself, and each process starts its own.
machines: $(STAMP)
	@echo "==> Running the tests that start virtual machines"
	@$(SETUP)
	@$(BIN)/python -m pytest -n 2 --dist loadscope -m "machines and not nightly" tests/guests/machine tests/cli/test_vm.py \
	    tests/agentd tests/test_examples.py tests/test_readme.py $(ARGS)

# The part of them that is in the gate: without the makers' agents, which have to be fetched, and README's program.
machines-gate: $(STAMP)
	@echo "==> Running the tests of virtual machines"
	@$(SETUP)
	@$(BIN)/python -m pytest -n 2 --dist loadscope -m "machines and not nightly" tests/guests/machine tests/cli/test_vm.py \
	    tests/test_examples.py $(ARGS)

test-pythons:
	@JOBS=$(JOBS) tests/pythons/released 3.12 $(or $(ARGS),$(FAST))
	@JOBS=$(JOBS) tests/pythons/released 3.13 $(or $(ARGS),$(FAST))

package: $(STAMP)
	@echo "==> Packaging"
	@tests/packaging/check $(abspath $(BIN))/python

check: $(STAMP)
	@echo "==> Lint (ruff)"
	@$(BIN)/ruff check .
	@echo "==> Formatting (ruff)"
	@$(BIN)/ruff format --check .
	@$(MAKE) --no-print-directory --jobs 3 --output-sync=target async-rules async-rules-of-tests types

async-rules: $(STAMP)
	@echo "==> Async rules (flake8-async)"
	@$(call ASYNC_FILES,trio_console examples benchmarks) | xargs -n 20 $(BIN)/flake8-async --disable $(ASYNC_OPTIONAL)

async-rules-of-tests: $(STAMP)
	@echo "==> Async rules of the tests (flake8-async)"
	@$(call ASYNC_FILES,tests) | xargs -n 20 $(BIN)/flake8-async --disable $(ASYNC_OPTIONAL),$(ASYNC_STAGED)

types: $(STAMP)
	@echo "==> Types (mypy, strict)"
	@$(BIN)/mypy

model:
	@tests/model/check

mutants: $(STAMP)
	@echo "==> Mutants: each must be found"
	@$(BIN)/python -m tests.mutants $(ARGS)

$(FUZZ_STAMP): $(STAMP)
	@echo "==> Adding atheris (the fuzzer) to $(VENV)"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[fuzz]'
	@touch $@

fuzz-fixed: $(STAMP)
	@echo "==> Fuzzing with the same inputs as every time, two targets at a time"
	@PYTHON=$(BIN)/python tests/fuzz/run --fixed $(ARGS)

fuzz: $(FUZZ_STAMP)
	@echo "==> Fuzzing, two targets at a time"
	@PYTHON=$(BIN)/python tests/fuzz/run $(ARGS)

soak: $(STAMP)
	@$(BIN)/python -m tests.soak $(ARGS)

bridge: $(STAMP)
	@echo "==> Trio's own tests, in guests"
	@PYTHON=$(BIN)/python tests/bridge/run $(ARGS)

pythons: $(STAMP)
	@$(BIN)/python tests/pythons/run.py $(ARGS)

# Hostile clients beside honest ones; not part of `make test`, because of the minute.
hostile: $(STAMP)
	@$(BIN)/python -m tests.hostile $(ARGS)

# The number of this night, and by it one of some words: what is too much for one night is done in several.
NIGHT := $(shell echo $$(($$(date +%s) / 86400)))
tonight = $(word $(shell echo $$(($(NIGHT) % $(words $(1)) + 1))),$(1))

# What moves the bytes of guests for which a test does not say it. Two nights each, because some sweeps take two nights.
WORKERS = $(call tonight,tasks tasks threads threads)

nightly: $(FUZZ_STAMP)
	@echo "==> Cancelling whole sessions at every moment, and passing a million chunks"
	@$(BIN)/python -m pytest -m nightly -rP -o faulthandler_timeout=0 --workers=$(WORKERS)
	@echo "==> Guests whose bytes are all moved by $(WORKERS)"
	@$(BIN)/python -m pytest -n $(JOBS) --dist worksteal --workers=$(WORKERS) --task-order=$(NIGHT) tests/guests tests/session tests/relay tests/faults
	@echo "==> Models with inputs that have not been tried before"
	@HYPOTHESIS_PROFILE=explore $(BIN)/python -m pytest -n $(JOBS) --dist worksteal --task-order=$(NIGHT) tests/wire tests/console tests/session tests/relay tests/testing
	@echo "==> Virtual machines, and the makers' agents in them"
	@$(MAKE) machines
	@echo "==> Virtual machines beside busy processors"
	@$(BIN)/python -m tests.soak.machines
	@echo "==> Commands of eight clients at once"
	@$(BIN)/python -m tests.soak 60
	@echo "==> Hostile clients beside honest ones, for an hour"
	@$(BIN)/python -m tests.hostile 3600
	@echo "==> A thousand rounds of faults"
	@TRIO_CONSOLE_ROUNDS=1000 $(BIN)/python -m pytest tests/faults/test_rounds.py
	@echo "==> Trio's own tests, in guests"
	@PYTHON=$(BIN)/python tests/bridge/run
	@echo "==> Every second of the mutants"
	@$(BIN)/python -m tests.mutants --tonight
	@echo "==> Fuzzing, a minute each"
	@PYTHON=$(BIN)/python tests/fuzz/run --seconds 60
	@echo "==> All tests on another Python, or on the lowest versions of what they need"
	@tests/pythons/released $(call tonight,3.12 3.13 3.11-lowest)
	@echo "==> The tests on a newer Python"
	@$(BIN)/python tests/pythons/run.py $(call tonight,3.14 3.15 3.14t)

bench: $(STAMP)
	@command -v strace >/dev/null || { echo "==> Installing strace, which counts system calls"; \
	    apt-get update -qq && apt-get install -y -qq strace >/dev/null; }
	@$(BIN)/python -m benchmarks --out $(OUT) $(ARGS)

clean:
	rm -rf $(VENV) $(VENV)-* build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
