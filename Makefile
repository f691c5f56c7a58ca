# Everything in one place: the environment, the pipeline, the checks. `make help` lists it.
PYTHON ?= python3
VENV := .venv
READY := $(VENV)/.ready

# The tools of the environment come first, for make and for the stages that DVC starts.
export PATH := $(CURDIR)/$(VENV)/bin:$(PATH)
export DVC_NO_ANALYTICS := 1

# make train EPOCHS=2 LATENT_DIM=8 BETA=4 …; make search TRIALS=60 WORKERS=4 …
# Only variables on make's command line become flags, not those of the environment; the shell sees them quoted.
unexport TORCH PEERS BASE URL ENDPOINT FROM EPOCHS BATCH_SIZE LATENT_DIM BETA LEARNING_RATE TRIALS WORKERS FINALISTS RECIPES QUICK MODEL LABEL FORCE PORT IMAGES FIT CHAINS TEMPERATURES
given = $(if $(filter command,$(origin $(1))),$(value $(1)))
quoted = '$(subst ','\'',$(1))'
flag = $(if $(call given,$(2)),--$(1)=$(call quoted,$(call given,$(2))))
switch = $(if $(filter-out 0,$(call given,$(2))),--$(1))
TRAIN_FLAGS = $(call flag,epochs,EPOCHS) $(call flag,batch_size,BATCH_SIZE) $(call flag,latent_dim,LATENT_DIM) \
	$(call flag,beta,BETA) $(call flag,learning_rate,LEARNING_RATE) $(call flag,nproc,NPROC)
PUBLISHED_FLAGS = $(foreach recipe,$(call given,RECIPES),$(call quoted,$(recipe))) $(call flag,epochs,EPOCHS)
AIS_FLAGS = $(call flag,images,IMAGES) $(call flag,chains,CHAINS) $(call flag,temperatures,TEMPERATURES)
SEARCH_FLAGS = $(call flag,n_trials,TRIALS) $(call flag,epochs,EPOCHS) $(call flag,workers,WORKERS) $(call flag,finalists,FINALISTS)
# Without the CUDA libraries. pip takes 2.14.1+cpu from there, which is a later version than PyPI's 2.14.1.
TORCH_INDEX = $(if $(filter cpu,$(call given,TORCH)),--extra-index-url https://download.pytorch.org/whl/cpu)

# The variables that each target takes. Others on the command line are refused, or a mistyped one would start everything.
names_setup := TORCH
names_bench := PEERS
names_train := EPOCHS BATCH_SIZE LATENT_DIM BETA LEARNING_RATE NPROC
names_search := TRIALS EPOCHS WORKERS FINALISTS
names_adopt := FROM
names_examples := QUICK
names_published := RECIPES EPOCHS
names_ais := IMAGES CHAINS TEMPERATURES
names_ui := MLFLOW_PORT
names_promote := FORCE
names_remote := URL ENDPOINT
names_report := BASE
names_why := MODEL
names_restore := MODEL
names_serve := MODEL PORT
names_score := IMAGES MODEL LABEL FIT
names := $(foreach goal,$(MAKECMDGOALS),$(names_$(goal))) PYTHON
unknown := $(filter-out $(names),$(foreach name,$(.VARIABLES),$(if $(filter command,$(origin $(name))),$(name))))
$(if $(unknown),$(error $(strip make $(MAKECMDGOALS)) has no $(unknown:%=%=): there are $(names:%=%=)))

.PHONY: help setup repro explore compare train search adopt dashboard examples theory ui sync register promote rollback why restore serve score remote stack report test test-slow torture lint audit format bench scaling ais anomalies published speedrun processes trials load clean
.DEFAULT_GOAL := help

help:  ## List the targets
	@sed -n 's/^\([a-z-]*\):.*## /\1	/p' $(MAKEFILE_LIST) | expand -t 11

$(READY): pyproject.toml requirements.lock
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "error: $(PYTHON) is older than Python 3.11: say make PYTHON=<a newer one>" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV) || { echo "error: $(PYTHON) has no venv (Debian, Ubuntu: apt install python3-venv)" >&2; exit 1; }
	$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check $(TORCH_INDEX) -c requirements.lock -e '.[dev]'
	@touch $@

setup: $(READY)  ## Create .venv with the pinned dependencies: PYTHON=python3.12 chooses the interpreter, TORCH=cpu a torch without CUDA

repro: $(READY)  ## Run the pipeline: download, train, evaluate, render, explorer; only what changed
	@python -m vae.config
	python -m dvc repro

explore: $(READY)  ## Open the latent explorer of the model in a browser, made first if need be
	@python -m dvc repro explorer
	@python -c 'import pathlib, webbrowser; page = pathlib.Path("explorer/index.html").resolve(); print(page); webbrowser.open(page.as_uri())'

compare: $(READY)  ## Show the commit and its DVC experiments in one table
	@python -m vae.workflow.compare

train: $(READY)  ## Train once with other values, outside of DVC: EPOCHS= BATCH_SIZE= LATENT_DIM= BETA= LEARNING_RATE= NPROC=
	python pipeline/train.py $(TRAIN_FLAGS)

search: $(READY)  ## Search hyperparameters; once with other values, outside of DVC: TRIALS= EPOCHS= WORKERS= FINALISTS=
	@python -m vae.config
ifeq ($(strip $(SEARCH_FLAGS)),)
	python -m dvc repro pipeline/search/dvc.yaml
else
	python -m dvc repro --quiet download
	python pipeline/search/search.py $(SEARCH_FLAGS) $(if $(call given,FINALISTS),,--finalists=0)
endif

adopt: $(READY)  ## Write the search's best values into params.yaml; those of another search: FROM=results/search/…
	@python -m vae.search.adopt $(if $(call given,FROM),$(call quoted,$(call given,FROM)))

dashboard: $(READY)  ## Serve optuna-dashboard of the search on http://127.0.0.1:8080
	@python -m vae.search.dashboard

examples: $(READY)  ## Run the five examples of the library: results/examples/ (QUICK=1 for a look)
	python -m vae.examples $(call switch,quick,QUICK)

ui: $(READY)  ## Serve the MLflow UI on http://127.0.0.1:5000
	python -m vae.tracking ui

sync: $(READY)  ## Log to MLflow what it could not take before
	@python -m vae.tracking sync

register: $(READY)  ## Register the model in MLflow with its metrics, as challenger; the first one is champion
	@python -m vae.workflow.registry register

promote: $(READY)  ## Make the challenger champion if it is better on the same test images; FORCE="reason" in any case
	@python -m vae.workflow.registry promote $(call flag,force,FORCE)

rollback: $(READY)  ## Make the champion before the present one champion again
	@python -m vae.workflow.registry rollback

why: $(READY)  ## Show where a registered model comes from: MODEL=vae-mnist@champion, MODEL=vae-mnist/3
	@python -m vae.workflow.registry why $(call flag,model,MODEL)

restore: $(READY)  ## Bring a registered model's weights, params.yaml, dvc.lock and metrics back: MODEL=
	@python -m vae.workflow.registry restore $(call flag,model,MODEL)

serve: $(READY)  ## Serve a model on http://127.0.0.1:5001: PORT= MODEL= (the champion), see docs/serving.md
	@python -m vae.workflow.serve $(call flag,model,MODEL) $(call flag,port,PORT)

score: $(READY)  ## Score images, by file: IMAGES=folder, or a picture, IDX, .npy, .npz; MODEL=, LABEL=, FIT=1 for any size
	@python -m vae.workflow.score $(call flag,model,MODEL) $(call flag,label,LABEL) $(call switch,fit,FIT) $(if $(call given,IMAGES),-- $(call quoted,$(call given,IMAGES)))

remote: $(READY)  ## Set where `dvc push` stores: URL=/folder, ssh://…, s3://… (ENDPOINT=http://…)
	@python -m vae.workflow.remote $(call flag,url,URL) $(call flag,endpoint,ENDPOINT)

report: $(READY)  ## Compare params, metrics and model with those of a commit: BASE=main, to results/report/
	@python -m vae.workflow.report $(call flag,base,BASE)

stack:  ## Start a team's PostgreSQL, S3 store and MLflow server with Docker, see docs/team.md
	@test -f stack/.env || { echo "error: stack/.env is missing: cp stack/.env.example stack/.env, and fill it in" >&2; exit 1; }
	docker compose --project-name vae --file stack/compose.yaml up --detach --wait

theory: $(READY)  ## Check the statements of docs/theory.md and plot its figures again
	python -m vae.theory

ais: $(READY)  ## Check the test NLL by annealed importance sampling (20 minutes): IMAGES= CHAINS= TEMPERATURES=
	python -m vae.workflow.ais $(AIS_FLAGS)

anomalies: $(READY)  ## Measure how well likelihoods tell other images from test images
	python -m vae.workflow.anomalies

test: $(READY)  ## Run the fast tests, on two cores
	python -m pytest -m "not slow" --numprocesses 2 --dist worksteal

test-slow: $(READY)  ## Run the tests that take more than ten seconds each
	python -m pytest -m slow --numprocesses 2 --dist worksteal

torture: $(READY)  ## Kill a training 200 times at random moments, and compare with one that was left alone
	KILLS=200 python -m pytest -s tests/pipeline/test_resume.py -k killed_at_any_moment

audit: $(READY)  ## Look the pinned dependencies up in the database of known vulnerabilities (needs the internet)
	python -m pip install --quiet --disable-pip-version-check -c requirements.lock -e '.[audit]'
	pip-audit --strict --requirement requirements.lock --no-deps --disable-pip

lint: $(READY)  ## Check style, types and which module imports which
	ruff check .
	ruff format --check .
	mypy
	lint-imports

format: $(READY)  ## Put the code in shape
	ruff check --fix .
	ruff format .

bench: $(READY)  ## Measure training, NLL, search, start-up: against common recipes, matrix products, one worker; PEERS=1: and pythae
	python benchmarks/speed.py $(if $(filter-out 0,$(call given,PEERS)),peers)
	python benchmarks/nll.py
	python benchmarks/workers.py
	python benchmarks/starting.py

scaling: $(READY)  ## Measure how time and memory grow with latents, widths, images, samples and prior components
	python benchmarks/scaling.py

published: $(READY)  ## Train recipes and compare with published test NLLs: RECIPES="mlp ladder", EPOCHS= to shorten them
	python benchmarks/published.py $(PUBLISHED_FLAGS)

speedrun: $(READY)  ## Measure the time of training until the test NLL reaches published ones
	python benchmarks/speedrun.py

processes: $(READY)  ## Measure one training in one and two processes, against two trainings side by side
	python benchmarks/processes.py

trials: $(READY)  ## Measure what a trial asks of the servers in OPTUNA_STORAGE and MLFLOW_TRACKING_URI
	python benchmarks/trials.py

load: $(READY)  ## Measure what happens under load: loggers, a long study, a long history, a crowded store, a server
	python benchmarks/load.py
	python benchmarks/serving.py

clean:  ## Delete the environment and what tools cache; data, models and runs stay
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .import_linter_cache build src/*.egg-info
