"""Answers that must not be trained as they are: empty ones, in every formatter."""

import json

import pytest
from conftest import talk

GOOD = talk("2+2?", "4")
PAIR = {"prompt": [{"role": "user", "content": "q"}], "completion": [{"role": "assistant", "content": ""}]}
BLANK_PART = talk("q", [{"type": "text", "text": " "}])
COLUMNS = {"use": "columns", "with": {"user": "{q}", "assistant": "{a}"}}


def lost(folder):
    lines = (folder / "prepared/ledger.jsonl").read_text().splitlines()
    return [(entry["origin"], entry["action"], entry["reason"]) for entry in map(json.loads, lines)]


@pytest.mark.parametrize(
    ("formatter", "row", "good"),
    [
        ("chat", talk("q", ""), GOOD),
        ("chat", talk("q", "  \n"), GOOD),
        ("chat", talk("q", "\u200b\ufeff"), GOOD),
        ("chat", talk("q", "", "again", "r"), GOOD),
        ("chat", talk("q", None), GOOD),
        ("chat", BLANK_PART, GOOD),
        ("alpaca", {"instruction": "q", "output": " "}, {"instruction": "q", "output": "r"}),
        ("alpaca", {"instruction": "q", "output": None}, {"instruction": "q", "output": "r"}),
        (
            "alpaca",
            {"instruction": "q", "output": "r", "history": [["q", ""]]},
            {"instruction": "q", "output": "r", "history": []},
        ),
        ("prompt-completion", {"prompt": "q", "completion": "\n"}, {"prompt": "q", "completion": "r"}),
        ("prompt-completion", PAIR, {**PAIR, "completion": [{"role": "assistant", "content": "r"}]}),
        ("text", {"text": "\u200b"}, {"text": "r"}),
        (COLUMNS, {"q": "q", "a": ""}, {"q": "q", "a": "r"}),
        (COLUMNS, {"q": "q", "a": None}, {"q": "q", "a": "r"}),
    ],
)
def test_an_empty_answer_is_a_bad_row_with_every_formatter(sftrun, write, tmp_path, formatter, row, good):
    masker = {"text": "all", "prompt-completion": "completion"}.get(str(formatter), "assistant")
    recipe = write([good, row], formatter=formatter, masker=masker)
    said = sftrun("prepare", recipe, "--out", tmp_path / "stops")
    assert said.code == 1
    assert "data/train.jsonl:2: error: " in said.err
    more = ["--set", "data.on_bad_row=skip", "--set", "data.max_lost=1"]
    said = sftrun("prepare", recipe, *more, "--out", tmp_path / "skips")
    assert "train: 1 rows dropped: empty answer" in said.err
    assert lost(tmp_path / "skips") == [("train.jsonl:2", "dropped", "empty answer")]


def test_an_empty_answer_that_is_not_trained_may_stay(sftrun, write):
    rows = [talk("q", "", "again", "r")]
    assert sftrun("inspect", write(rows, masker="last-reply"), "--json").code == 0
    rows[0]["messages"][1]["train"] = False
    assert sftrun("inspect", write(rows, masker="flagged"), "--json").code == 0


def test_an_answer_with_reasoning_alone_is_not_empty(sftrun, write, tmp_path):
    template = "{% for m in messages %}<{{ m.role }}>{{ m.reasoning_content }}|{{ m.content }}<|im_end|>{% endfor %}"
    (tmp_path / "thinks.jinja").write_text(template + "{% if add_generation_prompt %}<assistant>{% endif %}")
    rows = [{"messages": [GOOD["messages"][0], {"role": "assistant", "content": "", "reasoning_content": "Sum."}]}]
    said = sftrun("inspect", write(rows, model={"chat_template": str(tmp_path / "thinks.jinja")}), "--json")
    assert said.code == 0, said.err
    assert "Sum." in said.out


def test_a_transform_that_empties_an_answer_is_noticed(sftrun, write, tmp_path):
    redact = {"use": "redact", "with": {"patterns": {"all": "secret"}, "replacement": ""}}
    said = sftrun("prepare", write([GOOD, talk("q", "secret")], transforms=[redact]), "--out", tmp_path / "out")
    assert "train.jsonl:2: error: message 1 (assistant) is empty" in said.err
