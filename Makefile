# Every target sets up its virtual environment by itself. The stamp makes the second time fast; it depends on what is
# declared. STACK says which packages: openmmlab (.venv), onedl, the maintained fork (.venv-onedl), or oldest, the
# oldest torch that pyproject.toml admits (.venv-oldest).
PYTHON ?= python3
SEED ?= 0
STACK ?= openmmlab
STACKS := openmmlab onedl oldest
$(if $(filter $(STACKS),$(STACK)),,$(error STACK is $(STACK), but it must be one of: $(STACKS)))
VENV := $(if $(filter openmmlab,$(STACK)),.venv,.venv-$(STACK))
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
MM := $(if $(filter onedl,$(STACK)),onedl,openmmlab)
# What the stack changes in constraints.txt.
OLDEST := -e 's/^torch==.*/torch==2.8.0/' -e 's/^torchvision==.*/torchvision==0.23.0/'
CHANGES := $(if $(filter oldest,$(STACK)),$(OLDEST))

.PHONY: setup demo test test-slow test-gpu lint

setup: $(STAMP)

# mmcv and mmcv-lite share a folder: where somebody put full mmcv into .venv, only our own extras are installed.
$(STAMP): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	sed -e '' $(CHANGES) constraints.txt > $(VENV)/constraints.txt
	extras=$(MM),dev; \
	if $(BIN)/python -m pip show --quiet mmcv 2>/dev/null; then \
		echo "full mmcv found: keeping it and the mm* packages beside it as they are"; extras=dev; \
	fi; \
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c $(VENV)/constraints.txt -e ".[$$extras]"
	touch $@

demo: setup
	PYTHONWARNINGS=ignore $(BIN)/python tools/dev/demo.py --seed $(SEED)

test: setup
	CUDA_VISIBLE_DEVICES= OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist worksteal -m "not slow and not gpu" --durations=30

test-slow: setup
	CUDA_VISIBLE_DEVICES= OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist worksteal -m "slow and not gpu" --durations=30

test-gpu: setup
	$(BIN)/python -m pytest -n 4 --dist worksteal -m gpu

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python tools/dev/density.py --check
