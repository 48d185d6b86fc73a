# `make demo`, `make test` and `make lab` set up .venv on their first use and reuse it afterwards.
# Another Python:  make demo PYTHON=python3.12

PYTHON ?= python3
VENV   := .venv
RUN    := $(VENV)/bin/python

.PHONY: demo test lab lessons clean

demo: $(VENV)/ready  ## fine-tune the course's Llama on home commands, compare before and after
	$(RUN) -m llama_adapter_edu finetune

test: $(VENV)/ready  ## style, then all tests
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	$(RUN) -m pytest

lab: $(VENV)/ready  ## open the lessons in JupyterLab
	$(RUN) -m jupyter lab notebooks/00_start_here.ipynb

lessons: $(VENV)/ready  ## build the notebooks from their masters
	$(RUN) tools/build.py

$(VENV)/ready: pyproject.toml constraints.txt
	@$(PYTHON) -c "import sys; sys.exit(sys.version_info < (3, 10))" || \
	  { echo "Python 3.10 or newer is needed: make $(MAKECMDGOALS) PYTHON=python3.12"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[dev]"
	touch $@

clean:  ## remove the environment and all runs
	rm -rf $(VENV) runs
