# Everything in one place: the environment, the pipeline, the checks. `make help` lists it.
PYTHON ?= python3
VENV := .venv
READY := $(VENV)/.ready

# The tools of the environment come first, for make and for the stages that DVC starts.
export PATH := $(CURDIR)/$(VENV)/bin:$(PATH)
export DVC_NO_ANALYTICS := 1

# make train EPOCHS=2 LATENT_DIM=8 BETA=4 …
FLAGS := EPOCHS BATCH_SIZE LATENT_DIM BETA LEARNING_RATE
SETTINGS = $(foreach flag,$(FLAGS),$(if $($(flag)),--$(shell echo $(flag) | tr A-Z a-z)=$($(flag))))

.PHONY: help setup repro train ui test lint format bench clean
.DEFAULT_GOAL := help

help:  ## List the targets
	@sed -n 's/^\([a-z-]*\):.*## /\1	/p' $(MAKEFILE_LIST) | expand -t 10

$(READY): pyproject.toml requirements.lock
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "error: $(PYTHON) is older than Python 3.11: say make PYTHON=<a newer one>" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV) || { echo "error: $(PYTHON) has no venv (Debian, Ubuntu: apt install python3-venv)" >&2; exit 1; }
	$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check -c requirements.lock -e '.[dev]'
	@touch $@

setup: $(READY)  ## Create .venv with the pinned dependencies (PYTHON=python3.12 chooses the interpreter)

repro: $(READY)  ## Run the pipeline: download, train, evaluate, render; only what changed
	@python -m vae.config
	dvc repro

train: $(READY)  ## Train once with other values, outside of DVC: EPOCHS= BATCH_SIZE= LATENT_DIM= BETA= LEARNING_RATE=
	python pipeline/train.py $(SETTINGS)

ui: $(READY)  ## Serve the MLflow UI on http://127.0.0.1:5000
	python -m vae.tracking

test: $(READY)  ## Run the test suite
	python -m pytest

lint: $(READY)  ## Check style and types
	ruff check .
	ruff format --check .
	mypy

format: $(READY)  ## Put the code in shape
	ruff check --fix .
	ruff format .

bench: $(READY)  ## Measure the training speed against the common recipe and the matrix products alone
	python benchmarks/speed.py

clean:  ## Delete the environment and what tools cache; data, models and runs stay
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache build src/*.egg-info
