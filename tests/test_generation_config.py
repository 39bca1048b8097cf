"""Bases whose generation config transformers refuses to save, as Llama 2's: a temperature without sampling."""

import json

import pytest

import sftrun
from sftrun import tiny
from sftrun.errors import Interrupted
from sftrun.events import Step
from sftrun.recipe.model import ModelOptions
from sftrun.testing.bench import Bench
from sftrun.tools import shrink

pytestmark = pytest.mark.older

ODD = {"do_sample": False, "temperature": 0.9, "top_p": 0.6, "eos_token_id": 0, "pad_token_id": 0}
TRAIN = {
    "train.epochs": 2,
    "train.batch_size": 8,
    "train.logging_steps": 1,
    "train.save_strategy": "steps",
    "train.save_steps": 1,
    "train.eval_strategy": "no",
}


@pytest.fixture
def bench(tmp_path):
    tiny.save(tmp_path / "base", 0)
    (tmp_path / "base" / "generation_config.json").write_text(json.dumps(ODD))
    return Bench(sftrun.create("backend", "hf"), [f"model.name={tmp_path / 'base'}"], tmp_path)


def settings(folder):
    return json.loads((folder / "generation_config.json").read_text())


def test_it_is_trained_resumed_and_saved_with_its_settings_and_the_stop_tokens(bench):
    run = bench.prepared(TRAIN)
    with pytest.raises(Interrupted):
        bench.train(run, stop=lambda event: isinstance(event, Step))
    bench.train(run)
    assert settings(run.model) == {**settings(run.model), **ODD, "eos_token_id": [0, tiny.END_OF_TURN]}


def test_an_adapter_on_it_is_merged(bench):
    from sftrun.training.model import merge

    run = bench.trained({**TRAIN, "tuning.mode": "lora"}).run
    merge.merge(run.recipe(), run, None)
    merged = settings(run.export / "merged")
    assert merged == {**merged, **ODD, "eos_token_id": [0, tiny.END_OF_TURN]}


def test_a_rehearsal_has_the_same_generation_config(bench, tmp_path):
    shrink.save_tiny_model(tmp_path / "base", tmp_path / "small", 0, ModelOptions(name="./base"))
    assert settings(tmp_path / "small") == ODD
