# Two commands carry the project: `make paper` and `make test`. `make help` lists the rest.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
PROFILE ?= quick
CORES ?= all
BIN := .venv/bin
STAMP := .venv/installed
RUNNING := [d]eepsimreg.notebook run $(CURDIR)/notebooks

.PHONY: help paper resume test lint lab data notebooks readme clean

help:  ## what there is
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/'

$(STAMP): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' || { echo "Python 3.11 is needed: make PYTHON=/path/to/python3.11"; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --disable-pip-version-check -q -r requirements.lock
	$(BIN)/python -m pip install --disable-pip-version-check -q --no-deps -e .
	@touch $(STAMP)

paper: $(STAMP)  ## run the paper: make paper [PROFILE=quick|phantom|cpu|paper] [CORES=all|N]
	$(BIN)/snakemake --cores $(CORES) --rerun-incomplete --quiet rules host --config profile=$(PROFILE)
	@$(BIN)/python -m deepsimreg.paper.experiment $(PROFILE)

resume: $(STAMP)  ## go on after a run was killed: ends what lives on, unlocks, continues
	-@pkill -f "$(RUNNING)"; while pgrep -f "$(RUNNING)" > /dev/null; do sleep 1; done
	$(BIN)/snakemake --unlock --config profile=$(PROFILE)
	$(MAKE) paper

test: lint  ## every test, the notebooks through nbval included
	$(BIN)/python -m pytest
	OMP_NUM_THREADS=1 DEEPSIMREG_RUNS=$$(mktemp -d) $(BIN)/python -m pytest --nbval --nbval-sanitize-with tests/nbval.cfg notebooks

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

lab: $(STAMP)  ## open JupyterLab on the notebooks
	$(BIN)/jupyter lab --notebook-dir notebooks

data: $(STAMP)  ## fetch hippocampus-mr (28 MB)
	$(BIN)/python -m deepsimreg.data.download hippocampus-mr

notebooks: $(STAMP)  ## refresh the committed notebooks from their .py twins
	$(BIN)/python -m deepsimreg.paper.notebook refresh

readme: $(STAMP)  ## fill the README's tables from the result files
	$(BIN)/python -m deepsimreg.paper.readme

clean:  ## remove what the quick profile made; other runs, data and the environment stay
	rm -rf runs/quick figures/quick
