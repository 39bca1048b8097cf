"""Rows with images, videos or audio: refused by every formatter, because only text is trained."""

import pytest
from conftest import talk

import sftrun
from sftrun import RowError

MEDIA = {"images": ["a.png"], "image": {"bytes": None, "path": "a.png"}, "videos": ["v.mp4"], "audio": "a.wav"}
NOTHING = ([], None, "", {"bytes": None, "path": None}, [None])
ROWS = {
    "chat": (talk("<image> What is it?", "A cat."), {}),
    "alpaca": ({"instruction": "<image> What is it?", "output": "A cat."}, {}),
    "prompt-completion": ({"prompt": "<image>", "completion": "A cat."}, {}),
    "text": ({"text": "<image> A cat."}, {}),
    "columns": ({"q": "<image>", "a": "A cat."}, {"user": "{q}", "assistant": "{a}"}),
}


def formatted(use, row, options):
    return sftrun.create("formatter", sftrun.Use(use=use, with_=options)).format(sftrun.Row(row, "a:1"))


@pytest.mark.parametrize("use", ROWS)
@pytest.mark.parametrize("column", MEDIA)
def test_a_row_with_media_is_refused_by_every_formatter(use, column):
    row, options = ROWS[use]
    with pytest.raises(RowError, match=f"^has {column}, but only text is trained.*; remove the column") as caught:
        formatted(use, {**row, column: MEDIA[column]}, options)
    assert caught.value.reason == "not only text"


@pytest.mark.parametrize("use", ROWS)
@pytest.mark.parametrize("value", NOTHING)
def test_a_row_without_media_may_have_the_column(use, value):
    row, options = ROWS[use]
    assert formatted(use, {**row, "images": value}, options)


@pytest.mark.parametrize("use", ROWS)
@pytest.mark.parametrize(
    "value", [b"\x89PNG", {"bytes": b"\x89PNG", "path": None}, {"array": [0.1], "sampling_rate": 1}]
)
def test_media_are_recognised_in_columns_of_any_name(use, value):
    row, options = ROWS[use]
    with pytest.raises(RowError, match=r"^has picture, but only text is trained"):
        formatted(use, {**row, "picture": value}, options)
    assert formatted(use, {**row, "source": {"path": "a.txt"}, "id": 7}, options)


def test_a_column_that_is_read_as_text_is_no_image():
    assert formatted("columns", {"image": "A cat.", "a": "b"}, {"user": "{image}", "assistant": "{a}"})
    assert formatted("text", {"image": "A cat."}, {"field": "image"})


def test_the_place_of_the_row_is_said(sftrun, write, tmp_path):
    rows = [talk("q", "a"), {**talk("<image>", "a"), "images": ["a.png"]}]
    said = sftrun("prepare", write(rows), "--out", tmp_path / "out")
    assert said.code == 1
    assert "data/train.jsonl:2: error: has images, but only text is trained" in said.err
