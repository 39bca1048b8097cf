"""The backend and the exporter keep the promises of their kinds, on unsloth itself."""

import importlib
from pathlib import Path

import pytest

import sftrun
from sftrun import testing

pytestmark = [pytest.mark.unsloth, pytest.mark.timeout(600)]


@pytest.fixture(autouse=True)
def unsloth_first():
    importlib.import_module("sftrun_unsloth._first")  # before transformers


@pytest.mark.parametrize("mode", ["full", "lora", "qlora"])
def test_the_backend_keeps_its_promises(mode):
    testing.check_backend(sftrun.create("backend", "unsloth"), [f"tuning.mode={mode}"])


def test_the_exporter_keeps_its_promises(recipe: Path, tmp_path: Path):
    run = sftrun.prepare(recipe, ["tuning.mode=lora", "train.max_steps=2"], tmp_path / "run")
    training = sftrun.kinds.Training(recipe=run.recipe(), run=run, emit=run.event)
    sftrun.create("backend", "unsloth").train(training)
    testing.check_exporter(sftrun.create("exporter", "unsloth-merged"), run)
