"""Sources of files: what they read, where each row is said to come from, and what is said of what is wrong."""

import json

import pytest

import sftrun
from sftrun import testing

ROWS = [{"user": f"What is {number}?", "assistant": str(number), "n": number} for number in range(40)]


def source(use, path, **options):
    return sftrun.create("source", sftrun.Use(use=use, with_={"path": str(path), "val_share": 0, **options}))


def read(source, split="train"):
    return [row.data if isinstance(row, sftrun.Row) else row.reason for row in source.rows(split)]


def origins(source, split="train"):
    return [row.origin for row in source.rows(split)]


def refused(source, split="train"):
    with pytest.raises(sftrun.UserError) as caught:
        list(source.rows(split))
    return str(caught.value)


def said(source):
    return [str(problem) for problem in source.check_machine(None)]


def as_lines(rows):
    return "".join(json.dumps(row) + "\n" for row in rows)


def as_table(rows, delimiter=","):
    cells = [[f'"{value}"' if isinstance(value, str) else str(value) for value in row.values()] for row in rows]
    return "".join(delimiter.join(line) + "\n" for line in [list(rows[0]), *cells])


def put(file, text):
    """Writes a file, compressed as its name says."""
    import pyarrow as pa

    data = text if isinstance(text, bytes) else text.encode()
    file.parent.mkdir(parents=True, exist_ok=True)
    codec = {".gz": "gzip", ".zst": "zstd"}.get(file.suffix)
    with pa.CompressedOutputStream(str(file), codec) if codec else file.open("wb") as out:
        out.write(data)
    return file


def put_parquet(file, rows, **how):
    import pyarrow as pa
    from pyarrow import parquet

    file.parent.mkdir(parents=True, exist_ok=True)
    parquet.write_table(pa.Table.from_pylist(rows), str(file), **how)
    return file


TEXTS = {
    "jsonl": (".jsonl", as_lines(ROWS)),
    "json": (".json", json.dumps(ROWS, indent=1)),
    "csv": (".csv", as_table(ROWS)),
    "tsv": (".tsv", as_table(ROWS, "\t")),
    "text": (".txt", as_lines(ROWS)),
}
EXPECTED = {
    "csv": [{name: str(value) for name, value in row.items()} for row in ROWS],
    "text": [{"text": json.dumps(row)} for row in ROWS],
}
UNITS = {"text": {"unit": "line"}}


def expected(use):
    return EXPECTED.get("csv" if use == "tsv" else use, ROWS)


def filled(folder, use, **splits):
    """A folder with a file for each split, and the source that reads it."""
    suffix, text = TEXTS.get(use, (".parquet", ""))
    for name, packed in splits.items():
        file = folder / f"{name}{suffix}{packed}"
        put_parquet(file, ROWS) if use == "parquet" else put(file, text)
    return folder


@pytest.mark.parametrize("packed", ["", ".gz", ".zst"])
@pytest.mark.parametrize("use", TEXTS)
def test_a_file_is_read_as_it_is_also_where_it_is_compressed(tmp_path, use, packed):
    file = put(tmp_path / f"rows{TEXTS[use][0]}{packed}", TEXTS[use][1])
    made = source(use, file, **UNITS.get(use, {}))
    assert read(made) == expected(use)
    first = 2 if use in ("csv", "tsv") else 1
    assert origins(made)[:2] == [f"{file.name}:{first}", f"{file.name}:{first + 1}"]


@pytest.mark.parametrize("use", [*TEXTS, "parquet"])
@pytest.mark.parametrize("share", [0, 0.3])
def test_sources_of_files_keep_their_promises(tmp_path, use, share):
    folder = filled(tmp_path, use, train="", test="" if use == "parquet" else ".gz")
    testing.check_source(source(use, folder, val_share=share, **UNITS.get(use, {})))


@pytest.mark.parametrize("use", [*TEXTS, "parquet"])
def test_validation_rows_are_chosen_by_content_and_are_not_trained_on(tmp_path, use):
    suffix, text = TEXTS.get(use, (".parquet", ""))
    twice = tmp_path / f"twice{suffix}"
    if use == "parquet":
        put_parquet(twice, ROWS + ROWS)
    else:
        doubled = {"json": json.dumps(ROWS + ROWS), "csv": as_table(ROWS + ROWS), "tsv": as_table(ROWS + ROWS, "\t")}
        put(twice, doubled.get(use, text + text))
    made = source(use, twice, val_share=0.3, **UNITS.get(use, {}))
    train, val = read(made), read(made, "val")
    assert len(train) + len(val) == 2 * len(ROWS)
    assert 4 < len(val) < 40
    assert not [row for row in val if row in train]


def test_a_folder_has_a_file_a_folder_or_numbered_files_for_each_split(tmp_path):
    put(tmp_path / "train" / "a.jsonl", as_lines(ROWS[:2]))
    put(tmp_path / "train" / "more" / "a.jsonl.gz", as_lines(ROWS[2:3]))
    put(tmp_path / "train" / ".checkpoints" / "a.jsonl", as_lines(ROWS[:1]))
    put(tmp_path / "val-00001-of-00002.jsonl", as_lines(ROWS[4:5]))
    put(tmp_path / "val-00000-of-00002.jsonl", as_lines(ROWS[3:4]))
    put(tmp_path / "test.jsonl.zst", as_lines(ROWS[5:6]))
    made = source("jsonl", tmp_path)
    assert said(made) == []
    assert [read(made, split) for split in made.splits()] == [ROWS[:3], ROWS[3:5], ROWS[5:6]]
    assert origins(made) == ["train/a.jsonl:1", "train/a.jsonl:2", "train/more/a.jsonl.gz:1"]
    assert made.locate("train/a.jsonl:2") == str(tmp_path / "train/a.jsonl:2")
    testing.check_source(made)


def test_numbered_files_are_read_in_the_order_of_their_numbers(tmp_path):
    for number in (9, 10, 2):
        put(tmp_path / f"train-{number}.jsonl", as_lines(ROWS[number : number + 1]))
    assert origins(source("jsonl", tmp_path)) == ["train-2.jsonl:1", "train-9.jsonl:1", "train-10.jsonl:1"]


def test_a_pattern_reads_files_in_the_order_of_their_names(tmp_path):
    for number, name in enumerate(["b/rows.jsonl", "a/rows.jsonl", "a/other.jsonl", "a/.hidden.jsonl"]):
        put(tmp_path / name, as_lines(ROWS[number : number + 1]))
    made = source("jsonl", tmp_path / "**" / "*.jsonl")
    assert origins(made) == ["a/other.jsonl:1", "a/rows.jsonl:1", "b/rows.jsonl:1"]
    assert made.locate("a/rows.jsonl:1") == str(tmp_path / "a/rows.jsonl:1")
    testing.check_source(made)


FOLDERS = {
    "warning: validation.jsonl is read as the split val": ["train.jsonl", "validation.jsonl"],
    "warning: not read: valid.jsonl in": ["train.jsonl", "val.jsonl", "valid.jsonl"],
    "warning: not read: other.jsonl in": ["train.jsonl", "other.jsonl"],
    "error: dev.jsonl, valid.jsonl could each be the split val": ["train.jsonl", "dev.jsonl", "valid.jsonl"],
    "error: train.jsonl, train.jsonl.gz could each be the split train": ["train.jsonl", "train.jsonl.gz"],
    "error: train-1.jsonl, train-1.jsonl.gz, train-2.jsonl could each be": [
        "train-1.jsonl",
        "train-1.jsonl.gz",
        "train-2.jsonl",
    ],
    "error: of the 3 files of train, number 1 is missing": ["train-0-of-3.jsonl", "train-2-of-3.jsonl"],
    "warning: training.jsonl is read as the split train": ["training.jsonl"],
    "error: no train.jsonl in": ["rows.jsonl"],
    "; it has rows.jsonl; rename a file": ["rows.jsonl"],
    "; it has train.json; rename a file": ["train.json"],
}


@pytest.mark.parametrize("message", FOLDERS)
def test_what_a_folder_holds_is_not_guessed(tmp_path, message):
    for name in FOLDERS[message]:
        put(tmp_path / name, as_lines(ROWS[:1]))
    made = source("jsonl", tmp_path)
    assert message in "\n".join(said(made))
    if "error" in "\n".join(said(made)):
        refused(made)


def test_a_path_that_is_not_there_is_said_with_what_is(tmp_path):
    put(tmp_path / "rows.jsonl", "")
    assert said(source("jsonl", tmp_path / "row.jsonl"))[0].endswith(f"did you mean {tmp_path / 'rows.jsonl'}?")
    assert said(source("jsonl", tmp_path / "x" / "y.jsonl"))[0].endswith(f"{tmp_path} holds rows.jsonl")
    assert "no file matches" in said(source("jsonl", tmp_path / "*.json"))[0]


def test_a_pattern_that_would_train_on_test_rows_is_refused(tmp_path):
    for name in ("train.jsonl", "test.jsonl"):
        put(tmp_path / name, as_lines(ROWS[:1]))
    assert "matches files of several splits: test, train" in said(source("jsonl", tmp_path / "*.jsonl"))[0]


@pytest.mark.parametrize("packed", [".gz", ".zst"])
@pytest.mark.parametrize("use", TEXTS)
def test_a_compressed_file_that_is_cut_short_is_an_error_with_its_place(tmp_path, use, packed):
    file = put(tmp_path / f"rows{TEXTS[use][0]}{packed}", TEXTS[use][1])
    file.write_bytes(file.read_bytes()[:-20])
    message = refused(source(use, file, **UNITS.get(use, {})))
    assert message.startswith(f"{file}:")
    assert "cannot be read from here on: " in message
    assert "it is incomplete" in message


def test_a_file_that_is_not_what_its_name_says_is_an_error(tmp_path):
    (tmp_path / "rows.jsonl.gz").write_text("{}")
    assert "inflate failed" in refused(source("jsonl", tmp_path / "rows.jsonl.gz"))
    (tmp_path / "rows.parquet").write_text("{}")
    assert f"{tmp_path / 'rows.parquet'}: error: cannot be read: " in refused(
        source("parquet", tmp_path / "rows.parquet")
    )


@pytest.mark.parametrize("use", [*TEXTS, "parquet"])
def test_a_fingerprint_changes_with_any_byte_name_or_split(tmp_path, use):
    suffix = TEXTS.get(use, (".parquet", ""))[0]
    seen = {source(use, filled(tmp_path / "a", use, train="", val="")).fingerprint()}
    seen.add(source(use, filled(tmp_path / "b", use, train="")).fingerprint())
    seen.add(source(use, filled(tmp_path / "c", use, train="", test="")).fingerprint())
    changed = filled(tmp_path / "d", use, train="", val="") / f"val{suffix}"
    changed.write_bytes(changed.read_bytes()[:-1] + b"\t")
    seen.add(source(use, tmp_path / "d").fingerprint())
    assert len(seen) == 4
    assert source(use, filled(tmp_path / "e", use, train="", val="")).fingerprint() in seen


# What an option changes: rows and fingerprint.
OPTIONS = {
    "json: field": ('{"data": [{"a": 1}], "more": [{"a": 2}]}', {"field": "data"}, {"field": "more"}),
    "csv: columns": ("1,2\n3,4\n", {}, {"columns": ["q", "a"]}),
    "csv: delimiter": ("q,b;a\n1,2;2\n", {}, {"delimiter": ";"}),
    "csv: quoted": ('q,a\n"1",2\n', {}, {"quoted": False}),
    "csv: encoding": ("q,a\ncaf\xe9,1\n".encode("latin-1"), {}, {"encoding": "latin-1"}),
    "tsv: columns": ("1\t2\n3\t4\n", {}, {"columns": ["q", "a"]}),
    "tsv: delimiter": ("q\tb|a\n1\t2|2\n", {}, {"delimiter": "|"}),
    "tsv: quoted": ('q\ta\n"1"\t2\n', {}, {"quoted": False}),
    "tsv: encoding": ("q\ta\ncaf\xe9\t1\n".encode("utf-16"), {"encoding": "latin-1"}, {"encoding": "utf-16"}),
    "text: unit": ("One.\nTwo.\n\nThree.\n", {}, {"unit": "paragraph"}),
    "text: encoding": (b"caf\xe9\n", {}, {"encoding": "cp1252"}),
    "json: val_share": (json.dumps(ROWS), {}, {"val_share": 0.5}),
    "csv: val_share": (as_table(ROWS), {}, {"val_share": 0.5}),
    "tsv: val_share": (as_table(ROWS, "\t"), {}, {"val_share": 0.5}),
    "text: val_share": (as_lines(ROWS), {"unit": "line"}, {"unit": "line", "val_share": 0.5}),
}


@pytest.mark.parametrize("option", OPTIONS)
def test_an_option_changes_the_rows_and_the_fingerprint(tmp_path, option):
    text, before, after = OPTIONS[option]
    use = option.split(":")[0]
    first = source(use, put(tmp_path / "rows.txt", text), **before)
    second = source(use, tmp_path / "rows.txt", **after)
    assert read(first) != read(second)
    assert first.fingerprint() != second.fingerprint()
    assert not [row for row in read(second) if isinstance(row, str)]


@pytest.mark.parametrize("use", [*TEXTS, "parquet"])
def test_a_path_says_which_rows_are_read(tmp_path, use):
    for name, rows in {"a": ROWS[:1], "b": ROWS[1:2]}.items():
        file = tmp_path / f"{name}.rows"
        text = {"json": json.dumps(rows), "csv": as_table(rows), "tsv": as_table(rows, "\t")}.get(use, as_lines(rows))
        put_parquet(file, rows) if use == "parquet" else put(file, text)
    assert read(source(use, tmp_path / "a.rows")) != read(source(use, tmp_path / "b.rows"))
