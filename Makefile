# Two commands carry the project: `make paper` and `make test`. `make help` lists the rest.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
PROFILE ?= quick
CORES ?= all
BIN := .venv/bin
STAMP := .venv/installed
NBVAL := -n auto --dist loadfile --nbval --nbval-current-env --nbval-sanitize-with tests/nbval.cfg

.PHONY: help paper stale test gpu-check lint lab data notebooks readme publish book clean

help:  ## what there is
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/'

$(STAMP): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' || { echo "The locked versions are for Python 3.11: make PYTHON=/path/to/python3.11"; exit 1; }
	@test -e $(STAMP) || { rm -rf .venv && $(PYTHON) -m venv .venv; }  # an interrupted installation starts anew
	@rm -f $(STAMP)
	$(BIN)/python -m pip install --disable-pip-version-check -q -r requirements.lock
	$(BIN)/python -m pip install --disable-pip-version-check -q --no-deps -e .
	@touch $(STAMP)

paper: $(STAMP)  ## run the paper, or go on with it: make paper [PROFILE=quick|cpu|paper] [CORES=all|N] [SLURM=1: on a cluster]
	$(BIN)/python -m deepsimreg.paper.$(if $(SLURM),slurm $(PROFILE),graph $(PROFILE) $(CORES))
	@$(BIN)/python -m deepsimreg.paper.stale $(PROFILE)

stale: $(STAMP)  ## which published tables today's code would make anew
	$(BIN)/python -m deepsimreg.paper.stale

test: lint  ## every test, the notebooks through nbval included
	$(BIN)/python -m pytest -n auto
	runs=$$(mktemp -d) && export DEEPSIMREG_RUNS=$$runs OMP_NUM_THREADS=1 TQDM_DISABLE=1 \
	&& $(BIN)/python -m deepsimreg.paper.graph $(PROFILE) && $(BIN)/python -m pytest $(NBVAL) notebooks && rm -r $$runs

gpu-check: $(STAMP)  ## what a GPU computes beside the CPU, and the hours of the paper's runs; without one: small
	$(BIN)/python -m pytest tests/gpu
	TQDM_DISABLE=1 $(BIN)/python experiments/gpu_check.py

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports --no-cache

lab: $(STAMP)  ## open JupyterLab on the notebooks
	$(BIN)/jupyter lab --notebook-dir notebooks

data: $(STAMP)  ## fetch hippocampus-mr (28 MB)
	$(BIN)/deepsimreg fetch hippocampus-mr

notebooks: $(STAMP)  ## refresh the committed notebooks from their .py twins
	$(BIN)/python -m deepsimreg.paper.notebook refresh

readme: $(STAMP)  ## fill the README's tables from the result files
	$(BIN)/python -m deepsimreg.paper.readme

publish: $(STAMP)  ## make figures and tables of a profile the published ones: make publish PROFILE=cpu
	$(BIN)/python -m deepsimreg.paper.publish $(PROFILE)

book: $(STAMP)  ## the chapters, pages and docstrings as HTML: book/docs/index.html
	$(BIN)/python -m sphinx -q -W --keep-going -c docs -b html . book
	@echo "Open book/docs/index.html"

clean:  ## remove what the quick profile made; other runs, data and the environment stay
	rm -rf runs/quick
