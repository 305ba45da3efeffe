# `make` alone lists what there is. On a machine with Python 3.11 or later and git, nothing else
# set up, `make demo` and `make test` do the rest.
#
#   VENV=folder        where the environment is, instead of .venv
#   PYTHON=python3.12  the interpreter it is made with, instead of the first that is new enough
#   ARGS="..."         passed on, as in: make test ARGS="-k nearest"

SHELL := bash
VENV ?= .venv
PYTHON ?=
ARGS ?=

python := $(VENV)/bin/python
installed := $(VENV)/installed
fashion_mnist := /usr/share/datasets/fashion-mnist

# True of an interpreter that mqvae runs on; false, in silence, of anything else.
new_enough := -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1
# True where this user may install Debian packages.
may_apt := [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null
apt_install := DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends

export PIP_DISABLE_PIP_VERSION_CHECK := 1
export PYTHONUNBUFFERED := 1

.PHONY: help install data demo reproduce bench test test-beside test-all numerics lint format docs clean

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-11s %s\n", $$1, $$2 }' Makefile

install: $(installed) ## the environment, with the pinned dependencies

data: ## Fashion-MNIST from Debian's package, where that can be had
	@if [ -d $(fashion_mnist) ]; then exit 0; fi; \
	if ! { $(may_apt); }; then \
	  echo "Fashion-MNIST: Debian's package is not installed; the program looks elsewhere for it"; \
	  echo "  (apt-get install dataset-fashion-mnist, as root, is the surest way)"; \
	  exit 0; \
	fi; \
	echo "Fashion-MNIST: installing Debian's package dataset-fashion-mnist (30 MB)"; \
	exec </dev/null; \
	{ $(apt_install) dataset-fashion-mnist \
	  || { apt-get update -qq && $(apt_install) dataset-fashion-mnist; }; } >/dev/null 2>&1 \
	|| echo "  could not be installed; the program looks elsewhere for it"

demo: install data ## trains VQ-VAE and MQ-VAE on Fashion-MNIST and compares them
	$(python) examples/demo.py $(ARGS)

reproduce: install data ## the paper's tables and figures: ARGS="table-1"
	$(python) -m reproduction $(ARGS)

bench: install ## what steps and runs cost on this machine: ARGS="step --out docs"
	$(python) -m benchmarks $(ARGS)

pytest := OMP_NUM_THREADS=1 $(python) -m pytest -n auto --maxprocesses 4 --dist worksteal
beside := tests/reproduction tests/benchmarks tests/website

test: install ## the tests of the package
	$(pytest) $(addprefix --ignore=,$(beside)) $(ARGS)

test-beside: install ## the tests of reproduction/, benchmarks/, and the site
	$(pytest) $(beside) $(ARGS)

test-all: install ## all tests
	$(pytest) $(ARGS)

# The mathematics once more, as processors round that have no vector units, and as others do.
NUMERICS := tests/metrics/test_diagnostics.py $(addsuffix .py,$(addprefix tests/core/test_,estimators hypergradient \
  initialization maps nearest network quantizer replacement residual rules selection transport unrolled updates))

numerics: install ## the tests of the mathematics where other processors round otherwise
	ATEN_CPU_CAPABILITY=default $(pytest) --rounding $(NUMERICS) $(ARGS)

lint: install ## style, formatting and types
	@status=0; for check in "ruff check ." "ruff format --check ." mypy; do \
	  echo "$(python) -m $$check"; \
	  $(python) -m $$check || status=1; \
	done; exit $$status

format: install ## formats the code and mends what can be mended
	$(python) -m ruff check --fix .
	$(python) -m ruff format .

docs: install ## the documentation as a site, in site/; ARGS=serve shows it as it changes
	NO_MKDOCS_2_WARNING=1 $(python) -m mkdocs $(or $(ARGS),build)

clean: ## removes caches and builds; runs and the environment stay
	rm -rf build dist site .pytest_cache .hypothesis .ruff_cache .mypy_cache
	find $(wildcard mqvae reproduction benchmarks campaigns tests examples docs) -name __pycache__ -type d -prune -exec rm -rf {} +

# An environment whose interpreter has gone is installed again, whatever its stamp says.
ifeq ($(realpath $(python)),)
.PHONY: $(installed)
endif

# Wheels are unpacked beside the environment: /tmp may be memory, and too small for them.
$(installed): pyproject.toml constraints.txt
	@set -euo pipefail; exec </dev/null; \
	if ! { $(python) $(new_enough) && $(python) -m pip --version >/dev/null 2>&1; }; then \
	  found=; \
	  for candidate in $(or $(PYTHON),python3 python3.14 python3.13 python3.12 python3.11); do \
	    if "$$candidate" $(new_enough); then found=$$candidate; break; fi; \
	  done; \
	  if [ -z "$$found" ]; then \
	    echo "mqvae needs Python 3.11 or later; $(or $(PYTHON),python3) is" \
	      "$$($(or $(PYTHON),python3) --version 2>/dev/null || echo 'not there')." >&2; \
	    echo "Install one, or name one: make install PYTHON=/path/to/python3" >&2; \
	    exit 1; \
	  fi; \
	  if ! "$$found" -c 'import ensurepip, venv' >/dev/null 2>&1; then \
	    package=$$("$$found" -c 'import sys; print("python%d.%d-venv" % sys.version_info[:2])'); \
	    if $(may_apt); then \
	      echo "Installing Debian's package $$package"; \
	      { $(apt_install) "$$package" \
	        || { apt-get update -qq && $(apt_install) "$$package"; }; } >/dev/null 2>&1 || true; \
	    fi; \
	    if ! "$$found" -c 'import ensurepip, venv' >/dev/null 2>&1; then \
	      echo "$$found cannot make virtual environments. On Debian or Ubuntu, as root:" >&2; \
	      echo "  apt-get install $$package" >&2; \
	      exit 1; \
	    fi; \
	  fi; \
	  echo "Making the environment $(VENV) with $$("$$found" --version)"; \
	  clear=; if [ -f "$(VENV)/pyvenv.cfg" ]; then clear=--clear; fi; \
	  "$$found" -m venv $$clear "$(VENV)"; \
	fi; \
	echo "Installing mqvae and its dependencies into $(VENV):" \
	  "about 6.6 GB the first time, most of it PyTorch"; \
	TMPDIR=$$(cd "$(VENV)" && mktemp -d "$$PWD/tmp.XXXXXX"); export TMPDIR; \
	trap 'rm -rf "$$TMPDIR"' EXIT; \
	$(python) -m pip install --progress-bar off -c constraints.txt -e '.[dev]' \
	| while IFS= read -r line; do case $$line in \
	    *Downloading*MB\)) echo "  downloading $${line#*Downloading }" ;; \
	    "Installing collected"*) echo "  unpacking, a minute or more" ;; \
	    "Successfully installed"*) echo "  done" ;; \
	  esac; done
	@touch $@
