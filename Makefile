# The one vocabulary: hooks, CI and people call these.
.PHONY: setup demo test check docs bench compare results serve lock
SHELL := /bin/bash
PY := .venv/bin/python
export PATH := $(CURDIR)/.venv/bin:$(PATH)

setup: .venv/installed ## .venv (Python 3.12) from requirements.lock

.venv/installed: requirements.lock pyproject.toml
	@python3 -c 'import sys; sys.exit(None if (3, 12) <= sys.version_info[:2] < (3, 14) else "python3 is %d.%d; cgal needs 3.12 or 3.13" % sys.version_info[:2])'
	test -x $(PY) || python3 -m venv .venv
	awk '/^[^ ]/ {keep = /^uv==/} keep' requirements.lock > .venv/uv.lock
	$(PY) -m pip install --quiet --require-hashes -r .venv/uv.lock
	.venv/bin/uv pip install --quiet --python $(PY) --compile-bytecode --require-hashes -r requirements.lock
	.venv/bin/uv pip install --quiet --python $(PY) --no-deps --no-build-isolation -e .
	touch $@

demo: setup ## one real chignolin campaign: 2 acquisition rounds and a closing one
	cgal run $(if $(NEW),--new $(NEW))

test: check ## everything a change must pass
	PYTHONDONTWRITEBYTECODE= OMP_NUM_THREADS=1 pytest --numprocesses 2 --durations 40 --dist loadfile --no-loadscope-reorder

check: setup docs ## format, lint, types, import direction, documentation
	ruff format --check .
	ruff check .
	mypy
	lint-imports

docs: setup ## the documentation in site/, warnings as errors
	NO_MKDOCS_2_WARNING=1 mkdocs build --quiet

bench: setup ## speed, side by side with the peers: benchmarks/results.json and the table in benchmarks/README.md
	-uv pip install --quiet --python $(PY) -e '.[bench]'
	python -m benchmarks

compare: setup ## hours, unattended: the comparison of docs/results/$(NAME).yaml; the same command goes on where it was stopped
	$(if $(NAME),,$(error give the comparison: make compare NAME=arms_350K))
	-cgal compare --name $(NAME)
	python -m study.twins $(NAME) --processes 2
	python -m study.results

results: setup ## the pages of docs/results, their figures and summaries from the committed records
	python -m study.results

serve: setup ## Prefect, MLflow and their workers on loopback
	cgal serve

lock: ## requirements.lock from pyproject.toml: names, versions and hashes only
	.venv/bin/uv pip compile --quiet --generate-hashes --no-annotate --no-header --python-version 3.12 --group dev --extra cgback --extra cluster --extra gpu pyproject.toml -o requirements.lock
