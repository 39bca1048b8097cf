"""The names of splits: which files of a folder are train, val and test, and that no pattern trains on the others."""

import itertools
import json

import pytest

import sftrun

# The name of the file of train, of val and of test, in one folder.
SPELLINGS = {
    "plain": ("train.jsonl", "val.jsonl", "test.jsonl"),
    "hash of the Hub": (
        "train-00000-of-00001-2a1df75c6bce91ab.jsonl",
        "validation-00000-of-00001-bf4c733542e35fcb.jsonl",
        "test-00000-of-00001-9f2c8f1f8ad5e1b2.jsonl",
    ),
    "split with a suffix": ("train_sft-00000-of-00001-a3ecf92756993583.jsonl", "val_sft.jsonl", "test_sft.jsonl"),
    "split with a prefix": ("alpaca_train.jsonl", "alpaca_dev.jsonl", "alpaca_test.jsonl"),
    "upper case": ("Train.jsonl", "Valid.jsonl", "TEST.jsonl"),
    "humps": ("alpacaTrain.jsonl", "alpacaVal.jsonl", "alpacaTest.jsonl"),
    "sets": ("trainset.jsonl", "devset.jsonl", "testset.jsonl"),
    "words": ("training.jsonl", "validation.jsonl", "evaluation.jsonl"),
    "dots": ("wiki.train.jsonl", "wiki.valid.jsonl", "wiki.test.jsonl"),
    "spaces": ("my train data.jsonl", "my val data.jsonl", "my test data.jsonl"),
    "folders": ("train_sft/0000.jsonl", "val_sft/0000.jsonl", "test_sft/0000.jsonl"),
    "parts": ("train-part1.jsonl", "val-part1.jsonl", "test-part1.jsonl"),
    "packed": ("train-00000-of-00001-2a1df75c6bce91ab.jsonl.gz", "val.jsonl.zst", "test.jsonl.gz"),
}


def fill(folder, *names):
    """Writes files with one row, which is the name of the file."""
    import pyarrow as pa

    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        codec = {".gz": "gzip", ".zst": "zstd"}.get((folder / name).suffix)
        line = json.dumps({"name": name}).encode()
        with pa.CompressedOutputStream(str(folder / name), codec) if codec else (folder / name).open("wb") as out:
            out.write(line + b"\n")
    return folder


def source(path, use="jsonl", **options):
    return sftrun.create("source", sftrun.Use(use=use, with_={"path": str(path), "val_share": 0, **options}))


def names(made, split="train"):
    return [row.data["name"] for row in made.rows(split)]


def said(made):
    return "\n".join(str(problem) for problem in made.check_machine(None))


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_a_folder_is_read_by_the_names_of_its_splits(tmp_path, spelling):
    train, val, test = SPELLINGS[spelling]
    made = source(fill(tmp_path, train, val, test))
    assert "error" not in said(made)
    assert [names(made, split) for split in ("train", "val", "test")] == [[train], [val], [test]]


@pytest.mark.parametrize("spelling", SPELLINGS)
@pytest.mark.parametrize("beside", ["train", "other"])
def test_no_pattern_trains_on_the_rows_of_val_or_test(tmp_path, spelling, beside):
    train, val, test = SPELLINGS[spelling]
    for number, held_out in enumerate([val, test]):
        folder = fill(tmp_path / str(number), train if beside == "train" else "rows.jsonl", held_out)
        suffix = ".jsonl*" if spelling == "packed" else ".jsonl"
        made = source(folder / "**" / f"*{suffix}")
        assert "error" in said(made), held_out
        with pytest.raises(sftrun.UserError, match="files of "):
            names(made)


@pytest.mark.parametrize(("one", "other"), [*itertools.combinations(["train", "val", "test"], 2)])
def test_texts_are_refused_if_their_names_differ_by_the_split_alone(tmp_path, one, other):
    fill(tmp_path, f"wiki.{one}.txt", f"wiki.{other}.txt")
    assert "files of several splits" in said(source(tmp_path / "*.txt", "text"))


def test_texts_about_tests_are_texts(tmp_path):
    fill(tmp_path, "docs/train-your-model.md", "docs/test_the_model.md", "docs/evaluation.md")
    assert said(source(tmp_path / "**" / "*.md", "text")) == ""


def test_a_pattern_for_files_of_one_held_out_split_alone_says_so(tmp_path):
    made = source(fill(tmp_path, "test-0.jsonl", "test-1.jsonl") / "test-*.jsonl")
    assert said(made).startswith("warning")
    assert "files of the split test only, and trains on them" in said(made)


def test_the_splits_of_train_and_test_have_the_same_label(tmp_path):
    made = source(fill(tmp_path, "train_sft.jsonl", "test_sft.jsonl", "test_gen.jsonl", "val.jsonl"))
    assert [names(made, split) for split in made.splits()] == [["train_sft.jsonl"], ["test_sft.jsonl"]]
    assert "warning: read: train_sft.jsonl as train; test_sft.jsonl as test" in said(made)
    assert "warning: not read: test_gen.jsonl, val.jsonl" in said(made)


@pytest.mark.parametrize(
    "files",
    [
        ("train_sft.jsonl", "train_gen.jsonl"),
        ("train_v1.jsonl", "train_v2.jsonl"),
        ("train-00000-of-00001-2a1df75c6bce91ab.jsonl", "train-00000-of-00001-bf4c733542e35fcb.jsonl"),
        ("train-1.jsonl", "training-2.jsonl", "trainset-3.jsonl", "train.jsonl"),
    ],
)
def test_several_files_that_could_be_train_are_refused(tmp_path, files):
    assert "could each be the split train" in said(source(fill(tmp_path, *files)))


def test_a_name_with_two_splits_is_none_of_them(tmp_path):
    made = source(fill(tmp_path, "train.jsonl", "train_test.jsonl"))
    assert names(made) == ["train.jsonl"]
    assert "warning: not read: train_test.jsonl" in said(made)


@pytest.mark.parametrize("other", ["test.jsonl", "alpaca_test.jsonl", "holdout.jsonl", "eval/rows.jsonl"])
def test_the_hint_for_a_folder_without_train_reads_no_test_rows(tmp_path, other):
    message = said(source(fill(tmp_path, "rows.jsonl", other)))
    assert "no train.jsonl" in message
    if "*" in message:
        assert source(tmp_path / "*.jsonl").layout.files == {"train": [tmp_path / "rows.jsonl"]}


def test_a_folder_of_a_folder_with_splits_is_suggested(tmp_path):
    fill(tmp_path, "README.md", "data/train-00000-of-00001.jsonl")
    assert f"did you mean {tmp_path / 'data'}?" in said(source(tmp_path))
