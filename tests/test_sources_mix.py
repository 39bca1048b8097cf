"""Source `mix`: several sources as one."""

import itertools
import json
import subprocess
import sys
from collections import Counter

import pytest
from conftest import talk
from hypothesis import given, settings
from hypothesis import strategies as st
from test_sources import as_lines, put, read

import sftrun
from sftrun import testing


def part(folder, name, **counts):
    """A source whose rows of each split say where they come from."""
    for split, count in counts.items():
        rows = [{"from": name, "split": split, "number": number} for number in range(count)]
        put(folder / name / f"{split}.jsonl", as_lines(rows))
    return {"use": "jsonl", "with": {"path": str(folder / name), "val_share": 0}}


def mix(*sources, **options):
    return sftrun.create("source", sftrun.Use(use="mix", with_={"sources": list(sources), **options}))


def counts(mixed, split="train"):
    return Counter(row["from"] for row in read(mixed, split))


@pytest.fixture
def parts(tmp_path):
    return part(tmp_path, "small", train=10, val=3), part(tmp_path, "large", train=60, val=5, test=4)


def test_without_weights_each_source_comes_once_one_after_another(parts):
    mixed = mix(*parts)
    assert [row["from"] for row in read(mixed)] == ["small"] * 10 + ["large"] * 60
    assert [row.origin for row in mixed.rows("train")][9:11] == ["0/train.jsonl:10", "1/train.jsonl:1"]
    assert mixed.splits() == ["train", "val", "test"]
    assert counts(mixed, "test") == {"large": 4}


@pytest.mark.parametrize(
    "options", [{}, {"weights": [1, 2]}, {"weights": [1, 2], "stopping": "first"}, {"weights": [5, 1], "seed": 3}]
)
def test_a_mix_keeps_the_promises_of_a_source(parts, options):
    testing.check_source(mix(*parts, **options))


def test_a_mix_of_mixes_keeps_the_promises_of_a_source(parts):
    inner = {"use": "mix", "with": {"sources": [parts[0]] * 2, "weights": [3, 1]}}
    testing.check_source(mix(inner, parts[1], weights=[4, 1]))


def test_small_sources_are_repeated_until_all_were_read_whole(parts):
    mixed = mix(*parts, weights=[1, 1])
    rows = list(mixed.rows("train"))
    found = Counter(row.data["from"] for row in rows)
    assert found["large"] == 60
    assert 40 < found["small"] < 80
    seen = Counter((row.data["from"], row.data["number"]) for row in rows)
    assert len(seen) == 70
    assert {number for (name, _), number in seen.items() if name == "large"} == {1}
    again = next(row for row in rows if row.origin.startswith("0#3/"))
    assert mixed.locate(again.origin) == mix(*parts).locate(again.origin.replace("#3", ""))
    assert rows[-1].data == {"from": "large", "split": "train", "number": 59}  # it ends with the last new row


def test_with_stopping_first_no_row_comes_twice(parts):
    rows = read(mix(*parts, weights=[1, 3], stopping="first"))
    assert 60 >= len(rows) == len({str(row) for row in rows}) >= 30
    assert max(Counter(row["from"] for row in rows).items()) == ("small", 10)


def test_rows_of_val_and_test_come_once_whatever_the_weights(parts):
    for stopping in ("all", "first"):
        mixed = mix(*parts, weights=[100, 1], stopping=stopping)
        assert counts(mixed, "val") == {"small": 3, "large": 5}
        assert counts(mixed, "test") == {"large": 4}


@given(
    st.lists(st.tuples(st.integers(0, 30), st.floats(0.1, 10)), min_size=1, max_size=4),
    st.sampled_from(["all", "first"]),
    st.integers(0, 5),
)
@settings(max_examples=40, deadline=None)
def test_every_mix_ends_and_has_each_row_or_stops_with_the_first(tmp_path_factory, sizes, stopping, seed):
    folder = tmp_path_factory.mktemp("mix")
    parts = [part(folder, str(index), train=size) for index, (size, _) in enumerate(sizes)]
    mixed = mix(*parts, weights=[weight for _, weight in sizes], stopping=stopping, seed=seed)
    rows = list(itertools.islice(mixed.rows("train"), 100_000))
    assert len({row.origin for row in rows}) == len(rows) < 100_000
    found = {name: len({row.data["number"] for row in rows if row.data["from"] == name}) for name in "0123"}
    whole = [found[str(index)] == size for index, (size, _) in enumerate(sizes) if size]
    assert all(whole) if stopping == "all" else any(whole) or not whole


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ({}, {"weights": [1, 1]}),
        ({"weights": [1, 1]}, {"weights": [2, 1]}),
        ({"weights": [1, 1]}, {"weights": [1, 1], "stopping": "first"}),
        ({"weights": [1, 1]}, {"weights": [1, 1], "seed": 1}),
    ],
    ids=["from-none", "weights", "stopping", "seed"],
)
def test_an_option_of_mix_changes_the_rows_and_the_fingerprint(parts, before, after):
    first, second = mix(*parts, **before), mix(*parts, **after)
    assert read(first) != read(second)
    assert first.fingerprint() != second.fingerprint()


def test_the_sources_of_a_mix_say_which_rows_there_are(parts):
    first, second = mix(*parts), mix(*reversed(parts))
    assert read(first) != read(second)
    assert first.fingerprint() != second.fingerprint()


def test_a_changed_row_of_any_source_changes_the_fingerprint(parts, tmp_path):
    before = mix(*parts).fingerprint()
    part(tmp_path, "small", val=4)
    assert mix(*parts).fingerprint() != before


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"weights": [1]}, "mix has 2 sources, but 1 weights; give each source one weight, in the same order"),
        ({"seed": 1}, "seed of mix has no effect without weights"),
        ({"stopping": "first"}, "stopping of mix has no effect without weights"),
        ({"sources": [{"use": "csv", "with": {"path": "x", "encoding": "utf-9"}}]}, "unknown encoding 'utf-9'"),
        ({"sources": [{"use": "jsonl", "with": {"pth": "x"}}]}, "unknown key 'pth'"),
        ({"sources": ["json1"]}, "unknown source 'json1'; did you mean 'json'"),
        ({"weights": [1, 0]}, "source.with.weights.1"),
    ],
)
def test_what_is_wrong_with_a_mix_is_said_by_validate(write, sftrun, options, message):
    two = [{"use": "jsonl", "with": {"path": "data"}}, {"use": "text", "with": {"path": "data/*.md"}}]
    report = sftrun("validate", write([], source={"use": "mix", "with": {"sources": two, **options}}))
    assert report.code == 1
    assert message in report.err + report.out


def test_what_is_missing_for_one_source_is_said_where_it_stands(write, sftrun, tmp_path):
    two = [{"use": "jsonl", "with": {"path": "data"}}, {"use": "jsonl", "with": {"path": "dta"}}]
    recipe = write([talk("a", "b")], source={"use": "mix", "with": {"sources": two}})
    line = next(n for n, text in enumerate(recipe.read_text().splitlines(), 1) if '"dta"' in text)
    report = sftrun("prepare", recipe, "--out", tmp_path / "out")
    assert report.code == 1
    assert f"recipe.yaml:{line}:" in report.err
    assert "no such file or folder" in report.err
    assert "did you mean" in report.err


def test_a_mix_is_prepared_with_the_origins_of_its_sources(write, sftrun, tmp_path):
    put(tmp_path / "more.csv", "user,assistant\nhi,ho\n")
    two = [
        {"use": "jsonl", "with": {"path": "data", "val_share": 0}},
        {"use": "csv", "with": {"path": "more.csv", "val_share": 0}},
    ]
    recipe = write([talk("a", "b")], source={"use": "mix", "with": {"sources": two}})
    assert "⟦ho<|im_end|>⟧" in sftrun("inspect", recipe, "--origin", "1/more.csv:2").err
    put(tmp_path / "more.csv", "user,assistant\nhi\n")
    report = sftrun("prepare", recipe, "--out", tmp_path / "out")
    assert f"{tmp_path / 'more.csv'}:2: error: has 1 field, but the table has 2 columns" in report.err


def test_one_source_after_another_is_open_not_all_at_once(tmp_path):
    sources = []
    for number in range(60):
        file = tmp_path / f"{number}.jsonl"
        file.write_text(f'{{"prompt": "{number}", "completion": "{number}"}}\n')
        sources.append({"use": "jsonl", "with": {"path": str(file), "val_share": 0}})
    (tmp_path / "sources.json").write_text(json.dumps(sources))
    code = (
        "import json, resource, sys, sftrun; resource.setrlimit(resource.RLIMIT_NOFILE, (40, 40)); "
        "mix = sftrun.create('source', sftrun.Use(use='mix', with_={'sources': json.load(open(sys.argv[1]))})); "
        "print(sum(1 for row in mix.rows('train')))"
    )
    words = [sys.executable, "-c", code, str(tmp_path / "sources.json")]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.stdout == "60\n", done.stderr
