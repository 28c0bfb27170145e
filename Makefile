# Two commands do all the set-up: `make demo` and `make test`. Everything stays in this folder, but
# the simulators that are built: these are kept in ~/.cache/tally ($XDG_CACHE_HOME/tally).
PYTHON ?= python3
VENV   ?= .venv
PROMPT ?= Once upon a time
TOKENS ?= 32

# The synthesis tools of the wheels are programs in the environment's own folder.
export PATH := $(abspath $(VENV))/bin:$(PATH)

.PHONY: demo test lint clean

demo: $(VENV)/.demo
	$(VENV)/bin/python -m host run --prompt "$(PROMPT)" --tokens $(TOKENS)

test: $(VENV)/.test
	$(VENV)/bin/python -m sim tools
	OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 $(VENV)/bin/python -m pytest -n 2 --dist worksteal

lint: $(VENV)/.test
	$(VENV)/bin/python -m ruff check .
	$(VENV)/bin/python -m mypy
	$(VENV)/bin/lint-imports

$(VENV)/.demo: pyproject.toml
	@echo "Installing into $(VENV); this takes about a minute"
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check -e .
	touch $@

$(VENV)/.test: pyproject.toml
	@echo "Installing into $(VENV); this takes about two minutes"
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check -e '.[test,build]'
	touch $@ $(VENV)/.demo

clean:
	rm -rf $(VENV) build "$${XDG_CACHE_HOME:-$$HOME/.cache}/tally"
