"""Tokens at the borders of trained texts: a lost first word is said, with the row and what to change."""

import json
from pathlib import Path

import pytest
from conftest import talk

from sftrun import tiny
from sftrun.data.asking import prompt_encoder
from sftrun.data.masks.template import Template, move_space
from sftrun.data.tokens.tokenizer import load_tokenizer
from sftrun.recipe.model import ModelOptions

SPACED = (
    "{% for m in messages %}{% if m.role == 'user' %}{{ 'User: ' + m.content + '\\n' }}"
    "{% else %}{{ 'Assistant: ' + m.content + eos_token + '\\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'Assistant: ' }}{% endif %}"
)
ONE_WORD = {"prompt": "Review: good film. Sentiment: ", "completion": "positive"}
TWO_WORDS = {"prompt": "Review: good film. Sentiment: ", "completion": "positive, negative"}
PLAIN = {"formatter": "prompt-completion", "masker": "completion"}


@pytest.fixture
def spaced(tmp_path: Path) -> str:
    """Returns a template whose generation prompt ends with a space."""
    file = tmp_path / "spaced.jinja"
    file.write_text(SPACED)
    return str(file)


def test_an_answer_that_loses_all_of_its_text_is_an_error_with_the_row_and_the_remedy(sftrun, write):
    said = sftrun("prepare", write([TWO_WORDS, ONE_WORD], **PLAIN))
    assert said.code == 1
    assert "train.jsonl:2: error: message 1 (completion): none of its text is trained" in said.err
    assert "into the token ' positive'; move the space from the end of the prompt" in said.err
    assert "model.space_to_answer: true" in said.err
    assert "train.jsonl:1" not in said.err


def test_such_a_row_can_be_skipped_and_is_in_the_ledger(sftrun, write, tmp_path):
    recipe = write([TWO_WORDS] * 9 + [ONE_WORD], **PLAIN, data={"on_bad_row": "skip"})
    assert sftrun("prepare", recipe, "--out", tmp_path / "run").code == 0
    (entry,) = map(json.loads, (tmp_path / "run/prepared/ledger.jsonl").read_text().splitlines())
    assert entry["action"] == "dropped"
    assert "none of its text is trained" in entry["detail"]


def test_lost_first_words_are_a_warning_with_their_number_and_the_first_row(sftrun, write, tmp_path):
    recipe = write([{"prompt": "x:\n", "completion": "y"}, TWO_WORDS, TWO_WORDS], **PLAIN)
    for _ in range(2):  # prepared, and from the cache
        said = sftrun("prepare", recipe)
        assert said.code == 0
        words = " ".join(said.err.split())
        assert "train: 2 rows lose the token at the border of a trained text" in words
        assert "train.jsonl:2: message 1 (completion): 'positive' is not trained" in words


def test_the_space_of_a_template_is_named_as_its_own(sftrun, write, spaced):
    said = sftrun("prepare", write([talk("Good?", "positive")], model={"chat_template": spaced}))
    assert said.code == 1
    assert "message 1 (assistant): none of its text is trained" in said.err
    assert "remove the space from the end of the template's generation prompt" in said.err


@pytest.mark.parametrize("rows", [[ONE_WORD, TWO_WORDS]])
def test_the_space_moves_to_a_completion(sftrun, write, rows):
    said = sftrun("inspect", write(rows, **PLAIN, model={"space_to_answer": True}))
    assert said.code == 0
    assert "Sentiment:⟦ positive<" in said.err
    assert "Sentiment:⟦ positive, negative<" in said.err


def test_the_space_moves_to_the_answers_of_a_template(sftrun, write, spaced):
    row = talk("Good?", "positive", "Bad?", "negative")
    said = sftrun("inspect", write([row, row], model={"chat_template": spaced, "space_to_answer": True}))
    assert said.code == 0
    assert "Assistant:⟦ positive<" in said.err
    assert "Assistant:⟦ negative<" in said.err


def test_a_model_is_asked_and_saved_without_the_space(spaced, tmp_path):
    moved = ModelOptions(name=tiny.NAME, chat_template=spaced, space_to_answer=True)
    tokenizer = load_tokenizer(moved)
    asked = [{"role": "user", "content": "Good?"}]
    assert tokenizer.decode(prompt_encoder(moved)(asked)) == "User: Good?\nAssistant:"
    (tmp_path / "model").mkdir()
    tokenizer.save(tmp_path / "model")
    saved = ModelOptions(name=str(tmp_path / "model"))
    assert prompt_encoder(saved)(asked) == prompt_encoder(moved)(asked)


@pytest.mark.parametrize("start", ["", "\n", "  ", "\n\n  {% if true %}\n  a\n  {% endif %}\n", "{#- x #}\n"])
@pytest.mark.parametrize("end", ["", "\n", "\n\n", " \n", "\n  "])
def test_a_template_with_moved_spaces_writes_the_same_texts(start, end):
    source = start + SPACED + end
    messages = [{"role": "user", "content": "a "}, {"role": "assistant", "content": " b"}]
    plain, moved = (Template(text, {"eos_token": "</s>"}) for text in (source, move_space(source)))
    assert moved.render(messages) == plain.render(messages)
    assert moved.render(messages, add_generation_prompt=True) == plain.render(
        messages, add_generation_prompt=True
    ).rstrip(" \t")


def test_a_masker_that_begins_inside_a_token_is_told_to_begin_before_the_space(sftrun, write):
    masker = {"use": "spans", "with": {"start": "It is ", "end_of_turn": False}}
    said = sftrun("prepare", write([talk("Good?", "It is positive")], masker=masker))
    assert said.code == 1
    assert "message 1 (assistant): none of its text is trained" in said.err
    assert "let the masker begin before the space" in said.err
