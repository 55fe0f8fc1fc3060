# Short names for commands that work without make too; see README.md.
PROGRAMS ?= .venv/bin
export PATH := $(abspath $(PROGRAMS)):$(PATH)

.PHONY: setup check test perf docs lists

setup: ## environment, package, first edit
	python3 first_edit.py

check: ## style, spelling, layers, types, lists: what a push and CI run
	.ci/check

test: ## all tests but slow, gpu and network
	python -m pytest -n 2

perf: ## every benchmark; each ends with one line of JSON
	for script in perf/*.py; do python $$script || exit 1; done

lists: ## write the lists of README and docs from cards and registries
	python docs/generate.py

docs: ## every page, snippet and example is checked or run
	python -m pytest tests/test_docs.py tests/test_generated.py tests/test_doctests.py tests/test_examples.py \
	    tests/test_error_pages.py
