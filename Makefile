# make demo | check | test | docs | matrix | compat | bench | gpu | lint | clean. Everything happens in .venv, which the first of them makes.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
SHELL := /bin/bash
.DEFAULT_GOAL := help
COMPAT := build/compat/venv
EXTRAS := encoder,onnx,search,docs,dev
COMPAT_EXTRAS := encoder,dev,compat
BENCH := build/bench/venv
BENCH_EXTRAS := encoder,dev,bench
.PHONY: help venv demo check test docs matrix compat bench gpu lint clean

help: ## what can be made
	@grep -hE '^[a-z]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 8

venv: $(STAMP) ## .venv with the pinned versions

# torch first and by itself, so that the build that is at hand (a CPU's), or that TORCH_INDEX has, is what all others
# find installed
$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit("constraints.txt needs Python 3.11 or later" if sys.version_info < (3, 11) else 0)'
	@echo "Installing the pinned versions into $(VENV): 3 minutes where they are at hand, else a download of some hundred MB (on Linux without TORCH_INDEX, some GB)"
	$(call install,$(VENV),$(EXTRAS))

# The editable install is an import hook, which type checkers cannot follow. So a .pth file also names a folder with a
# link to the package, which they can. (`editable_mode=strict` of setuptools would do too, but hides every new file until
# the next install. Use it elsewhere: `pip install -e . --config-settings editable_mode=strict`.)
define install
	$(PYTHON) -m venv $(1)
	$(1)/bin/python -m pip install -qq --disable-pip-version-check torch -c constraints.txt $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX))
	$(1)/bin/python -m pip install -qq --disable-pip-version-check -e ".[$(2)]" -c constraints.txt
	@mkdir -p build/editable && ln -sfn ../.. build/editable/t5fusion
	@$(1)/bin/python -c 'import pathlib, sysconfig; pathlib.Path(sysconfig.get_path("purelib"), "t5fusion_editable.pth").write_text("$(CURDIR)/build/editable\n")'
	touch $@
endef

demo: $(STAMP) ## from nothing to a tuned model, beside what it was before
	$(BIN)/t5fusion demo

check test: export HF_HUB_OFFLINE = 1
check test: export TOKENIZERS_PARALLELISM = false
check test: export OMP_NUM_THREADS = 1
check: lint ## lint, then the quick tests of what travels to the Hub: under a minute on two cores
	$(BIN)/python -m pytest -n 2 --dist worksteal -m "not slow" tests/model tests/processing

test: lint ## lint, then all tests, without a network
	$(BIN)/python -m pytest -n 2 --dist worksteal

matrix: $(STAMP) ## all loading paths, with one release of transformers after another (RELEASES="5.0.0 newest" for some of them)
	PYTHONPATH=$(CURDIR)/tests:$(CURDIR)/tests/support $(BIN)/python tests/matrix/matrix.py $(if $(RELEASES),--releases $(RELEASES))

# what it tries besides is heavy, and some of it changes what peft imports: a venv of its own
$(COMPAT)/.installed: pyproject.toml constraints.txt
	$(call install,$(COMPAT),$(COMPAT_EXTRAS))

# CHECKOUT: of a clone of transformers, whose tests of generation are in no source distribution
compat: $(COMPAT)/.installed ## docs/compatibility.md: what of peft, transformers and others works (TABLES="peft_tuners" for one of its tables; CHECKOUT=a clone of transformers)
	TRANSFORMERS_CHECKOUT=$(abspath $(CHECKOUT)) PYTHONPATH=$(CURDIR)/tests:$(CURDIR)/tests/support HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 $(COMPAT)/bin/python -m compat $(TABLES)

# mypy and mkdocstrings take the root, which is the package, for a package named after the folder: give them a folder of
# links by our name, build/types
# the peers that it measures beside us are in a venv of their own
$(BENCH)/.installed: pyproject.toml constraints.txt
	$(call install,$(BENCH),$(BENCH_EXTRAS))

bench: $(BENCH)/.installed ## benchmarks/RESULTS.md: speed beside other ways to do the same (SUBJECTS="loading generation" for some of it)
	HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false $(BENCH)/bin/python -m benchmarks.speed $(SUBJECTS)

# The CUDA build of torch that is installed is used: constraints.txt pins its version, not its build.
gpu: $(STAMP) ## the tests that need a GPU, and their speed, for a machine that has one
	@$(BIN)/python -c 'import sys, torch; torch.cuda.is_available() or sys.exit("There is no GPU that torch can use. Install a CUDA build of torch into $(VENV).")'
	HF_HUB_OFFLINE=1 $(BIN)/python -m pytest tests/gpu
	HF_HUB_OFFLINE=1 $(BIN)/python -m benchmarks.speed gpu

lint: $(STAMP) build/types ## ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

.PHONY: build/types
build/types:
	@rm -rf build/types && mkdir -p build/types/t5fusion
	@for folder in cli common demo engines finetune hooks hub_export tiny_t5 tiny_t5_v2 py.typed; do ln -s "../../../$$folder" build/types/t5fusion/; done
	@for file in *.py; do ln -s "../../../$$file" build/types/t5fusion/; done

docs: $(STAMP) build/types ## the pages as a site in build/site, with the reference of the Python interface
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet
	@echo "build/site/index.html"

clean: ## remove what make made, .venv too; results in runs/ stay
	rm -rf $(VENV) build dist *.egg-info .ruff_cache .mypy_cache .pytest_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
