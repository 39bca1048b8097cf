"""Validation rows that are held out by a hash: never too few, never all, and said."""

import json

import pytest
from conftest import talk

import sftrun


def split(folder, texts, share=0.05):
    file = folder / "rows.jsonl"
    file.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    source = sftrun.create("source", sftrun.Use(use="jsonl", with_={"path": str(file), "val_share": share}))
    train, val = ([row.data["text"] for row in source.rows(name)] for name in ("train", "val"))
    assert sorted(train + val) == sorted(texts)
    return train, val, [problem.message for problem in source.check_machine(None)]


def texts(count):
    return [f"text {number}" for number in range(count)]


@pytest.mark.parametrize(
    ("rows", "share", "held"),
    [(2, 0.05, 1), (4, 0.05, 1), (6, 0.05, 1), (10, 0.05, 2), (87, 0.05, 10), (6, 0.5, 3), (4, 0.99, 3), (20, 0.2, 4)],
)
def test_few_rows_have_enough_of_them_held_out(tmp_path, rows, share, held):
    _, val, said = split(tmp_path, texts(rows), share)
    assert len(val) == held
    assert [each.startswith(f"{held} of {rows} rows are held out") for each in said] == [True][: held > share * rows]


def test_many_rows_are_held_out_by_the_share_alone(tmp_path):
    _, val, said = split(tmp_path, texts(2000))
    assert 60 < len(val) < 140
    assert not said


@pytest.mark.parametrize("rows", [["a"], ["a"] * 6])
def test_the_only_row_is_trained_on(tmp_path, rows):
    train, val, said = split(tmp_path, rows)
    assert (train, val) == (rows, [])
    assert said[0].startswith("no row is held out for validation: there are too few different rows")


def test_equal_rows_stay_together(tmp_path):
    train, val, _ = split(tmp_path, texts(20) * 3)
    assert not set(train) & set(val)


def test_adding_a_row_moves_at_most_one(tmp_path):
    before = set(split(tmp_path, texts(60))[1])
    after = set(split(tmp_path, texts(61))[1])
    assert len(before ^ after) <= 2


def test_a_run_says_how_much_is_held_out(sftrun, write, tmp_path):
    rows = [talk(f"{number}?", f"{number}!") for number in range(6)]
    said = sftrun("prepare", write(rows, source_options={"val_share": 0.05}), "--out", tmp_path / "out")
    assert "1 of 6 rows are held out for validation" in said.err
    said = sftrun("prepare", write(rows[:1], source_options={"val_share": 0.05}), "--out", tmp_path / "one")
    assert said.code == 0
    assert "no row is held out for validation" in said.err


def test_a_source_of_a_mix_names_its_place(sftrun, write, tmp_path):
    recipe = write([talk(f"{number}?", f"{number}!") for number in range(6)])
    mix = {"use": "mix", "with": {"sources": [{"use": "jsonl", "with": {"path": str(tmp_path / "data/train.jsonl")}}]}}
    said = sftrun("prepare", recipe, "--set", f"source={json.dumps(mix)}", "--out", tmp_path / "out")
    assert "1 of 6 rows are held out" in said.err
