"""Large rows and bombs: what is too large is named, and memory stays bounded."""

import gzip
import json
import subprocess
import sys

import pyarrow as pa
import pytest
from conftest import talk
from hypothesis import given, settings
from hypothesis import strategies as st
from pyarrow import parquet

SMALL = [talk(f"q {number}", f"a {number}") for number in range(30)]
MIB = 1 << 20


def words(size):
    return ("the quick brown fox jumps over a lazy dog " * (size // 42 + 1))[: size - 1] + "."


@pytest.fixture
def prepare(tmp_path):
    """Prepares a recipe in a process of its own; returns its exit code, its messages, and its peak memory in MiB."""

    def run(source, rows_at="data", **keys):
        recipe = {
            "model": {"name": "sftrun/tiny", "max_seq_len": 2048, **keys.pop("model", {})},
            "source": {"use": source, "with": {"path": rows_at, "val_share": 0, **keys.pop("options", {})}},
            **keys,
        }
        (tmp_path / "recipe.yaml").write_text(json.dumps(recipe))
        program = (
            "import re, sys; from sftrun.cli.main import run; code = run(sys.argv[1:]); "
            "peak = re.search(r'VmHWM:\\s*(\\d+)', open('/proc/self/status').read())[1]; "
            "print('peak', int(peak) // 1024, file=sys.stderr); sys.exit(code)"
        )
        words = [sys.executable, "-c", program, "prepare", "recipe.yaml", "--out", "out"]
        said = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, check=False)
        text, _, peak = said.stderr.rpartition("peak ")
        return said.returncode, said.stdout + text, int(peak)

    return run


def with_row(row):
    return "".join(json.dumps(each) + "\n" for each in [*SMALL, row])


@pytest.mark.parametrize("policy", ["drop", "error"])
def test_a_row_that_begins_too_long_is_not_tokenized_as_a_whole(prepare, tmp_path, policy):
    (tmp_path / "data.jsonl").write_text(with_row(talk("write", words(10 * MIB))))
    code, said, peak = prepare("jsonl", "data.jsonl", data={"on_too_long": policy, "max_lost": 1})
    assert (code, peak < 500) == (0 if policy == "drop" else 1, True), said
    expected = "more than 2048 tokens in 10,485,8"
    assert expected in (said if policy == "error" else (tmp_path / "out/prepared/ledger.jsonl").read_text())


def test_a_row_of_few_tokens_for_its_size_is_kept(prepare, tmp_path):
    (tmp_path / "data.txt").write_text("a" + "<|im_start|>" * 150_000 + "b")
    code, said, _ = prepare("text", "data.txt", formatter="text", masker="all", model={"max_seq_len": 200_000})
    assert code == 0, said
    assert json.loads((tmp_path / "out/prepared/stats.json").read_text())["train"]["rows"] == 1


def test_a_text_that_is_too_large_to_be_cut_is_named(prepare, tmp_path):
    (tmp_path / "data.txt").write_text(words(50 * MIB))
    data = {"on_too_long": "split"}
    code, said, peak = prepare("text", "data.txt", formatter="text", masker="all", data=data)
    assert (code, peak < 700) == (1, True), (said, peak)
    assert "data.txt:1: error: has 52,428,810 characters, and no row of more than 8,388,608 is tokenized" in said


BOMBS = {
    "a line": ("jsonl", "data.jsonl.gz", b'{"text": "', {}, "data.jsonl.gz:1: error: a row has more than 64 MiB"),
    "an element": ("json", "data.json.gz", b'[{"text": "', {}, "an element has more than 64 MiB"),
    "a field": ("csv", "data.csv.gz", b"text\n", {}, "data.csv.gz:2: error: a row has more than 64 MiB"),
    "a text": ("text", "data.txt.gz", b"", {}, "data.txt.gz: error: a row has more than 64 MiB"),
    "a paragraph": ("text", "data.txt.gz", b"", {"unit": "paragraph"}, "data.txt.gz:1: error: a row has more than"),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", BOMBS)
def test_a_compressed_file_that_grows_without_end_is_not_read_into_memory(prepare, tmp_path, name):
    source, file, start, options, expected = BOMBS[name]
    with gzip.open(tmp_path / file, "wb", compresslevel=1) as out:
        out.write(start)
        for _ in range(400):
            out.write(b"a" * MIB)
    code, said, peak = prepare(source, file, formatter="text", masker="all", options=options)
    assert (code, peak < 600) == (1, True), (said, peak)
    assert expected in said


def test_a_line_that_is_too_large_is_skipped_like_any_bad_row(prepare, tmp_path):
    with (tmp_path / "data.jsonl").open("w") as out:
        for row in SMALL[:10]:
            out.write(json.dumps(row) + "\n")
        out.write("a" * (130 * MIB) + "\n")
        for row in SMALL[10:]:
            out.write(json.dumps(row) + "\n")
    code, said, peak = prepare("jsonl", "data.jsonl", data={"on_bad_row": "skip"})
    assert (code, peak < 500) == (0, True), (said, peak)
    (entry,) = map(json.loads, (tmp_path / "out/prepared/ledger.jsonl").read_text().splitlines())
    assert (entry["origin"], entry["action"]) == ("data.jsonl:11", "dropped")
    assert json.loads((tmp_path / "out/prepared/stats.json").read_text())["train"]["rows"] == 30


def test_parquet_reads_fewer_large_rows_at_a_time(prepare, tmp_path):
    table = pa.table({"text": pa.array([words(2 * MIB)] * 100)})
    parquet.write_table(table, tmp_path / "data.parquet")  # 2 MB on the disk, as the values are equal
    code, said, peak = prepare("parquet", "data.parquet", formatter="text", masker="all", data={"max_lost": 1})
    assert (code, peak < 500) == (1, True), (said, peak)
    assert "100 read, 100 dropped: too long" in said


@pytest.mark.parametrize("length", [2**31 - 1, 2**32, 0])
def test_a_length_that_no_model_has_is_refused(write, sftrun, length):
    said = sftrun("validate", write(SMALL, model={"max_seq_len": length}))
    assert said.code == 1
    assert "max_seq_len" in said.err


def test_tokens_of_a_huge_text_are_counted_piece_by_piece(prepare, tmp_path):
    (tmp_path / "data.jsonl").write_text(with_row(talk("write", words(10 * MIB))))
    transforms = [{"use": "filter", "with": {"max_tokens": 1000}}]
    code, said, peak = prepare("jsonl", "data.jsonl", transforms=transforms)
    assert (code, peak < 500) == (0, True), (said, peak)
    (entry,) = map(json.loads, (tmp_path / "out/prepared/ledger.jsonl").read_text().splitlines())
    assert (entry["action"], entry["origin"]) == ("filtered", "data.jsonl:31")


@settings(deadline=None)
@given(st.text(alphabet="ab \n", max_size=400), st.integers(20, 60))
def test_pieces_of_a_text_are_the_text(text, size):
    from sftrun.data.tokens import tokenizer

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tokenizer, "PIECE", size)
        pieces = list(tokenizer._cut(text))
    assert "".join(pieces) == text
    assert all(0 < len(piece) <= size for piece in pieces[:-1])
