# Every target sets up .venv by itself. The stamp makes the second time fast; it depends on what is declared.
PYTHON ?= python3
SEED ?= 0
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: setup demo test lint

setup: $(STAMP)

# mmcv and mmcv-lite share a folder: where somebody put full mmcv into .venv, only our own extras are installed.
$(STAMP): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	extras=openmmlab,dev; \
	if $(BIN)/python -m pip show --quiet mmcv 2>/dev/null; then \
		echo "full mmcv found: keeping it and the mm* packages beside it as they are"; extras=dev; \
	fi; \
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[$$extras]"
	touch $@

demo: setup
	PYTHONWARNINGS=ignore $(BIN)/python tools/dev/demo.py --seed $(SEED)

test: setup
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist loadfile

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
