"""Bases whose tokenizer names no pad or EOS token, or one that tokenizer.json does not have."""

import json

import pytest

import sftrun
from sftrun import tiny
from sftrun.events import Warned
from sftrun.testing.bench import Bench

pytestmark = pytest.mark.older

TRAIN = {"train.max_steps": 1, "train.batch_size": 4, "train.save_strategy": "no", "train.eval_strategy": "no"}


@pytest.fixture
def trained(tmp_path):
    """Trains on the embedded model, with other special tokens in tokenizer_config.json."""
    tiny.save(tmp_path / "base", 0)

    def train(**special):
        (tmp_path / "base" / "tokenizer_config.json").write_text(json.dumps(special))
        bench = Bench(sftrun.create("backend", "hf"), [f"model.name={tmp_path / 'base'}"], tmp_path)
        return bench.trained(TRAIN)

    return train


def special_warnings(attempt):
    return [event.message for event in attempt.of(Warned) if "tokenizer_config.json" in event.message]


def test_a_tokenizer_without_pad_and_eos_token_is_trained_with(trained):
    attempt = trained(tokenizer_class="PreTrainedTokenizerFast")
    assert attempt.run.model.is_dir()
    assert not special_warnings(attempt)


def test_a_pad_token_that_no_id_stands_for_is_named_and_not_written_to_the_model(trained):
    attempt = trained(tokenizer_class="PreTrainedTokenizerFast", pad_token="[PAD]", eos_token="<|im_end|>")
    (message,) = special_warnings(attempt)
    assert message.startswith("pad_token '[PAD]' of tokenizer_config.json is not in tokenizer.json")
    written = json.loads((attempt.run.model / "config.json").read_text()).get("pad_token_id")
    assert written in (tiny.PADDING, None)  # transformers 5.17 removes the one of the base
