# `make demo`, `make test` and `make lab` set up .venv on their first use and reuse it afterwards.
# Another Python:  make demo PYTHON=python3.12

PYTHON ?= python3
VENV   := .venv
RUN    := $(VENV)/bin/python
CORES  := -n auto --dist loadgroup --no-loadscope-reorder

.PHONY: demo test test-quick test-slow test-gpu faults fuzz test-oldest test-newest test-colab wheel lab lessons mutate site test-site test-figures test-jupyter clean

demo: $(VENV)/ready  ## fine-tune the course's Llama on home commands, compare before and after
	$(RUN) -m llama_adapter_edu finetune

test: $(VENV)/ready  ## style, layers, then all tests, on all cores (at most 4)
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	$(VENV)/bin/lint-imports
	$(RUN) -m pytest $(CORES)

test-quick: $(VENV)/ready  ## the tests without a kernel, the Llama, compiling and installing: 90 seconds
	$(RUN) -m pytest $(CORES) --quick

lab: $(VENV)/ready  ## open the lessons in JupyterLab
	$(RUN) -m jupyter lab notebooks/00_start_here.ipynb

test-slow: $(VENV)/ready  ## the tests that take minutes: several processes, killed in many ways
	$(RUN) -m pytest --slow -m slow

test-gpu: $(VENV)/ready  ## the tests that need NVIDIA GPUs; says which were skipped for want of them
	$(RUN) -m pytest -rs tests/test_gpu.py tests/test_prompt_kernel.py tests/test_faster_training.py tests/test_fused.py tests/test_float8.py

faults: $(VENV)/ready  ## put small faults into copies of the project: do the tests find them?
	$(RUN) tests/faults.py $(ARGS)

fuzz: $(VENV)/ready  ## broken and hostile files, many more than in the tests; records the counts
	$(RUN) benchmarks/fuzz.py

# The oldest and the newest versions, each in an environment of its own: make test-oldest
# Another torch than the oldest or newest, say a smaller build:  make test-oldest TORCH=torch==2.13.0
# The lessons themselves are proved with the pinned versions (make test), whose outputs they hold.
TESTS ?= tests --ignore=tests/test_notebooks.py

test-oldest: .venv-oldest/ready  ## the library's tests with the lower bounds of pyproject.toml
	.venv-oldest/bin/python -m pytest $(CORES) $(TESTS)

test-newest: .venv-newest/ready  ## the library's tests with the newest versions there are
	.venv-newest/bin/python -m pytest $(CORES) $(TESTS)

.venv-oldest/ready: pyproject.toml
	$(PYTHON) -m venv .venv-oldest
	.venv-oldest/bin/python -m pip install --quiet uv
	echo "$(TORCH)" | .venv-oldest/bin/uv pip install --quiet --python .venv-oldest \
	  --resolution lowest-direct --override - -e ".[dev,quantized]"
	touch $@

.venv-newest/ready: pyproject.toml
	$(PYTHON) -m venv .venv-newest
	.venv-newest/bin/python -m pip install --quiet --upgrade $(TORCH) "pytest<9.2" -e ".[dev,quantized]"  # see constraints.txt
	touch $@

lessons: $(VENV)/ready  ## build notebooks, references and teaching notes from their masters
	$(RUN) tools/build.py

mutate: $(VENV)/ready  ## small changes of every solution: does its check reject them? ARGS="01 02"
	$(RUN) tools/mutate.py $(ARGS)

wheel: $(VENV)/ready  ## the library as one file, dist/*.whl: for Colab, or to install elsewhere
	$(RUN) -m pip wheel --quiet --no-deps --no-build-isolation --wheel-dir dist .

test-colab: $(VENV)/ready  ## three lessons with Colab's versions, alone; ARGS="01 02" for others
	$(RUN) tools/colab_trial.py $(ARGS)

site: $(VENV)/browser  ## build the course site, build/site/index.html
	$(RUN) -m tools.site

test-site: site  ## open every page of the site in Chromium
	$(RUN) -m pytest tests/browser/test_site.py

test-figures: $(VENV)/browser  ## JavaScript linted; the figures that move, in Chromium: by keyboard, in notebooks, for axe
	$(VENV)/bin/oxlint --deny-warnings llama_adapter_edu/course/figures/js docs/_static
	$(RUN) -m pytest tests/browser/test_figures.py tests/browser/test_microscope.py tests/browser/test_token_way.py

test-jupyter: $(VENV)/browser  ## solve exercises in JupyterLab in Chromium; ARGS="-k 03" for one
	$(RUN) -m pytest tests/browser/test_jupyter.py $(ARGS)

$(VENV)/browser: $(VENV)/ready
	$(RUN) -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[dev,site,browser]"
	touch $@

$(VENV)/ready: pyproject.toml constraints.txt
	@$(PYTHON) -c "import sys; sys.exit(sys.version_info < (3, 10))" || \
	  { echo "Python 3.10 or newer is needed: make $(MAKECMDGOALS) PYTHON=python3.12"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[dev]"
	touch $@

clean:  ## remove the environment and all runs
	rm -rf $(VENV) .venv-oldest .venv-newest runs
