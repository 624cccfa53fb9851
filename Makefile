# make listen: environment, and sounds of the pretrained model.  make demo: environment, demo set,
# features, model, sound.  make test: environment, lint, all tests.
# make quick: the tests without slow ones, a few minutes.  make fuzz: every reader, on many more
# damaged files than make test gives it.
PYTHON ?= python3
BIN = .venv/bin
# uv takes a third of pip's time. pip does it where uv cannot, as with an index of pip's own.
PIP = $(BIN)/python -m pip install --quiet --disable-pip-version-check
INSTALL = $(BIN)/uv pip install --quiet --compile-bytecode --python $(BIN)/python -r $(1) || $(PIP) -r $(1)
# Three workers, each with a file of tests at a time: two cores would often wait for a browser or a
# script that starts. BLAS threads of all would wait for each other.
PYTEST = OPENBLAS_NUM_THREADS=1 $(BIN)/python -m pytest -q -n 3 --dist loadfile --no-loadscope-reorder

.PHONY: listen demo test quick lint fuzz clean

FUZZ_INPUTS ?= 10000
LISTEN = $(BIN)/python generate.py --model pretrained --samples samples_listen
CHECK_PYTHON = import platform, sys; \
  v = sys.version_info; \
  ok = (3, 11) <= v < (3, 14) and (sys.platform, platform.machine()) != ("darwin", "x86_64"); \
  ok or sys.exit(f"TensorFlow has wheels for Python 3.11 to 3.13, and none for Intel Macs; this is \
Python {v[0]}.{v[1]} on {sys.platform} {platform.machine()}: try make PYTHON=python3.12")

listen: .venv/run
	$(LISTEN) sample 10
	$(LISTEN) compose 60
	$(LISTEN) loop 8
	$(LISTEN) continue docs/audio/recorded-1.ogg 10

demo: .venv/run
	$(BIN)/python preprocess.py
	$(BIN)/python train.py --resume
	$(BIN)/python generate.py

test: lint
	$(PYTEST)

quick: lint
	$(PYTEST) -m "not slow"

fuzz: .venv/dev
	FUZZ_INPUTS=$(FUZZ_INPUTS) $(BIN)/python -m pytest -q tests/test_fuzz.py

lint: .venv/dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

.venv/run: requirements.txt
	@$(PYTHON) -c '$(CHECK_PYTHON)'
	$(PYTHON) -m venv .venv
	-$(PIP) uv
	$(call INSTALL,requirements.txt)
	touch $@

.venv/dev: .venv/run requirements-dev.txt requirements-extra.txt
	$(call INSTALL,requirements-dev.txt)
	touch $@

clean:
	rm -rf .venv saved_data model samples samples_listen data/demo/audio data/demo/.audio.tmp
