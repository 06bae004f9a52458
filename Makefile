PYTHON ?= python3
VENV ?= .venv

.DEFAULT_GOAL := help
.PHONY: help demo test gpu lint docs install clean

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "make %-9s%s\n", $$1, $$2 }' $(MAKEFILE_LIST)
	@echo "Variables: PYTHON=python3 makes the environment, VENV=.venv is where it stands."

demo: install  ## train, test and draw the two demo models
	$(VENV)/bin/python tools/demo.py

test: install  ## run the tests
	$(VENV)/bin/python -m pytest --numprocesses auto --maxprocesses 4 --dist loadscope

gpu:  ## run the tests and benchmarks of a GPU, with PYTHON where there is no environment
	PYTHONPATH=. $(or $(wildcard $(VENV)/bin/python),$(PYTHON)) tools/misc/try_gpu.py

lint: install  ## check format and style
	$(VENV)/bin/ruff format --check
	$(VENV)/bin/ruff check

docs: install  ## build the pages of docs/ into build/docs
	$(VENV)/bin/mkdocs build --strict

install:  ## make the environment (done by the others too)
	@command -v $(PYTHON) >/dev/null || \
		{ echo "no $(PYTHON): install Python 3.11 to 3.13 or name yours with PYTHON=" >&2; exit 1; }
	@$(PYTHON) tools/misc/setup_env.py --venv $(VENV)

clean:  ## remove the environment, caches, build products and the demo's output
	rm -rf .venv build dist *.egg-info work_dirs/demo work_dirs/demo-baseline data/demo_scenes data/more_scenes data/demo_digits .pytest_cache .ruff_cache .dist_test
	find . \( -name data -o -name work_dirs \) -prune -o -name __pycache__ -prune -exec rm -rf {} +
