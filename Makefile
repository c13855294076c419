# Everything here sets itself up from nothing but Python 3.11.
PYTHON ?= python3.11
VENV ?= .venv
# The tests use small arrays, and one process for each core.
export OMP_NUM_THREADS ?= 1
WORKERS ?= 2
# What joins other libraries, which an environment with one framework lacks.
INTEGRATIONS = emo_optax/integrations emo_torch/integrations
# What goes to the demo, for example: make demo ARGS="--optimizer emo_cats --learning-rate 3e-4"
ARGS ?=

.PHONY: help demo test build isolated parity lint bench clean

help:
	@echo "make demo   train on handwritten digits in Flax and in PyTorch, compare, draw"
	@echo "make test   all tests: style and types, each package alone, parity, examples"
	@echo "make build  compile the C of emo_torch in place, without an install"
	@echo "make lint   style and types only"
	@echo "make bench  what a step costs, as ratios to AdamW's; on an idle machine"
	@echo "make clean  remove what the others made"

$(VENV)/ready: pyproject.toml constraints.txt hatch_build.py
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[dev]"
	@touch $@

# The compiled code: built by the editable install, and again where its sources change. Without a C compiler
# everything goes on without it.
COMPILED = emo_torch/_fused/emo_kernels.json
$(COMPILED): $(VENV)/ready $(wildcard emo_torch/_fused/*.c emo_torch/_fused/*.h) emo_torch/build.py
	-$(VENV)/bin/python emo_torch/build.py

demo: $(VENV)/ready $(COMPILED)
	$(VENV)/bin/python -m examples.digits $(ARGS)

# Each package's own tests run where the other's framework is absent: once is enough. Types are checked by
# one core while the other installs.
test: $(VENV)/ready $(COMPILED)
	$(MAKE) --jobs=2 lint isolated
	$(MAKE) parity

# In place, for a checkout that is used through PYTHONPATH. Without a C compiler it says so.
build:
	-$(PYTHON) emo_torch/build.py

isolated: $(VENV)/ready
	$(VENV)/bin/python -m parity_tests.isolated

parity: $(VENV)/ready $(COMPILED)
	$(VENV)/bin/python -m pytest -n $(WORKERS) --dist loadgroup parity_tests examples benchmarks $(INTEGRATIONS)

# Timings: never beside tests, nor with their one thread.
bench: $(VENV)/ready $(COMPILED)
	$(VENV)/bin/python -m benchmarks.step_time $(ARGS)

lint: $(VENV)/ready
	$(VENV)/bin/python -m ruff check .
	$(VENV)/bin/python -m ruff format --check .
	$(VENV)/bin/python -m mypy

clean:
	rm -rf $(VENV) .venv-* emo_torch/_fused/emo_kernels.so emo_torch/_fused/emo_kernels.json build dist output .pytest_cache .mypy_cache .ruff_cache .hypothesis
