"""What is right and wrong in files of each format, and that a large one is not read into memory."""

import json
import tracemalloc
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_sources import as_lines, put, put_parquet, read, refused, source

import sftrun
from sftrun.builtin.sources import _array

SHARED = Path(__file__).parents[2] / "shared" / "data"
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@given(st.lists(st.dictionaries(st.text(), JSON), max_size=5), st.booleans(), st.integers(1, 40), st.booleans())
@settings(max_examples=30, deadline=None)
def test_an_array_of_any_objects_is_read_exactly_however_it_is_written(tmp_path_factory, rows, spaced, block, inside):
    whole = {"about": [{"rows": [1]}], "rows": rows, "count": 1} if inside else rows
    text = json.dumps(whole, indent=1 if spaced else None, ensure_ascii=spaced)
    file = tmp_path_factory.mktemp("array") / "rows.json"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_array, "BLOCK", block)  # tokens end up on both sides of blocks
        file.write_text(text, "utf-8")
        assert read(source("json", file, field="rows" if inside else None)) == rows
        file.write_text(text[:-1], "utf-8")
        assert "not valid JSON: the file ends" in refused(source("json", file, field="rows" if inside else None))


def test_a_row_of_an_array_that_is_wrong_costs_no_other(tmp_path):
    file = put(tmp_path / "rows.json", '[{"a": 1}, {"a": 01}, 7, {"a": [1,]}, {"a": 2}\n]\n')
    made = source("json", file)
    seen = read(made)
    assert [seen[0], seen[4]] == [{"a": 1}, {"a": 2}]
    assert seen[1].startswith("not valid JSON: ")
    assert seen[2] == "must be a JSON object, not a int"
    assert seen[3].startswith("not valid JSON: ")
    assert made.locate("rows.json:4") == f"{file}, row 4"


BROKEN = {
    "": ":1: error: not valid JSON: the file is empty",
    '{"a": 1}\n{"a": 2}\n': ":1: error: the file has several objects, not one array; use the source jsonl",
    "7": ":1: error: not valid JSON: the file holds no array of objects",
    '[\n{"a": 1},\n{"a": [2}\n]': ":3: error: not valid JSON: a } closes nothing",
    '[\n{"a": 1},\n{"a": "2}\n]': ":3: error: not valid JSON: a string is not closed",
    '[\n{"a": 1},\n{"a": 2': ":3: error: not valid JSON: the file ends within the array",
    '[{"a": 1}]\n]': ":2: error: not valid JSON: something follows after the end",
    '[{"a": 1}] [{"a": 2}]': ":1: error: not valid JSON: something follows after the end",
}


@pytest.mark.parametrize("text", BROKEN)
def test_an_array_that_breaks_off_is_an_error_with_its_line(tmp_path, text):
    file = put(tmp_path / "rows.json", text)
    assert refused(source("json", file)).startswith(f"{file}{BROKEN[text]}")


def test_a_field_that_is_not_there_is_said_with_those_that_are(tmp_path):
    file = put(tmp_path / "rows.json", '{"version": "1", "rows": [{"a": 1}], "meta": {"data": []}}')
    assert "no array in the field 'data'; the object has rows, meta" in refused(source("json", file, field="data"))
    put(file, "[]")
    assert "the file is an array, not an object with a field; remove field" in refused(
        source("json", file, field="data")
    )


def test_a_table_is_text_with_quotes_over_several_lines(tmp_path):
    text = '\ufeffuser,assistant,n\r\n"one, ""two""\r\nthree",,007\r\n\r\ncafé,null,1e3\r\n'
    made = source("csv", put(tmp_path / "rows.csv", text))
    assert read(made) == [
        {"user": 'one, "two"\r\nthree', "assistant": "", "n": "007"},
        {"user": "café", "assistant": "null", "n": "1e3"},
    ]
    assert [row.origin for row in made.rows("train")] == ["rows.csv:2", "rows.csv:5"]
    assert made.locate("rows.csv:5") == str(tmp_path / "rows.csv:5")


def test_a_record_of_a_table_that_is_wrong_costs_no_other(tmp_path):
    lines = [b"q,a", b"1", b"1,2,3", b'"1"2,3', b"caf\xe9,1", b"x\0,1", b"q,a", b"1,2"]
    made = source("csv", put(tmp_path / "rows.csv", b"\n".join(lines)))
    assert read(made) == [
        "has 1 field, but the table has 2 columns",
        "has 3 fields, but the table has 2 columns",
        "not valid CSV: ',' expected after '\"'",
        "is not UTF-8 text: it has the byte 0xe9, in cp1252 é; set encoding",
        "contains a NUL character: it is not text, or in another encoding",
        {"q": "q", "a": "a"},
        {"q": "1", "a": "2"},
    ]
    assert [row.origin for row in made.rows("train")] == [f"rows.csv:{line}" for line in range(2, 9)]


def test_a_very_long_field_is_read(tmp_path):
    made = source("csv", put(tmp_path / "rows.csv", f"q,a\n{'x' * 300_000},1\n"))
    assert len(read(made)[0]["q"]) == 300_000


TABLES = {
    "": ":1: error: the header is missing: the file is empty",
    "q,q\n1,2\n": ":1: error: the header names 'q' twice; rename one of the two columns",
    'q,a\n1,2\n"3,4\n5,6\n': ":3: error: the quote opened here is never closed; close it, or double it",
}


@pytest.mark.parametrize("text", TABLES)
def test_a_table_that_cannot_be_told_apart_is_an_error_with_its_line(tmp_path, text):
    file = put(tmp_path / "rows.csv", text)
    assert refused(source("csv", file)).startswith(f"{file}{TABLES[text]}")


def test_a_header_is_not_taken_for_a_row_where_columns_are_named(tmp_path):
    file = put(tmp_path / "rows.csv", "q,a\n1,2\n")
    assert "this line is the header; remove the option columns" in refused(source("csv", file, columns=["q", "a"]))


@pytest.mark.parametrize(
    ("use", "options", "message"),
    [
        ("csv", {"encoding": "utf-9"}, "unknown encoding 'utf-9'"),
        ("text", {"encoding": "base64"}, "unknown encoding 'base64'"),
        ("csv", {"delimiter": '"'}, "the delimiter must not be a quote"),
        ("csv", {"columns": ["a", "b", "a"]}, "columns names 'a' twice"),
    ],
)
def test_an_option_that_cannot_be_is_said_before_a_file_is_read(write, sftrun, use, options, message):
    said = sftrun("validate", write([], source={"use": use, "with": {"path": "rows.txt", **options}}))
    assert said.code == 1
    assert message in said.out + said.err


def test_texts_are_files_paragraphs_or_lines(tmp_path):
    put(tmp_path / "notes" / "a.md", "# One\r\n\r\nTwo\r\n  three\r\n\r\n\r\nFour")
    put(tmp_path / "b.md", "\ufeffFive\n")
    cuts = {
        "file": {"b.md:1": "Five\n", "notes/a.md:1": "# One\n\nTwo\n  three\n\n\nFour"},
        "paragraph": {
            "b.md:1": "Five",
            "notes/a.md:1": "# One",
            "notes/a.md:3": "Two\n  three",
            "notes/a.md:7": "Four",
        },
        "line": {
            "b.md:1": "Five",
            "notes/a.md:1": "# One",
            "notes/a.md:3": "Two",
            "notes/a.md:4": "  three",
            "notes/a.md:7": "Four",
        },
    }
    for unit, expected in cuts.items():
        made = source("text", tmp_path / "**" / "*.md", unit=unit)
        assert {row.origin: row.data["text"] for row in made.rows("train")} == expected
        sftrun.testing.check_source(made)


def test_a_file_that_is_no_text_is_a_bad_row(tmp_path):
    put(tmp_path / "a.md", b"caf\xe9")
    put(tmp_path / "b.md", b"\x89PNG\0")
    put(tmp_path / "c.md", " \n")
    assert read(source("text", tmp_path / "*.md")) == [
        "is not UTF-8 text: it has the byte 0xe9, in cp1252 é; set encoding",
        "contains a NUL character: it is not text, or in another encoding",
        "the file is empty",
    ]


def test_parquet_reads_the_columns_that_are_named_in_batches(tmp_path):
    rows = [{"user": str(number), "nested": {"a": [number, None]}, "x": number / 3} for number in range(2500)]
    file = put_parquet(tmp_path / "train-00000-of-00001.parquet", rows, row_group_size=700)
    assert read(source("parquet", tmp_path)) == rows
    some = source("parquet", file, columns=["nested"])
    assert read(some) == [{"nested": row["nested"]} for row in rows]
    assert some.fingerprint() != source("parquet", file).fingerprint()
    assert some.locate("train-00000-of-00001.parquet:17") == f"{file}, row 17"
    message = refused(source("parquet", file, columns=["usr"]))
    assert message == f"{file}: error: the file has no column usr; did you mean user?"


def test_what_parquet_cannot_be_read_as_is_an_error(tmp_path):
    file = put_parquet(tmp_path / "rows.parquet", [{"a": str(number)} for number in range(5000)])
    data = bytearray(file.read_bytes())
    data[100:2000] = bytes(1900)
    file.write_bytes(data)
    assert refused(source("parquet", file)).startswith(f"{file}: error: cannot be read: ")


@pytest.mark.parametrize("use", ["jsonl", "json", "csv", "text", "parquet"])
def test_a_large_file_is_read_in_little_memory(tmp_path, use):
    rows = [{"text": f"{number} " + "word " * 200} for number in range(20_000)]  # 20 MB
    lines = {"csv": "text\n" + "".join(f"{row['text']}\n" for row in rows), "json": json.dumps(rows)}
    file = tmp_path / "rows"
    put_parquet(file, rows, row_group_size=1000) if use == "parquet" else put(file, lines.get(use, as_lines(rows)))
    made = source(use, file, **({"unit": "line"} if use == "text" else {}))
    next(iter(made.rows("train")))  # what is imported on first use is not counted
    tracemalloc.start()
    count = sum(1 for _ in made.rows("train"))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert count == len(rows)
    assert peak < 8e6


@pytest.mark.skipif(not SHARED.exists(), reason="needs ../shared/data")
def test_real_files_are_read_whole():
    counts = {
        ("json", "demos/alpaca_en_demo.json"): 999,
        ("json", "demos/glaive_toolcall_en_demo.json"): 300,
        ("json", "demos/identity.json"): 91,
        ("jsonl", "gsm8k"): 7473,
        ("jsonl", "chat52k.jsonl.gz"): 52_002,
    }
    for (use, name), count in counts.items():
        assert sum(isinstance(row, sftrun.Row) for row in source(use, SHARED / name).rows("train")) == count
