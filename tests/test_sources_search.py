"""The search for files: names with brackets, links that form circles, run directories, and paths that are no files."""

import json
import os
import socket

import pytest

import sftrun
from sftrun.runs.directory import find_latest


def fill(folder, *names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(json.dumps({"name": name}) + "\n")
    return folder


def source(path, use="jsonl"):
    return sftrun.create("source", sftrun.Use(use=use, with_={"path": str(path), "val_share": 0}))


def names(made):
    return [row.data["name"] for row in made.rows("train")]


def said(made):
    return "\n".join(str(problem) for problem in made.check_machine(None))


@pytest.mark.parametrize("name", ["[old] x", "a[1]", "what?", "all*", "[!a]", "[]"])
def test_a_folder_that_exists_is_taken_literally(tmp_path, name):
    fill(tmp_path / name, "train.jsonl", "a.jsonl", "[b].jsonl", "b.jsonl")
    fill(tmp_path / "a1", "wrong.jsonl")
    assert names(source(tmp_path / name)) == ["train.jsonl"]
    assert names(source(tmp_path / name / "a.jsonl")) == ["a.jsonl"]
    assert names(source(tmp_path / name / "[b].jsonl")) == ["[b].jsonl"]
    assert names(source(tmp_path / name / "?.jsonl")) == ["a.jsonl", "b.jsonl"]
    assert names(source(tmp_path / name / "**" / "t*.jsonl")) == ["train.jsonl"]


def test_a_folder_below_a_pattern_is_taken_literally(tmp_path):
    fill(tmp_path, "a/[x]/rows.jsonl", "a/x/rows.jsonl", "b/x/rows.jsonl")
    assert names(source(tmp_path / "*" / "[x]" / "*.jsonl")) == ["a/[x]/rows.jsonl", "b/x/rows.jsonl"]


def test_a_missing_file_of_a_folder_with_brackets_is_said_with_what_is_there(tmp_path):
    fill(tmp_path / "[x]", "rows.jsonl")
    assert said(source(tmp_path / "[x]" / "row.jsonl")).endswith(f"did you mean {tmp_path / '[x]' / 'rows.jsonl'}?")
    assert "no such file or folder" in said(source(tmp_path / "none" / "*.jsonl"))


def test_a_name_with_brackets_that_does_not_exist_is_a_pattern_and_said_to_be_one(tmp_path):
    fill(tmp_path, "part1.jsonl")
    message = f"{tmp_path / 'part[12].jsonl'} is read as a pattern, which matches part1.jsonl"
    assert message in said(source(tmp_path / "part[12].jsonl"))
    assert said(source(tmp_path / "part[1-9]*.jsonl")) == ""


def test_a_recipe_with_brackets_in_its_name_finds_its_latest_run(tmp_path):
    fill(tmp_path / "runs", "[a]-20260101-000000/lock.json", "a-20260101-000001/lock.json")
    assert find_latest(tmp_path / "[a].yaml", tmp_path / "runs").path.name == "[a]-20260101-000000"


def test_folders_are_read_once_though_links_lead_back_to_them(tmp_path):
    fill(tmp_path, "a/rows.jsonl", "b/more.jsonl")
    (tmp_path / "a" / "again").symlink_to(tmp_path)
    (tmp_path / "b" / "self").symlink_to(tmp_path / "b")
    assert names(source(tmp_path / "**" / "*.jsonl")) == ["a/rows.jsonl", "b/more.jsonl"]


@pytest.mark.parametrize("path", ["data/**/*.jsonl", "data"])
def test_a_linked_folder_is_read(tmp_path, path):
    fill(tmp_path, "elsewhere/rows.jsonl")
    (tmp_path / "data" / "train").mkdir(parents=True)
    (tmp_path / "data" / "train" / "linked").symlink_to(tmp_path / "elsewhere")
    assert names(source(tmp_path / path)) == ["elsewhere/rows.jsonl"]


@pytest.mark.parametrize("path", ["data/**/*.jsonl", "data"])
def test_a_run_directory_is_not_read_and_that_is_said(tmp_path, path):
    fill(tmp_path / "data" / "train", "rows.jsonl", "run/resolved.yaml", "run/events.jsonl", "run/prepared/l.jsonl")
    made = source(tmp_path / path)
    assert names(made) == ["rows.jsonl"]
    assert f"warning: not read: {tmp_path / 'data/train/run'}, made by sftrun run" in said(made)


def put_special(path, kind):
    if kind == "a pipe":
        os.mkfifo(path)
    elif kind == "a socket":
        with socket.socket(socket.AF_UNIX) as made:
            made.bind(str(path))
    elif kind == "a device":
        path.symlink_to("/dev/zero")
    else:
        path.symlink_to("nowhere")


@pytest.mark.parametrize("path", ["train.jsonl", "*.jsonl", "**/*.jsonl", "."])
@pytest.mark.parametrize("kind", ["a pipe", "a socket", "a device", "a broken link"])
def test_a_path_that_is_no_file_is_refused(tmp_path, kind, path):
    put_special(tmp_path / "train.jsonl", kind)
    fill(tmp_path, "rows.jsonl")
    made = source(tmp_path / path)
    expected = "no such file" if (kind, path) == ("a broken link", "train.jsonl") else f"train.jsonl is {kind}"
    assert expected in said(made)
    with pytest.raises(sftrun.UserError, match=expected):
        names(made)
    with pytest.raises(sftrun.UserError, match=expected):
        made.fingerprint()


@pytest.mark.parametrize("path", ["*.jsonl", "**/*.jsonl", "."])
def test_a_name_that_is_no_utf8_is_refused_and_can_be_printed(tmp_path, path):
    fill(tmp_path, "train.jsonl")
    try:
        (tmp_path / os.fsdecode(b"caf\xe9.jsonl")).write_text("{}\n")
    except OSError:
        pytest.skip("this file system takes only names in UTF-8")
    assert r"caf\udce9.jsonl has a name that is not UTF-8 text; rename it" in said(source(tmp_path / path))
    assert said(source(tmp_path / path)).encode()
    assert said(source(tmp_path / "x.jsonl")).encode()


def test_a_folder_that_cannot_be_read_is_an_error(tmp_path):
    fill(tmp_path, "a/rows.jsonl", "b/rows.jsonl")
    (tmp_path / "b").chmod(0)
    try:
        if os.access(tmp_path / "b", os.R_OK):
            pytest.skip("this user may read everything")
        assert "b cannot be read: Permission denied" in said(source(tmp_path / "**" / "*.jsonl"))
    finally:
        (tmp_path / "b").chmod(0o755)
