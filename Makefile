# Everything a checkout needs: `make demo` and `make test` set themselves up.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: setup demo docs test test-slow check format clean

setup: $(READY)

$(READY): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade 'pip>=25'
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	@# torchattacks holds requests at an old, unsafe release that it never imports: docs/getting-started.md, "Install".
	@# What the site is built with needs a current one too.
	$(BIN)/python -m pip install --quiet --no-warn-conflicts --constraint constraints.txt --editable '.[docs]' 'requests>=2.32.4'
	touch $(READY)

demo: setup
	$(BIN)/python jobs/demo.py

docs: setup
	$(BIN)/python -m mkdocs build --strict

# One thread: the tests' networks are so small that threads only wait for each other. Two files at a time: a test of Ray
# spends much of its time on waiting for processes to start.
test: setup
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m 'not slow' --numprocesses 2 --dist loadfile

test-slow: setup
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m slow

check: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: setup
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) build dist site *.egg-info
