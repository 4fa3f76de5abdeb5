# Everything runs in .venv, which is built on first use; stamp files make later starts quick.
PYTHON ?= python3
ARGS ?=
WORKERS ?= 2
VENV := .venv
BIN := $(VENV)/bin
PYTEST := $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder --durations=10
TORCH_CPU := https://download.pytorch.org/whl/cpu

.PHONY: run test test-fast check format model clean
.DELETE_ON_ERROR:

# With ARGS, the app itself downloads the model they name: make run ARGS="--toy", make run ARGS="--model gpt2".
run: $(VENV)/runtime.stamp $(if $(ARGS),,model)
	$(BIN)/python app.py $(ARGS)

# In two processes, one test file at a time; WORKERS=0 uses a single process.
test: $(VENV)/dev.stamp model
	$(PYTEST) $(ARGS)

# About two minutes on two cores: no browser, no weights, and nothing that trains (tests/conftest.py).
test-fast: $(VENV)/dev.stamp
	$(PYTEST) -m "not browser and not real_model and not slow" $(ARGS)

# What continuous integration runs.
check: $(VENV)/dev.stamp
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(MAKE) test

format: $(VENV)/dev.stamp
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

# Quick if the model is already on this machine.
model: $(VENV)/runtime.stamp
	$(BIN)/python -m specstream models pull smollm2-135m

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo "Python 3.11 or newer is needed, but $(PYTHON) is older: choose another, as in make PYTHON=python3.12"; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' || { \
		echo "$(PYTHON) can't make virtual environments: install its venv package (Debian: apt install python3-venv)"; exit 1; }
	$(PYTHON) -m venv --upgrade-deps $(VENV)

# PyPI's torch for Linux includes several GB of CUDA. Without an NVIDIA GPU the CPU build is tried first; pip treats it
# as the same release, and falls back to PyPI's if PyTorch's own index can't be reached.
$(VENV)/runtime.stamp: requirements.txt | $(BIN)/python
	@if [ "$$(uname -s)" = Linux ] && ! command -v nvidia-smi >/dev/null; then \
		echo "Installing PyTorch for the CPU"; \
		$(BIN)/pip install --quiet --no-deps --retries 1 --timeout 15 --extra-index-url $(TORCH_CPU) \
			"$$(grep '^torch==' requirements.txt)"; fi
	@echo "Installing requirements.txt"
	@$(BIN)/pip install --quiet -r requirements.txt
	@touch $@

$(VENV)/dev.stamp: requirements-dev.txt requirements-extra.txt $(VENV)/runtime.stamp
	@echo "Installing requirements-dev.txt"
	@$(BIN)/pip install --quiet -r requirements-dev.txt
	@touch $@

clean:
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis
