# Everything runs in $(VENV), which make builds from pyproject.toml and constraints.txt.
PYTHON ?= python3
VENV ?= .venv
WORKERS ?= auto
BIN := $(VENV)/bin
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt

.PHONY: help install demo test soak mutants test-gpu check format bench bench-rivals bench-gpu bench-kernels bench-methods bench-loads bench-startup bench-serving bench-registered readme tune fidelity clean

help: ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 16

install: $(VENV)/.weft ## make .venv and install weft in it

demo: $(VENV)/.weft ## serve the embedded model with its adapters on http://127.0.0.1:8000
	@$(BIN)/weft demo

# One thread a worker: torch's threads on a shared core cost more than they give.
test: export OMP_NUM_THREADS ?= 1
test: $(VENV)/.weft-dev ## run the whole suite
	$(BIN)/pytest --numprocesses $(WORKERS)

soak: export OMP_NUM_THREADS ?= 1
soak: $(VENV)/.weft-dev ## run the tests that take minutes, one after another
	$(BIN)/pytest -m soak tests/soak

mutants: $(VENV)/.weft-dev ## change code that keeps tenants apart, one place at a time: do tests notice?
	$(BIN)/python benchmarks/mutation.py

test-gpu: $(VENV)/.weft-dev ## run the tests that need a CUDA device
	@$(BIN)/python -c 'import sys, torch; torch.cuda.is_available() or sys.exit("test-gpu: torch finds no CUDA device")'
	$(BIN)/pytest -m gpu

bench-gpu: test-gpu ## on a CUDA device: first that it is right, then kernels and the steps of an 8B model
	$(BIN)/python benchmarks/kernel_speed.py
	$(BIN)/python benchmarks/engine.py --models llama-8b --adapter-gib 44

check: $(VENV)/.weft-dev ## lint, check the format and the types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(VENV)/.weft-dev ## format the code and mend what ruff can mend
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(VENV)/.weft ## measure base, one adapter and 32 distinct ones, beside peft
	$(BIN)/python benchmarks/smoke.py

bench-loads: $(VENV)/.weft ## measure what loads cost those who are answered meanwhile
	$(BIN)/python benchmarks/loads.py

bench-serving: $(VENV)/.weft ## measure a server under S-LoRA's, Punica's and other workloads; URL=one that runs
	$(BIN)/python benchmarks/serving $(if $(URL),--url $(URL))

bench-registered: $(VENV)/.weft ## measure 64 adapters in use beside 10,000 that are registered
	$(BIN)/python benchmarks/registered.py

bench-startup: $(VENV)/.weft ## measure the start, beside importing and reading the weights
	$(BIN)/python benchmarks/startup.py

bench-rivals: $(VENV)/.weft ## measure weft beside other servers; VLLM=python of an environment with vLLM
	$(BIN)/python benchmarks/rivals.py $(if $(VLLM),--vllm $(VLLM))

readme: $(VENV)/.weft ## write the tables of README and docs/performance.md from the results files
	$(BIN)/python benchmarks/readme.py

bench-kernels: $(VENV)/.weft ## measure each kernel against the machine's limits, torch and peft's way
	$(BIN)/python benchmarks/kernel_speed.py

tune: $(VENV)/.weft ## find the kernels' block sizes for the GPU at hand and write its table
	@$(BIN)/python benchmarks/tune.py

bench-methods: $(VENV)/.weft ## measure what each adapter method costs a decode step
	$(BIN)/python benchmarks/methods.py

fidelity: $(VENV)/.weft-dev ## measure how far each method is from peft, and what an adapter takes
	PYTHONPATH=tests/support $(BIN)/python benchmarks/fidelity.py

clean: ## remove the environment, caches and build products
	rm -rf $(VENV) build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis

# A stamp is newer than what it was installed from, so an install happens only when those change.
$(VENV)/.weft: pyproject.toml constraints.txt | $(BIN)/python
	$(INSTALL) --editable .
	@touch $@

$(VENV)/.weft-dev: pyproject.toml constraints.txt | $(BIN)/python
	$(INSTALL) --editable '.[dev]'
	@touch $@ $(VENV)/.weft

$(BIN)/python:
	@command -v $(PYTHON) >/dev/null || { echo "make: no '$(PYTHON)' here; name a Python 3.11 or newer: make PYTHON=..." >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "make: $$($(PYTHON) --version) is too old, weft needs 3.11 or newer: make PYTHON=python3.11" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
