"""Rows that are left out are said: by inspect, by prepare, by a whole run and by its report."""

from conftest import talk

GOOD = talk("2+2?", "4")
SKIP = {"on_bad_row": "skip", "max_lost": 1}
LOST = "train: 2 of 3 rows are lost (1 dropped: empty answer, 1 dropped: bad row)"


def test_inspect_fails_if_no_row_is_left_to_show(sftrun, write, tmp_path):
    recipe = write([talk("q", ""), "{", talk("q", " ")], data=SKIP)
    for flags in ([], ["--json"], ["--shapes"], ["--html", str(tmp_path / "page.html")]):
        said = sftrun("inspect", recipe, *flags)
        assert said.code == 1
        assert "error: train has no row to show: 3 rows read; 2 dropped: empty answer, 1 dropped: bad row" in said.err
        assert "first: train.jsonl:1: message 1 (assistant) is empty" in said.err
    assert not (tmp_path / "page.html").exists()


def test_inspect_counts_the_rows_that_it_does_not_show(sftrun, write):
    said = sftrun("inspect", write([GOOD, talk("q", ""), GOOD], data=SKIP))
    assert said.code == 0
    assert "left out, of the rows read so far: 1 dropped: empty answer; first: train.jsonl:2: " in said.err


def test_inspect_says_why_a_transform_leaves_nothing(sftrun, write):
    transforms = [{"use": "filter", "with": {"min_turns": 5}}]
    said = sftrun("inspect", write([GOOD], transforms=transforms))
    assert said.code == 1
    assert "1 rows read; 1 filtered: " in said.err


def test_prepare_says_how_many_rows_are_lost_and_why(sftrun, write, tmp_path):
    recipe = write([GOOD, talk("q", ""), "{"], data=SKIP)
    for folder in ("first", "from-the-cache"):
        said = sftrun("prepare", recipe, "--out", tmp_path / folder)
        assert "  train: 3 rows read; 1 dropped: empty answer, 1 dropped: bad row" in said.err
        assert f"warning: {LOST}; first: " in said.err
        assert "data/train.jsonl:2: message 1 (assistant) is empty" in said.err


def test_a_split_without_rows_is_said(sftrun, write, tmp_path):
    recipe = write({"train": [GOOD], "val": [talk("q", "")]}, data=SKIP)
    said = sftrun("prepare", recipe, "--out", tmp_path / "out")
    assert "warning: val: 1 of 1 rows are lost" in said.err
    assert "warning: val has no row: nothing is evaluated on it" in said.err


def test_inspect_passes_on_warnings(sftrun, write):
    said = sftrun("inspect", write([GOOD], model={"eot_token": "<|im_end|>"}))
    assert "warning: model.eot_token has no effect" in said.err
    rows = [talk(f"{number}?", f"{number}!") for number in range(6)]
    said = sftrun("inspect", write(rows, source_options={"val_share": 0.05}))
    assert "1 of 6 rows are held out for validation" in said.err


def test_prepare_says_why_no_row_is_left(sftrun, write, tmp_path):
    said = sftrun("prepare", write([talk("q", "")], data=SKIP), "--out", tmp_path / "out")
    assert said.code == 1
    assert "error: no row to train on is left: 1 read, 1 dropped: empty answer" in said.err


def test_a_run_and_its_report_say_which_rows_are_lost(sftrun, write, tmp_path):
    said = sftrun(write([GOOD, talk("q", ""), "{"], data=SKIP, train={"max_steps": 1}), "--out", tmp_path / "out")
    assert said.code == 0, said.err
    assert LOST in said.err
    assert LOST in (tmp_path / "out" / "report.html").read_text()
