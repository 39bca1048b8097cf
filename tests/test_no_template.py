"""A model without a chat template: texts need none, messages do."""

import json

import pytest
import small
from conftest import talk

ROWS = [{"text": f"The number {number} comes before {number + 1}."} for number in range(12)]
TEXT = {"formatter": "text", "masker": "all", "train": {"max_steps": 1, "save_strategy": "no"}}


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return str(small.model("smol", tmp_path_factory.mktemp("models")))


@pytest.fixture
def recipe(write, base):
    return lambda rows, **keys: write(rows, model={"name": base}, **keys)


def test_texts_are_trained_and_no_template_is_saved_with_the_model(recipe, sftrun, tmp_path):
    said = sftrun(recipe(ROWS, **TEXT), "--out", tmp_path / "run")
    assert said.code == 0, said.err
    assert (tmp_path / "run/model/tokenizer.json").is_file()
    assert not (tmp_path / "run/model/chat_template.jinja").exists()
    said = sftrun("chat", tmp_path / "run")
    assert said.code == 1
    assert "has no chat template to render messages with; it was trained on plain texts" in said.err


@pytest.mark.parametrize("command", ["prepare", "inspect", "run"])
def test_messages_are_refused_with_what_to_set(recipe, sftrun, tmp_path, command):
    out = [] if command == "inspect" else ["--out", tmp_path / "run"]
    said = sftrun(command, recipe([talk("1?", "2")]), *out)
    assert said.code == 1
    assert "recipe.yaml:" in said.err
    assert "has no chat template to render messages with; set model.chat_template to a .jinja file, or" in said.err
    assert not (tmp_path / "run/model").exists()


@pytest.mark.slow
def test_pairs_of_texts_can_be_answered_without_a_template(recipe, sftrun, tmp_path):
    rows = {"train": [{"prompt": "1, 2, ", "completion": "3"}] * 4, "val": [{"prompt": "4, 5, ", "completion": "6"}]}
    pairs = {**TEXT, "formatter": "prompt-completion", "masker": "completion"}
    said = sftrun(recipe(rows, **pairs), "--set", "evaluators=[generation]", "--out", tmp_path / "run")
    assert said.code == 0, said.err
    (sample,) = map(json.loads, (tmp_path / "run/eval/samples.jsonl").read_text().splitlines())
    assert sample["reference"] == "6"
