# `make demo` and `make test` work from a fresh clone; both begin by making the environment in .venv.
#
# On a machine without a GPU, `make demo TORCH=cpu` installs torch without CUDA: under one gigabyte instead of several.
PYTHON ?= python3
TORCH ?=
BACKEND := $(if $(TORCH),--torch-backend $(TORCH))
INSTALL := DEBIAN_FRONTEND=noninteractive apt-get install --yes --no-install-recommends chromium
CHECKED := pipeline grounding cli tests benchmarks docs

export PATH := $(CURDIR)/.venv/bin:$(PATH)
# DVC's own caches stay inside the clone: they are pickled, so they are not shared with other users of the machine.
export DVC_SITE_CACHE_DIR := $(CURDIR)/.dvc/site-cache
export DVC_NO_ANALYTICS := 1
# Bytecode is kept, whatever the shell says: the demo and the tests start many processes, and each would compile all that it imports.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: demo test bench environment lint types contracts tests browser soak style graph clean

demo: .venv/.installed
	.venv/bin/dvc repro

test: lint types contracts tests

lint: .venv/.installed
	.venv/bin/ruff check $(CHECKED)
	.venv/bin/ruff format --check $(CHECKED)

types: .venv/.installed
	.venv/bin/mypy

contracts: .venv/.installed
	.venv/bin/lint-imports

# Two at a time: most of them start processes and wait.
tests: .venv/.installed browser
	.venv/bin/python -m pytest -m "not soak" --numprocesses 2 --dist worksteal

# The report is tested in a real browser, on Debian's Chromium; where it cannot be installed those tests are skipped and say so.
browser:
	@for name in chromium chromium-browser google-chrome; do command -v $$name >/dev/null && exit 0; done; \
	if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then $(INSTALL) >/dev/null 2>&1 || { apt-get update && $(INSTALL); } >/dev/null 2>&1; fi; \
	command -v chromium >/dev/null || echo "no Chromium here, nor could it be installed: the report is not tested in a browser"

# The long ones: kills, mutants, hours of video.
soak: .venv/.installed
	.venv/bin/python -m pytest -m soak

# Every measurement, after checking that what is compared agrees: thirty-five minutes on two cores that have nothing else to do.
bench: .venv/.installed
	.venv/bin/python -m benchmarks

# How dense the code is and how it names things; and the imports between folders.
style: .venv/.installed
	.venv/bin/python -m benchmarks.code_style

graph: .venv/.installed
	.venv/bin/python -m benchmarks.import_graph

environment: .venv/.installed

# uv installs in a minute what pip takes several for; constraints.txt pins every version.
.venv/.installed: pyproject.toml constraints.txt
	test -x .venv/bin/python || $(PYTHON) -m venv .venv
	.venv/bin/python -m pip install --quiet --constraint constraints.txt uv
	.venv/bin/uv pip install --python .venv/bin/python $(BACKEND) --constraint constraints.txt --editable '.[dev]'
	touch $@

clean:
	rm -rf .mypy_cache .pytest_cache .ruff_cache .import_linter_cache
