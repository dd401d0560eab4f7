# demo   a whole search on the embedded toy corpus: search, comparison, test table, report (two minutes once installed)
# test   all tests            check   lint, types, tests            clean   remove the environment made here, keep runs/
# papers each row of the papers' tables: its distance from our defaults, the published figures, a check of its config (seconds)
# faults break small searches in every known way and check that nothing is lost (two hours; DATA=DIR ENCODER=DIR: on real data too)
# cluster those of a Ray cluster: nodes that join, leave, or see another disk; a token; a dead head (10 minutes)
# gpu    check and measure the GPU in a few minutes, into runs/gpu (DATA=DIR ENCODER=DIR: against BertModel, too)
# bench  DATA=DIR ENCODER=DIR: the speed table against public peers, into runs/bench (an hour; ROWS="1 5": some rows)
#
# Each target first builds .venv from the pins, with uv if it is installed, else with pip; again if pyproject.toml or
# constraints.txt has changed. An existing .venv is kept; missing packages are added from the pins.
#
#   make demo PYTHON=python3.12    another interpreter
#   make demo TORCH=cpu            torch without CUDA: saves 3 GB on Linux (TORCH=cu126: for CUDA 12.6)
#   make demo ENV=current          use the current python (Colab, conda, a CUDA image): nothing is installed

unexport PYTHONDONTWRITEBYTECODE  # with it each of the tests' processes would compile all modules again

PYTHON ?= python3
UV := $(shell command -v uv 2>/dev/null)
MARK := .venv/.made-by-make
YOURS := $(if $(wildcard .venv),$(if $(wildcard $(MARK)),,yes))
PINS := $(if $(YOURS),.venv/pins.txt,constraints.txt)

ifeq ($(ENV),current)
  READY := current
  PY := $(PYTHON)
else ifeq ($(origin ENV),command line)  # in the environment it belongs to sh
  $(error ENV='$(ENV)' is unknown. ENV=current takes the python on the PATH; without ENV, .venv is built and used)
else
  READY := .venv/.ready
  PY := .venv/bin/python
endif

# Three processes, whole files per process: two would leave a core idle while their searches wait. In the order of the tree: else
# files of few but long tests come last, and one process waits for the others. Plain `pytest` uses one.
IN_PARTS := -n 3 --dist loadfile --no-loadscope-reorder

.PHONY: demo test check papers faults cluster bench gpu clean current

demo: $(READY)
	$(PY) -m search.run --space spaces/quickstart.yaml
	@name=$$(basename "$$(ls -td runs/quickstart* | head -n 1)"); \
	  echo; $(PY) analysis/best_to_test.py --search $$name --top 2 --seeds 2 && \
	  echo && $(PY) analysis/report.py $$name && \
	  printf '%s\n' "" "Made: runs/$$name (the search), runs/$$name/best (its best model), runs/$$name/test (table.md, table.tex, figure.*, predictions/), mlflow.db" \
	    "Next: your own data, $(PY) -m search.run --space spaces/smart.yaml --data DIR --dry-run (docs/data.md describes DIR)" \
	    "Report: $$PWD/runs/$$name/report.html (one page about all of it; open it in a browser)"

test: $(READY)
	$(PY) -m pytest $(IN_PARTS)

check: $(READY)
	$(PY) -m ruff check .
	$(PY) -m mypy
	$(PY) -m pytest $(IN_PARTS)

papers: $(READY)
	@$(PY) -m search.papers

faults: $(READY)
	$(PY) -m benchmarks.faults $(if $(DATA),--data $(DATA)) $(if $(ENCODER),--encoder $(ENCODER)) $(if $(ONLY),--only $(ONLY))

cluster: $(READY)
	$(PY) -m benchmarks.faults --only cluster

bench: $(READY)
	@$(PY) -c "import accelerate, smart_pytorch" 2>/dev/null || \
	  { $(INSTALL) -e '.[dev,bench]' -c $(PINS) && $(INSTALL) --no-deps smart-pytorch==0.0.4; }
	$(PY) -m benchmarks --data $(or $(DATA),data) --encoder $(or $(ENCODER),encoder) $(if $(ROWS),--rows $(ROWS))

gpu: $(READY)
	@$(PY) -m benchmarks.gpu_run $(if $(DATA),--data $(DATA)) $(if $(ENCODER),--encoder $(ENCODER)) $(if $(PARTS),--parts $(PARTS))

clean:
	$(if $(YOURS),@echo "The .venv here was there before make: it is kept.",rm -rf .venv)

# $(call new_enough,INTERPRETER,WHAT TO DO INSTEAD)
define new_enough
@$(1) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
  echo "minbert-search needs Python 3.11 or newer; '$(1)' says: $$($(1) --version 2>&1). $(2)" >&2; exit 1; }
endef

test check faults cluster bench gpu: EXTRA := dev
current:
	$(call new_enough,$(PY),Name another: make ENV=current PYTHON=python3.12)
	@$(PY) -m search.environment --missing $(EXTRA)

# The mark comes first, so that an interrupted install is known as ours; the stamp last, so that the install is repeated.
.venv/.ready: pyproject.toml constraints.txt
ifdef YOURS
	$(call new_enough,$(PY),Move .venv away and a new one is made)
	@echo "Adding to the .venv that is here what it lacks (once, a few minutes) ..."
	$(PY) -m search.environment --pins > $(PINS)
else
	$(call new_enough,$(PYTHON),Name another: make PYTHON=python3.12)
	@echo "Building .venv from constraints.txt (once, a few minutes) ..."
	@rm -rf .venv && mkdir .venv && touch $(MARK)
	$(if $(UV),uv venv --quiet --allow-existing --python $(PYTHON) .venv,$(PYTHON) -m venv .venv)
endif
	$(INSTALL) -e '.[dev]' -c $(PINS)
	@touch $@

ifdef UV
  INSTALL = uv pip install --quiet --python $(PY)$(if $(TORCH), --torch-backend $(TORCH))
else
  WHEELS := --extra-index-url https://download.pytorch.org/whl/$(TORCH)
  INSTALL = $(PY) -m pip install --quiet --disable-pip-version-check$(if $(TORCH), $(WHEELS))
endif
