# make demo: environment, demo set, features, model, sound.  make test: environment, lint, tests.
# make fuzz: every reader, on many more damaged files than make test gives it.
PYTHON ?= python3
BIN = .venv/bin

.PHONY: demo test lint fuzz clean

FUZZ_INPUTS ?= 10000

demo: .venv/run
	$(BIN)/python preprocess.py
	$(BIN)/python train.py
	$(BIN)/python generate.py

test: lint
	$(BIN)/python -m pytest -q -n 2 --dist loadfile

fuzz: .venv/dev
	FUZZ_INPUTS=$(FUZZ_INPUTS) $(BIN)/python -m pytest -q tests/test_fuzz.py

lint: .venv/dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

.venv/run: requirements.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.txt
	touch $@

.venv/dev: .venv/run requirements-dev.txt requirements-extra.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements-dev.txt
	touch $@

clean:
	rm -rf .venv saved_data model samples data/demo/audio
