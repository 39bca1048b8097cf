"""Ends of turns that rows bring along, and dates that templates write."""

import datetime
import json

import pytest
from conftest import talk

from sftrun import tiny

CHATML = (tiny.folder() / "chat_template.jinja").read_text("utf-8")
END = "<|im_end|>"


def inspected(said):
    assert said.code == 0, said.err
    return [json.loads(line)["text"] for line in said.out.splitlines()]


@pytest.mark.parametrize(
    ("formatter", "masker", "row", "ended"),
    [
        ("text", "all", {"text": "One."}, {"text": f"One.{END}"}),
        ("text", "all", {"text": "One."}, {"text": f"One.{END}{END}\n"}),
        (
            "prompt-completion",
            "completion",
            {"prompt": "a", "completion": "b"},
            {"prompt": "a", "completion": f"b{END}"},
        ),
        ("chat", "assistant", talk("a", "b", "c", "d"), talk("a", f"b{END}", "c", f"d{END}\n")),
        ("alpaca", "assistant", {"instruction": "a", "output": "b"}, {"instruction": "a", "output": f"b {END}"}),
    ],
)
def test_an_answer_that_has_its_end_already_has_it_once(sftrun, write, tmp_path, formatter, masker, row, ended):
    recipe = write([row, ended], formatter=formatter, masker=masker)
    texts = inspected(sftrun("inspect", recipe, "--json"))
    assert texts[1].replace(f" {END}", END) == texts[0]
    said = sftrun("prepare", recipe, "--out", tmp_path / "out")
    assert "train: 1 rows changed: end of turn removed from an answer, which had two" in said.err


def test_an_end_in_the_middle_of_a_text_stays(sftrun, write):
    recipe = write([{"text": f"One.{END}Two."}], formatter="text", masker="all")
    assert inspected(sftrun("inspect", recipe, "--json"))[0].count(END) == 2


def test_an_answer_that_is_only_an_end_is_empty(sftrun, write):
    said = sftrun("inspect", write([talk("a", END)]), "--json")
    assert "train.jsonl:1: error: message 1 (assistant) is empty" in said.err


def dated(tmp_path, source):
    (tmp_path / "dated.jinja").write_text(source + CHATML)
    return {"chat_template": str(tmp_path / "dated.jinja")}


def test_a_template_that_writes_the_date_is_named(sftrun, write, tmp_path):
    recipe = write([talk("a", "b")], model=dated(tmp_path, "{{ strftime_now('%d %b %Y') }}"))
    today = datetime.date.today().isoformat()
    for folder in ("made", "from-the-cache"):
        said = sftrun("prepare", recipe, "--out", tmp_path / folder)
        assert f"warning: the chat template writes today's date, {today}, into the rows" in said.err
        assert "to fix it, set model.chat_template to a copy of the template with one date" in said.err
    said = sftrun("prepare", recipe, "--set", f"expect_mask={'0' * 64}", "--out", tmp_path / "expected")
    assert f"the chat template writes the date, {today} today, so every day has another mask" in said.err


def test_a_date_that_the_rows_do_not_show_is_not_named(sftrun, write, tmp_path):
    asks = "{% set date = date_string if date_string is defined else strftime_now('%d %b %Y') %}"
    hides = dated(tmp_path, asks)
    assert (
        "today's date" not in sftrun("prepare", write([talk("a", "b")], model=hides), "--out", tmp_path / "hides").err
    )
    shows = write([talk("a", "b")], model=dated(tmp_path, asks + "{{ date }}"))
    said = sftrun("prepare", shows, "--out", tmp_path / "shows")
    assert "fix it with template_kwargs: {date_string: …} of the formatter chat" in said.err
    chat = {"use": "chat", "with": {"template_kwargs": {"date_string": "26 Jul 2024"}}}
    said = sftrun("prepare", shows, "--set", f"formatter={json.dumps(chat)}", "--out", tmp_path / "fixed")
    assert said.code == 0
    assert "today's date" not in said.err


@pytest.mark.parametrize("messages", [[3], [{}], [{"role": "assistant"}], [{"role": "assistant", "content": None}], []])
def test_malformed_messages_of_a_plugin_are_bad_rows(monkeypatch, sftrun, write, messages):
    from sftrun.builtin.formatters import chat
    from sftrun.types import Conversation

    monkeypatch.setattr(chat.Chat, "format", lambda self, row: Conversation(messages, row.origin))
    said = sftrun("inspect", write([talk("a", "b")]), "--json")
    assert said.code == 1
    assert "train.jsonl:1: error: " in said.err
