# One command for a person and for CI: `make check`. `make help` lists the rest.
VENV ?= .venv
PYTHON ?= python3

BIN := $(abspath $(VENV))/bin
STAMP := $(VENV)/.installed
TYPES := build/typecheck
SOURCES := setup.py bnas passes search runtime tests examples
KERNEL := {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}, "jupytext": null}

.DEFAULT_GOAL := help
.PHONY: help demo test properties check lint types pythons docs faults zoo golden notebook benchmark clean

help: ## Show this list
	@grep -hE '^[a-z]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## /  \1\t/'

# setuptools comes first so that the project itself is built without a second, isolated environment.
$(STAMP): pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet "setuptools>=77" wheel
	$(BIN)/python -m pip install --no-build-isolation -e ".[demo,test,docs,dev]"
	@touch $(STAMP)

demo: $(STAMP) ## Run the whole pipeline on small data, into runs/demo
	$(BIN)/bnas demo --output runs/demo --overwrite

test: $(STAMP) ## Run the tests
	$(BIN)/python -m pytest --numprocesses auto --maxprocesses 8 --dist worksteal

# Two processes, one for each half of the networks: hypothesis runs its examples one after another.
properties: $(STAMP) ## Check all promises on 2,000 random networks, on two cores
	@export BNAS_HYPOTHESIS_PROFILE=long; \
	$(BIN)/python -m pytest tests/test_properties.py -k "many and first" & first=$$!; \
	$(BIN)/python -m pytest tests/test_properties.py -k "many and second"; second=$$?; \
	wait $$first && exit $$second

check: lint types test ## Style, types and tests

lint: $(STAMP) ## Check style and formatting
	$(BIN)/python -m ruff check .
	$(BIN)/python -m ruff format --check .

# mypy does not follow package-dir, so it reads an installed copy. build/ goes first: setuptools never removes from
# build/lib what has left the tree. mypy starts inside the copy, where the bare names are not in sight.
types: $(STAMP) ## Check types
	@rm -rf build
	$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation --target $(TYPES) .
	cd $(TYPES) && MYPYPATH=. $(BIN)/python -m mypy --config-file $(CURDIR)/pyproject.toml --cache-dir $(CURDIR)/.mypy_cache -p bnas

# What another version cannot read is a syntax error here. Nothing is written into the tree.
pythons: ## Compile all source with each Python from 3.10 to 3.13 that is installed here
	@cache=$$(mktemp -d); failed=0; \
	for minor in 10 11 12 13; do \
		for python in python3.$$minor $${PYENV_ROOT:-$$HOME/.pyenv}/versions/3.$$minor.*/bin/python3.$$minor; do \
			"$$python" -c "" 2>/dev/null || continue; \
			"$$python" --version; \
			PYTHONPYCACHEPREFIX="$$cache" "$$python" -W error::SyntaxWarning -m compileall -q $(SOURCES) || failed=1; \
			break; \
		done; \
	done; \
	rm -rf "$$cache"; exit $$failed

# The API pages are read from an installed copy, where the folders lie as they are imported.
docs: $(STAMP) ## Build the documentation, warnings as errors, into build/site
	@rm -rf build/documented build/lib
	$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation --target build/documented .
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --quiet

# What fails is printed at the end of each part; `python tests/faults/faults.py --help` says how to try one part alone.
faults: $(STAMP) ## Disturb small runs and damage their files in every way, and fuzz configurations (an hour or two)
	@failed=0; export OMP_NUM_THREADS=1; \
	for part in inject kills damage pairs; do $(BIN)/python tests/faults/faults.py $$part || failed=1; done; \
	$(BIN)/python tests/faults/configurations.py --examples 10000 || failed=1; \
	exit $$failed

zoo: $(STAMP) ## Try all of torchvision's models (half an hour), into docs/zoo.md; ZOO=NAME tries one, ZOO="--resume --write" goes on
	$(BIN)/python tests/benchmarks/zoo.py $(if $(ZOO),$(ZOO),--write)

golden: $(STAMP) ## Rewrite the golden files with what is found now
	$(BIN)/python tests/benchmarks/zoo.py --golden

notebook: $(STAMP) ## Make examples/digits.ipynb again from examples/digits.py
	$(BIN)/python -m jupytext --quiet --update --to ipynb --update-metadata '$(KERNEL)' examples/digits.py

benchmark: $(STAMP) ## Measure what analysis, programs and training cost (docs/performance.md)
	$(BIN)/python tests/benchmarks/analysis.py
	$(BIN)/python tests/benchmarks/training.py
	$(BIN)/python tests/benchmarks/search.py costs overhead

clean: ## Remove what was built, and the environment that this file made
	rm -rf build dist runs .venv *.egg-info .hypothesis .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
