# make chat   train the embedded model on the shipped data, evaluate it, write a report
# make test   install what tests need and run them
# make check  what CI runs besides: lint, types, drift
# make unsloth  the tests of plugins/sftrun-unsloth, which needs an environment of its own

PYTHON ?= python3
VENV ?= .venv
UNSLOTH ?= .venv-unsloth
EXTRAS ?= train,bnb,deepspeed,eval,transforms,wandb,mlflow,trackio,test,dev
CONSTRAINTS ?= constraints.txt
BIN = $(VENV)/bin

.PHONY: chat test check unsloth clean

chat: $(VENV)/.train
	$(BIN)/sftrun recipes/chat.yaml

test: $(VENV)/.test
	$(BIN)/python -m pytest -q -n 2 --dist loadfile $(PYTEST)

check: $(VENV)/.test
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	MYPYPATH=plugins/sftrun-unsloth $(BIN)/mypy -p sftrun_unsloth
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

unsloth: $(UNSLOTH)/.test
	cd plugins/sftrun-unsloth && OMP_NUM_THREADS=1 ../../$(UNSLOTH)/bin/python -m pytest -q

# unsloth asks for the certifi of the very day, hence --no-deps; constraints-unsloth.txt has all that it needs.
$(UNSLOTH)/.test: pyproject.toml constraints-unsloth.txt plugins/sftrun-unsloth/pyproject.toml
	test -d $(UNSLOTH) || $(PYTHON) -m venv $(UNSLOTH)
	$(UNSLOTH)/bin/python -m pip install -q -c constraints-unsloth.txt -e '.[train,bnb]' -e 'plugins/sftrun-unsloth[test]'
	$(UNSLOTH)/bin/python -m pip install -q --no-deps -c constraints-unsloth.txt unsloth unsloth_zoo
	touch $@

clean:
	rm -rf $(VENV) $(UNSLOTH) runs
