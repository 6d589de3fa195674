# `make` lists the targets. Every one of them first makes the environments that it needs where they are missing or old.

VENV ?= .venv
PYTHON ?= $(shell python3.11 -c '' 2>/dev/null && echo python3.11 || echo python3)
RUN ?= runs/aspect
STUDY ?= runs/scenes-study
STUDY_PARTS := rules multipliers entropy
CALIBRATED ?= runs/scenes-calibrated
TABLES := scenes_fid scenes_kid scenes_patch_fid scenes_clip objects_exact objects_missing objects_extra
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# The last diffusers and transformers with Flax, beside which the newest can't be installed.
LEGACY_VENV ?= $(VENV)-legacy
LEGACY_BIN := $(LEGACY_VENV)/bin
LEGACY_STAMP := $(LEGACY_VENV)/.installed

# Constraints were tested with these Pythons only; another one resolves the ranges of pyproject.toml.
CONSTRAINED := 3.11 3.12
# Bytecode is written when a module is first imported: compiling everything at installation takes a minute more.
PIP_INSTALL := -m pip install -qq --progress-bar off --disable-pip-version-check --no-compile
EVERYTHING := .[all,dev,docs]
LEGACY := .[legacy,legacy-dev]
unexport PYTHONDONTWRITEBYTECODE
# Tests compile for most of their time, which takes one core a process.
TEST_PROCESSES ?= 2
PARALLEL := -n $(TEST_PROCESSES) --dist worksteal

.DEFAULT_GOAL := help
.PHONY: help setup setup-legacy setup-browser docs notebooks sweep scenes-study scenes-calibrated tables figures scenes-measure parity parity-full test-hub test test-full check dist smoke release-notes format clean

help: ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-17s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(STAMP) ## Make .venv with everything in it (another Python, of this and any target: PYTHON=python3.12 VENV=.venv312)

setup-legacy: $(LEGACY_STAMP) ## Make .venv-legacy, with diffusers 0.39 and transformers 4.57, the last that had Flax

setup-browser: ## Install Debian's Chromium for the tests of pages, where root and apt-get are there; else they are skipped
	@command -v chromium >/dev/null || { test "$$(id -u)" = 0 && command -v apt-get >/dev/null \
		&& echo "Installing chromium" && apt-get update -qq >/dev/null \
		&& DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends chromium >/dev/null; } \
		|| echo "No chromium was installed: tests of pages are skipped"

$(STAMP): pyproject.toml constraints.txt
	$(call install,$(VENV),constraints.txt,$(EVERYTHING))

$(LEGACY_STAMP): pyproject.toml constraints-legacy.txt
	$(call install,$(LEGACY_VENV),constraints-legacy.txt,$(LEGACY))

# $(call install,environment,constraints,what)
define install
	@test -x $(1)/bin/python || { echo "Making $(1) with $(PYTHON)"; $(PYTHON) -m venv $(1); }
	@echo "Installing into $(1): some minutes the first time"
	@version=$$($(1)/bin/python -c 'import sys; print("%d.%d" % sys.version_info[:2])'); \
	case " $(CONSTRAINED) " in *" $$version "*) constraints="-c $(2)";; esac; \
	$(1)/bin/python $(PIP_INSTALL) $$constraints -e '$(3)'
	@touch $@
endef

sweep: $(STAMP) ## Draw the aspect-ratio sweep with the built-in model and write its report
	@$(BIN)/entscale sweep sweeps/aspect.yaml --out $(RUN)
	@$(BIN)/entscale report $(RUN)

scenes-study: $(STAMP) ## Measure what the rules and any multiplier do to the built-in model, for docs/scenes.md: hours
	@for part in $(STUDY_PARTS); do \
		$(BIN)/entscale sweep sweeps/scenes-study-$$part.yaml --out $(STUDY)/$$part || exit; \
	done
	@$(BIN)/entscale report $(STUDY_PARTS:%=$(STUDY)/%) --study docs/scenes.md

tables: $(STAMP) ## Draw the paper's tables on the built-in model for docs/tables.md, going on where it was stopped: an hour or two
	@$(BIN)/entscale sweep sweeps/tables-reference.yaml --out runs/tables-reference
	@$(BIN)/entscale sweep sweeps/tables.yaml --out runs/tables
	@$(BIN)/entscale sweep sweeps/tables-cost.yaml --out runs/tables-cost
	@$(BIN)/entscale tables runs/tables --reference runs/tables-reference --measure scenes_patch_fid \
		$(TABLES:%=--only %) --document docs/tables.md
	@$(BIN)/entscale tables runs/tables-cost --only seconds --only memory --document docs/tables.md --section cost
	@$(BIN)/python -m entscale_jax.reports.paper.spot_cells runs/tables tests/data/spot_cells

figures: $(STAMP) ## Draw the paper's figures on the built-in model for docs/figures.md, going on where it was stopped: minutes
	@$(BIN)/entscale sweep sweeps/figures.yaml --out runs/figures
	@$(BIN)/entscale sweep sweeps/figures-entropy.yaml --out runs/figures-entropy
	@$(BIN)/python -m entscale_jax.reports.sheets.figures_document docs/figures.md runs/figures runs/figures-entropy

scenes-calibrated: $(STAMP) ## Measure what rule calibrated does beside the other two, for docs/scenes.md: an hour or two
	@$(BIN)/entscale sweep sweeps/scenes-study-calibrated-entropy.yaml --out $(CALIBRATED)/entropy
	@$(BIN)/entscale sweep sweeps/scenes-study-calibrated.yaml --out $(CALIBRATED)/rules
	@$(BIN)/entscale report $(CALIBRATED)/rules $(CALIBRATED)/entropy --calibrated docs/scenes.md

scenes-measure: $(STAMP) ## Measure the built-in model itself for docs/scenes.md, going on where it was stopped: hours
	@$(BIN)/python -m entscale_jax.scenes.evaluate docs/scenes.md
	@$(BIN)/python -m entscale_jax.scenes.sensitivity docs/scenes.md
	@$(BIN)/python -m entscale_jax.scenes.shares docs/scenes.md
	@$(BIN)/python -m entscale_jax.scenes.sharpness docs/scenes.md
	@$(BIN)/python -m entscale_jax.parity.float16 docs/scenes.md
	@$(BIN)/python -m entscale_jax.scenes.detector docs/scenes.md

notebooks: $(STAMP) ## Execute the notebooks again, in place: two minutes
	@$(BIN)/python notebooks/execute.py

parity: $(STAMP) ## Compare every family with PyTorch for docs/parity.md and the README: minutes a model
	@$(BIN)/python -m entscale_jax.parity.document docs/parity.md README.md
	@$(BIN)/python -m entscale_jax.parity.entropy docs/parity.md

parity-full: $(STAMP) ## Compare UNets of the published sizes with PyTorch, for docs/parity-full.md: hours, 11 GB of disk
	@$(BIN)/python tests/parity/full_size.py docs/parity-full.md

test-hub: $(STAMP) ## Open and draw the published checkpoints, beside PyTorch: downloads some 40 GB
	@HF_HUB_OFFLINE=0 $(BIN)/pytest -m hub

test: $(STAMP) $(LEGACY_STAMP) ## Run the tests, without the heavy ones
	@$(BIN)/pytest $(PARALLEL) -m "not full and not hub and not ray"
	@$(BIN)/pytest -m "not full and not hub and ray"
	@$(LEGACY_BIN)/pytest $(PARALLEL) -m "not full and not hub" tests/legacy

test-full: $(STAMP) $(LEGACY_STAMP) ## Run every test, compiled with all optimisations
	@JAX_DISABLE_MOST_OPTIMIZATIONS=0 $(BIN)/pytest -m "not hub"
	@JAX_DISABLE_MOST_OPTIMIZATIONS=0 $(LEGACY_BIN)/pytest -m "not hub" tests/legacy

docs: $(STAMP) ## Build the documentation into site/, warnings being errors
	@NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

check: $(STAMP) ## The gate: formatting, lint, types, import direction, documentation, tests
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyright --pythonpath $(BIN)/python
	$(BIN)/lint-imports
	@$(MAKE) --no-print-directory docs
	@$(MAKE) --no-print-directory test

dist: $(STAMP) ## Build the sdist, from it the wheel, both into dist/, and check what they hold
	@rm -rf dist
	@$(BIN)/python -W ignore -m build --no-isolation
	@$(BIN)/check-wheel-contents dist

smoke: dist ## Install what is in dist/ into empty environments and use it: minutes
	@$(BIN)/python tests/release/smoke.py dist

release-notes: $(STAMP) ## Take the changelog of TAG, the version of what is in dist/, into build/release-notes.md
	@$(BIN)/python .ci/release_notes.py "$(TAG)" CHANGELOG.md dist build/release-notes.md

format: $(STAMP) ## Format the code and mend what lint can mend
	$(BIN)/ruff check --fix-only --quiet .
	$(BIN)/ruff format .

clean: ## Remove both environments, caches and build products; runs/ stays
	rm -rf $(VENV) $(LEGACY_VENV) build dist site *.egg-info .pytest_cache .ruff_cache .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
