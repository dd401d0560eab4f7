# demo   a whole search on the embedded toy corpus: search, comparison, test table (under 90 s once installed)
# test   all tests            check   lint, types, tests            clean   remove the environment, keep runs/
#
# Each builds .venv from the pins where it is missing or older than pyproject.toml and constraints.txt. Another interpreter:
# `make test PYTHON=python3.12`. On Linux without a GPU, this spares the CUDA wheels:
# `PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu make demo`.

PYTHON ?= python3
READY := .venv/.ready

.PHONY: demo test check clean

demo: $(READY)
	.venv/bin/python -m search.run --space spaces/quickstart.yaml
	@name=$$(basename "$$(ls -td runs/quickstart* | head -n 1)"); \
	  echo; .venv/bin/python analysis/best_to_test.py --search $$name --top 2 --seeds 2 && \
	  printf '%s\n' "" "Made: runs/$$name (the search), runs/$$name/best (its best model), runs/$$name/test (table.md, predictions/), mlflow.db" \
	    "Next: your own data, .venv/bin/python -m search.run --space spaces/smart.yaml --data DIR --dry-run (README.md says what lies in DIR)"

test: $(READY)
	.venv/bin/python -m pytest

check: $(READY)
	.venv/bin/ruff check .
	.venv/bin/mypy
	.venv/bin/python -m pytest

clean:
	rm -rf .venv

# The stamp is touched last, so that an interrupted install is begun again.
$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
	  echo "minbert-search needs Python 3.11 or newer; '$(PYTHON)' says: $$($(PYTHON) --version 2>&1). Name another: make PYTHON=python3.12" >&2; \
	  exit 1; }
	@echo "Building .venv from constraints.txt (once, some minutes) ..."
	@$(PYTHON) -m venv --clear .venv
	.venv/bin/python -m pip install --quiet --disable-pip-version-check -e '.[dev]' -c constraints.txt
	@touch $@
