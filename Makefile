# make chat   train the embedded model on the shipped data, evaluate it, write a report
# make test   install what tests need and run them
# make check  what CI runs besides: lint, types, drift

PYTHON ?= python3
VENV ?= .venv
EXTRAS ?= train,bnb,eval,transforms,test,dev
CONSTRAINTS ?= constraints.txt
BIN = $(VENV)/bin

.PHONY: chat test check clean

chat: $(VENV)/.train
	$(BIN)/sftrun recipes/chat.yaml

test: $(VENV)/.test
	$(BIN)/python -m pytest -q -n 2 --dist loadfile $(PYTEST)

check: $(VENV)/.test
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/sftrun schema --builtin | diff - schemas/recipe.schema.json
	$(BIN)/sftrun validate recipes
	$(BIN)/python recipes/data/chat/make.py --check

# Two marks, so that a first run does not wait for what only tests need.
$(VENV)/.train: pyproject.toml $(CONSTRAINTS)
	test -d $(VENV) || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q -c $(CONSTRAINTS) -e '.[train]'
	touch $@

$(VENV)/.test: pyproject.toml $(CONSTRAINTS)
	test -d $(VENV) || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q -c $(CONSTRAINTS) -e '.[$(EXTRAS)]'
	touch $@

clean:
	rm -rf $(VENV) runs
