# Two commands set everything up: `make demo` (the main job on built-in data) and `make test`.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test slow lint env

demo: .venv/installed
	$(BIN)/python run.py demo $(DEMO)

test: env .venv/tests
	$(BIN)/python -m pytest -n auto -m "not slow"

slow: env .venv/tests
	$(BIN)/python -m pytest -n auto -m slow

lint: env .venv/tests
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

env: .venv/scatter

.venv/installed: requirements.txt
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 14))' \
		|| { echo "Python 3.11 to 3.14 is needed, $(PYTHON) is another: make PYTHON=python3.11"; exit 2; }
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check -r requirements.txt
	@touch $@

# torch-scatter's source needs torch at build time and a C++ compiler, never CUDA's: what we use of it runs on GPUs too.
# The demo does not wait for it: without it superpixels are pooled by torch's own index_add, with equal results.
.venv/scatter: .venv/installed
	@echo "building torch-scatter (3 to 8 minutes, once) ..."
	@FORCE_ONLY_CPU=1 $(BIN)/pip install --quiet --no-build-isolation torch-scatter==2.1.2 \
		|| echo "torch-scatter did not build: superpixels will be pooled by torch's own index_add, with equal results."
	@touch $@

.venv/tests: .venv/scatter tests/requirements.txt
	$(BIN)/pip install --quiet --disable-pip-version-check -r tests/requirements.txt
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps nuscenes-devkit==1.2.0 timm==1.0.31
	@touch $@
