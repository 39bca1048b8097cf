"""Rows that are almost JSON, and files that are not what their source reads: each is named as what it is."""

import json

import pytest
from test_sources import as_lines, put, read, refused, source

GOOD = {"messages": [{"role": "user", "content": "a: b"}]}
DEEP = b'{"a":' * 5000 + b"1" + b"}" * 5000

BAD = {
    b'{"a": {"b": [{"c: d": 1, "c: d": 2}]}}': "an object has the key 'c: d' twice, at column 26",
    b'{"a": "x:", "\\u0061": "y"}': "an object has the key 'a' twice, at column 13",
    b'{"a": "\\u003a", "a": ""}': "an object has the key 'a' twice",
    b'{"a": "NaN", "b": NaN}': "NaN is not JSON (write null or a text) at column 19",
    b'{"a": [-Infinity]}': "-Infinity is not JSON (write null or a text) at column 8",
    b'{"a": True}': "True is not JSON (write true) at column 7",
    b'{"n": 1e5, "a": 1e999}': "a number is too large at column 17",
    b"{'a': 'b'}": "single quotes; write it with json.dumps",
    b'{"a": [1, 2,]}': "a comma before the end of a list or object at column 12",
    b'{"a": "b\0"}': "the control character NUL (U+0000) stands unescaped in a text at column 9",
    b'{"a": "\\ud83d"}': "\\ud83d is half of a surrogate pair",
    b'{"a": "caf\xe9"}': "not UTF-8 text: it has the byte 0xe9, in cp1252 é at column 11",
    b"\0\0\0": "only NUL bytes",
    DEEP: "nested more than 200 deep",
    b'{"a":' * 250 + b"1" + b"}" * 250: "nested more than 200 deep",
}


@pytest.mark.parametrize("line", BAD, ids=range(len(BAD)))
def test_a_row_that_is_almost_json_is_named_as_what_it_is(tmp_path, line):
    good = as_lines([GOOD]).encode()
    seen = read(source("jsonl", put(tmp_path / "rows.jsonl", good + line + b"\n" + good)))
    assert [seen[0], seen[2]] == [GOOD, GOOD]
    assert BAD[line] in seen[1]


def test_equal_keys_of_different_objects_and_escapes_are_no_repetition(tmp_path):
    rows = [{"a": {"a": [{"a": 1}, {"a": 2}]}}, {"a": 'x ": "'}, {"a:": "\\u003a"}, {"n": 10**40}, {"a": "😀"}]
    assert read(source("jsonl", put(tmp_path / "rows.jsonl", as_lines(rows)))) == rows


ROWS = [GOOD, GOOD]
FILES = {
    "array": ("jsonl", json.dumps(ROWS), "is one JSON array, not one object a line; use the source json"),
    "array over lines": ("jsonl", json.dumps(ROWS, indent=1), "is one JSON array, not one object a line; use the"),
    "array a line": ("jsonl", "[\n{},\n{}\n]", "is one JSON array, not one object a line; use the source json"),
    "objects over lines": ("jsonl", json.dumps(GOOD, indent=1) * 2, "has objects over several lines, not one a line"),
    "lines": ("json", as_lines(ROWS), "the file has several objects, not one array; use the source jsonl"),
    "field": ("json", json.dumps({"n": [1], "data": ROWS}), "the file is one object, not an array; set field: data"),
    "one conversation": ("json", json.dumps({"messages": [{"role": 1}]}), "one object, not an array; write [ before"),
    "one object": ("json", '{"a": 1}', "the file is one object, not an array; write [ before it"),
    "utf-16": ("jsonl", as_lines(ROWS).encode("utf-16"), "the file is UTF-16, not UTF-8; convert it"),
    "utf-16 array": ("json", json.dumps(ROWS).encode("utf-16"), "the file is UTF-16, not UTF-8"),
    "utf-16 without mark": ("jsonl", as_lines(ROWS).encode("utf-16-be"), "the file is UTF-16 (big-endian) without"),
    "utf-32": ("csv", "a,b\n1,2\n".encode("utf-32"), "the file is UTF-32, not UTF-8"),
    "gzip": ("jsonl", b"\x1f\x8b\x08rows", "is compressed with gzip; let its name end in .gz"),
    "spreadsheet": ("csv", b"PK\x03\x04rows", "is a ZIP archive or a spreadsheet"),
    "pointer": ("jsonl", "version https://git-lfs.github.com/spec/v1\n", "is a Git LFS pointer, not the data"),
    "page": ("jsonl", "\n<!DOCTYPE html><html>", "is a web page, not the data"),
    "semicolons": ("csv", "user;assistant\n1;2\n", 'if these are several, set delimiter: ";"'),
    "tabs": ("csv", "user\tassistant\n", 'set delimiter: "\\t"'),
    "excel": ("csv", "sep=;\r\nuser;assistant\r\n", 'is for Excel: sep=;; remove it, set delimiter: ";"'),
}  # fmt: skip


@pytest.mark.parametrize("name", FILES)
def test_a_file_of_another_kind_is_one_message_that_names_it(tmp_path, name):
    use, text, message = FILES[name]
    said = refused(source(use, put(tmp_path / "rows.txt", text)))
    assert message in said
    assert "\n" not in said


def test_a_text_of_another_kind_is_a_bad_row(tmp_path):
    put(tmp_path / "a.txt", "Olá".encode("utf-16"))
    put(tmp_path / "b.txt", "b")
    assert read(source("text", tmp_path / "*.txt")) == [
        "is UTF-16, not UTF-8; convert it, for example with iconv -t utf-8",
        {"text": "b"},
    ]
    assert read(source("text", tmp_path / "a.txt", encoding="utf-16")) == [{"text": "Olá"}]


def test_lines_that_are_lists_are_bad_rows_and_cost_no_other(tmp_path):
    seen = read(source("jsonl", put(tmp_path / "rows.jsonl", json.dumps(ROWS) + "\n" + as_lines(ROWS))))
    assert seen == ["must be a JSON object, not a list", *ROWS]


def test_a_comma_after_the_last_object_of_an_array_is_named(tmp_path):
    seen = read(source("json", put(tmp_path / "rows.json", '[{"a": 1},\n]')))
    assert seen == [{"a": 1}, "no object stands between two commas, or after the last one"]
