# Everything here sets itself up from nothing but Python 3.11.
PYTHON ?= python3.11
VENV ?= .venv
# What the oldest and the newest versions of all dependencies run on.
PYTHON_OLDEST ?= python3.11
PYTHON_NEWEST ?= python3.13
# The tests use small arrays, and one process for each core.
export OMP_NUM_THREADS ?= 1
WORKERS ?= 2
PYTEST = -m pytest -n $(WORKERS) --dist loadgroup --durations=20
# What joins other libraries, which an environment with one framework lacks.
INTEGRATIONS = emo_optax/integrations emo_torch/integrations
RECORDINGS = parity_tests/recordings_test.py parity_tests/later_recordings_test.py
# What goes to the demo, for example: make demo ARGS="--optimizer emo_cats --learning-rate 3e-4"
ARGS ?=

# Programs that XLA has compiled are kept for the tests that come later, and by `make test` only for one run.
# Without a largest size: with one, JAX locks the folder and reads all names in it before it keeps a program,
# which took a third of the tests' time. Who reads what another process has half written gets a warning, which
# pyproject.toml ignores, and compiles. Benchmarks keep nothing.
CACHE = $(CURDIR)/build/jax-cache
TESTS = test check isolated smoke suites parity processors sanitized test-oldest test-newest test-trainers
$(TESTS): export JAX_COMPILATION_CACHE_DIR = $(CACHE)
$(TESTS): export JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS = 0
$(TESTS): export JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES = -1
# Python keeps the modules that it has compiled, also where the environment forbids it: the tests start hundreds of
# processes, and without kept modules each of them would compile PyTorch and JAX again.
unexport PYTHONDONTWRITEBYTECODE
# Threads of compiled code that wait for others sleep, and take no time from the tests of another process.
$(TESTS): export OMP_WAIT_POLICY ?= passive
# XLA of JAX 0.10.0 says of each kept program that this processor is not the one that it names; it is.
$(TESTS): export TF_CPP_MIN_LOG_LEVEL = 3

.PHONY: help demo build lint bench clean docs docs-check pictures notebooks $(TESTS)

help:
	@echo "make demo         train on handwritten digits in Flax and in PyTorch, compare, draw"
	@echo "make check        style, types and the fast tests, for every change"
	@echo "make test         all tests: style and types, each package alone, parity, examples"
	@echo "make build        compile the C of emo_torch in place, without an install"
	@echo "make lint         style and types only"
	@echo "make processors   both frameworks under several instruction sets"
	@echo "make sanitized    the compiled code of emo_torch under AddressSanitizer and UndefinedBehaviorSanitizer"
	@echo "make test-oldest  each package and parity on the oldest versions that are admitted"
	@echo "make test-newest  each package and parity on the newest versions"
	@echo "make test-trainers  optimizers and trainers of other packages (the extra trainers)"
	@echo "make bench        what a step costs, as ratios to AdamW's; on an idle machine"
	@echo "make docs         the documentation site, in build/site/html"
	@echo "make docs-check   the site's links, pictures and tables, in a headless Chromium where there is one"
	@echo "make pictures     draw the pictures of the site again"
	@echo "make notebooks    run the notebooks again"
	@echo "make clean        remove what the others made"

# Python compiles a module when it is first imported: nearly all modules of the dependencies never are.
$(VENV)/ready: pyproject.toml constraints.txt hatch_build.py hatch_metadata.py
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --quiet --no-compile --disable-pip-version-check \
		-c constraints.txt -e ".[dev]"
	@touch $@

# The compiled code needs Python and a C compiler only, so it is built beside the downloads; the editable install
# keeps a library that is up to date. Without a C compiler everything goes on without it.
COMPILED = emo_torch/_kernels/emo_kernels.json
$(COMPILED): $(wildcard emo_torch/_kernels/*.c emo_torch/_kernels/*.h) emo_torch/build.py
	-$(PYTHON) emo_torch/build.py

READY = $(VENV)/ready $(COMPILED)
.PHONY: set-up
set-up:
	@$(MAKE) --no-print-directory --jobs=2 $(READY)

# In place, for a checkout that is used through PYTHONPATH. Without a C compiler the command says so.
build:
	-$(PYTHON) emo_torch/build.py

demo: set-up
	$(VENV)/bin/python -m examples.digits $(ARGS)

# One core checks types while the other one installs the wheel.
test: set-up
	rm -rf $(CACHE)
	$(MAKE) --jobs=2 lint smoke
	$(MAKE) suites
	$(MAKE) parity

# For the inner loop; what has a process of its own or compiles much is left to `make test`.
check: set-up lint
	$(VENV)/bin/python $(PYTEST) -q --fast emo_shared emo_optax emo_torch parity_tests

isolated: smoke suites

smoke: $(VENV)/ready
	$(VENV)/bin/python -m parity_tests.isolated --only smoke

# XLA's older emitters compile the programs of the tests in half the CPU time; for emo_optax's own tests and `make check`,
# LLVM also leaves its optimizations out. XLA's defaults compile for a part of `make parity`, and for `make test-oldest` and
# `make test-newest`.
OLDER = --xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1
QUICK = $(OLDER) --xla_backend_optimization_level=0
check suites: export XLA_FLAGS ?= $(QUICK)

# Each package's own tests run without the other's framework: once is enough. `make parity` tests the compiled step,
# as XLA's defaults compile it for users.
suites: set-up
	$(VENV)/bin/python -m parity_tests.isolated --only suites --workers $(WORKERS) \
		--ignore emo_optax/_compiled_step_test.py

# XLA's defaults, which users have, compile what depends on them: the bounds of memory and time of a compiled step,
# and the lockstep in float32. `make test-oldest` and `make test-newest` compile the whole lockstep with them.
LOCKSTEP = parity_tests/lockstep_test.py
parity: set-up
	$(VENV)/bin/python $(PYTEST) -k "compiled_step or float32" emo_optax/_compiled_step_test.py $(LOCKSTEP)
	XLA_FLAGS="$${XLA_FLAGS-$(OLDER)}" $(VENV)/bin/python $(PYTEST) -k "not (lockstep_test and float32)" \
		emo_shared parity_tests examples benchmarks website $(INTEGRATIONS)

processors: set-up
	$(VENV)/bin/python -m parity_tests.processors $(ARGS)

sanitized: set-up
	$(VENV)/bin/python -m parity_tests.sanitized $(ARGS)

# What is downloaded is said before it is.
.venv-oldest/ready: pyproject.toml constraints-oldest.txt
	$(PYTHON_OLDEST) -m parity_tests.environment .venv-oldest constraints-oldest.txt
	@touch $@

.venv-trainers/ready: pyproject.toml constraints.txt
	$(PYTHON) -m parity_tests.environment .venv-trainers constraints.txt --extras dev,trainers
	@touch $@

.venv-newest/ready: pyproject.toml
	$(PYTHON_NEWEST) -m parity_tests.environment .venv-newest
	@touch $@

test-oldest test-newest: test-%: .venv-%/ready
	.venv-$*/bin/python -m parity_tests.versions
	.venv-$*/bin/python -m parity_tests.isolated --only suites --workers $(WORKERS)
	.venv-$*/bin/python $(PYTEST) $(RECORDINGS) $(LOCKSTEP)

test-trainers: .venv-trainers/ready
	.venv-trainers/bin/python -m parity_tests.versions
	.venv-trainers/bin/python $(PYTEST) $(INTEGRATIONS)

# Timings: never beside tests, nor with their one thread.
bench: set-up
	$(VENV)/bin/python -m benchmarks.step_time $(ARGS)

$(VENV)/docs-ready: $(VENV)/ready
	$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[docs]"
	@touch $@

docs: $(VENV)/docs-ready
	$(VENV)/bin/python -m website $(ARGS)

docs-check: docs
	$(VENV)/bin/python -m website.check

pictures: $(VENV)/ready
	$(VENV)/bin/python -m website.pictures $(ARGS)

notebooks: $(VENV)/docs-ready
	$(VENV)/bin/python -m website.notebooks $(ARGS)

lint: $(VENV)/ready
	$(VENV)/bin/python -m ruff check .
	$(VENV)/bin/python -m ruff format --check .
	$(VENV)/bin/python -m mypy

clean:
	rm -rf $(VENV) .venv-* emo_torch/_kernels/emo_kernels.* build dist output .pytest_cache .mypy_cache .ruff_cache .hypothesis
