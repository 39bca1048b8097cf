"""Source `huggingface`: folders that datasets saved, rows that arrive one by one."""

import datasets
import pytest
from test_sources import as_lines, put, read, refused

import sftrun
from sftrun import testing

ROWS = [{"user": f"What is {number}?", "assistant": str(number), "nested": {"a": [number]}} for number in range(2500)]


def source(name, **options):
    return sftrun.create("source", sftrun.Use(use="huggingface", with_={"name": str(name), **options}))


@pytest.fixture
def saved(tmp_path):
    both = {"train": datasets.Dataset.from_list(ROWS), "held": datasets.Dataset.from_list(ROWS[:5])}
    datasets.DatasetDict(both).save_to_disk(str(tmp_path / "saved"))
    return tmp_path / "saved"


@pytest.fixture
def folder(tmp_path):
    """A folder as the Hub has them."""
    put(tmp_path / "folder" / "train.jsonl", as_lines(ROWS[:50]))
    put(tmp_path / "folder" / "test.jsonl", as_lines(ROWS[50:60]))
    return tmp_path / "folder"


def test_a_saved_dataset_is_read_with_its_splits_and_slices(saved):
    made = source(saved, train="train[10:]", val="train[:10]", test="held")
    assert [read(made, split) for split in made.splits()] == [ROWS[10:], ROWS[:10], ROWS[:5]]
    assert next(made.rows("val")).origin == "train[:10]:1"
    testing.check_source(made)
    assert list(made.check_machine(None)) == []


def test_a_fingerprint_is_that_of_rows_and_splits(saved):
    seen = [source(saved, train="train[:9]", **{split: "held"}).fingerprint() for split in ("val", "val", "test")]
    assert seen[0] == seen[1] != seen[2]


def test_one_saved_split_is_read_as_it_is_whatever_its_format(tmp_path):
    datasets.Dataset.from_list(ROWS).with_format("numpy").save_to_disk(str(tmp_path / "one"))
    assert read(source(tmp_path / "one")) == ROWS


def test_a_split_that_a_saved_dataset_lacks_is_an_error(saved):
    assert "(split dev) cannot be loaded: Unknown split" in refused(source(saved, train="dev"))


@pytest.mark.parametrize("streaming", [False, True])
def test_one_folder_of_a_dataset_can_be_named(tmp_path, streaming):
    for number, language in enumerate(("python", "ruby")):
        put(tmp_path / "stack" / "data" / language / "data.json", as_lines([{"content": "", "number": number}]))
    one, other = (
        source(tmp_path / "stack", data_dir=f"data/{name}", streaming=streaming) for name in ("python", "ruby")
    )
    assert (read(one)[0]["number"], read(other)[0]["number"]) == (0, 1)
    assert one.fingerprint() != other.fingerprint()
    assert len(read(source(tmp_path / "stack"))) == 2


def test_a_streamed_dataset_has_the_same_rows(folder):
    whole = source(folder, test="test")
    streamed = source(folder, test="test", streaming=True)
    assert read(streamed) == read(whole) == ROWS[:50]
    assert [row.origin for row in streamed.rows("test")] == [row.origin for row in whole.rows("test")]
    testing.check_source(streamed)


def test_a_streamed_dataset_is_not_loaded_and_its_fingerprint_knows_its_files(folder):
    streamed = source(folder, streaming=True)
    first = next(streamed.rows("train"))
    assert first.data == ROWS[0]
    assert isinstance(streamed.loaded["train"], datasets.IterableDataset)
    others = [source(folder), source(folder, streaming=True, test="test")]
    seen = {each.fingerprint() for each in (streamed, *others)}
    put(folder / "train.jsonl", as_lines(ROWS[1:50]))
    seen.add(source(folder, streaming=True).fingerprint())
    assert len(seen) == 4


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"streaming": True, "val": "train[:10]"},
            "streaming cannot read the slice train[:10] as val; use whole splits",
        ),
        ({"val": "train"}, "train and val are the same rows: train; use different slices of it"),
    ],
)
def test_what_cannot_be_read_is_said_by_validate(write, sftrun, options, message):
    said = sftrun("validate", write([], source={"use": "huggingface", "with": {"name": "me/data", **options}}))
    assert said.code == 1
    assert message in said.err + said.out


@pytest.mark.parametrize("option", [{"revision": "main"}, {"config": "one"}, {"data_dir": "data"}, {"streaming": True}])
def test_an_option_without_effect_on_a_saved_folder_is_an_error(saved, option):
    (name,) = option
    assert [problem.message for problem in source(saved, **option).check_machine(None)] == [
        f"{name} has no effect on the folder {saved}"
    ]


def test_a_folder_that_is_not_there_is_said_with_what_is(saved):
    (problem,) = source(saved.parent / "svaed").check_machine(None)
    assert problem.hint == f"did you mean {saved}?"


@pytest.mark.parametrize("streaming", [False, True])
def test_a_folder_with_brackets_in_its_name_is_taken_literally(folder, streaming):
    renamed = folder.rename(folder.parent / "[old] what?*")
    made = source(renamed, test="test", streaming=streaming)
    assert (read(made), read(made, "test")) == (ROWS[:50], ROWS[50:60])
    testing.check_source(made)
    (renamed / "README.md").write_text("---\nconfigs: [{config_name: default, data_files: train.jsonl}]\n---\n")
    assert "its README.md names the files" in refused(source(renamed, streaming=streaming))


def test_a_saved_folder_with_brackets_in_its_name_is_taken_literally(saved):
    assert read(source(saved.rename(saved.parent / "[a] b*"), train="held")) == ROWS[:5]
