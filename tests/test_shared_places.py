"""Places that are shared, missing or damaged: streams, run directories, recipes of one name, the base."""

import subprocess
import sys
from pathlib import Path

import pytest
from conftest import talk

from sftrun import tiny
from sftrun.runs import directory
from sftrun.runs.directory import RunDir

ROWS = [talk("1?", "2")]


@pytest.mark.parametrize("closed", [">&-", "<&-", "2>&-", ">&- 2>&- <&-"])
def test_a_closed_stream_is_no_bug(closed):
    done = subprocess.run(
        ["sh", "-c", f'exec "$0" -m sftrun plugins {closed}', sys.executable],
        stderr=subprocess.PIPE,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_of_two_commands_on_a_fresh_folder_the_second_is_told_to_wait(write, sftrun, tmp_path):
    recipe, out = write(ROWS), tmp_path / "out"
    out.mkdir()
    with RunDir(out).locked():
        (out / "resolved.yaml").write_text("")  # the first has begun to write
        said = sftrun("prepare", recipe, "--out", out)
        assert said.code == 1
        assert f"another process is using {out}; wait until it ends, or name another --out" in said.err
        assert "remove" not in said.err
    assert "is not empty; name another --out, or remove it" in sftrun("prepare", recipe, "--out", out).err


def test_resume_finds_no_run_of_another_recipe_with_the_same_name(write, sftrun, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    recipe = write(ROWS)
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "chat.yaml").write_text(recipe.read_text().replace('"data"', '"../data"'))
    assert sftrun("prepare", "a/chat.yaml").code == 0
    (run,) = (tmp_path / "runs").glob("chat-2*")
    for recipe_file, found in (("a/chat.yaml", run), (tmp_path / "a/chat.yaml", run), ("b/chat.yaml", None)):
        newest = directory.find_latest(Path(recipe_file))
        assert (newest.path if newest else None) == found
    said = []
    (tmp_path / "runs/chat-latest").symlink_to(run.name)
    sftrun("prepare", "b/chat.yaml")
    (other,) = set((tmp_path / "runs").glob("chat-2*")) - {run}
    directory.point_latest(RunDir(other), said.append)
    assert [event.message for event in said] == [
        "chat-latest was a run of a/chat.yaml; from now on it is one of b/chat.yaml"
    ]


def test_resuming_removes_what_a_kill_left_unfinished(tmp_path):
    run = RunDir(tmp_path)
    for name in (
        ".model.0123abcd/weights",
        ".state.json.4711",
        "export/.merged.0123abcd/x",
        ".mine/x",
        "export/kept.txt",
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("")
    run.mend()
    assert sorted(path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_file()) == [
        ".mine/x",
        "export/kept.txt",
    ]


def test_overrides_of_the_environment_are_recorded(write, sftrun, tmp_path, monkeypatch):
    monkeypatch.setenv("SFTRUN_SET__SEED", "3")
    assert sftrun("prepare", write(ROWS), "--set", "train.epochs=2", "--out", tmp_path / "out").code == 0
    lock = RunDir(tmp_path / "out").read_json("lock.json")
    assert lock["overrides"] == ["train.epochs=2", "SFTRUN_SET__SEED=3"]
    assert lock["made_of"]["overrides"] == lock["overrides"]


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json"])
def test_a_cut_file_of_the_base_is_one_message(write, sftrun, tmp_path, name):
    base = tmp_path / "base"
    base.mkdir()
    for each in tiny.TOKENIZER_FILES:
        text = (tiny.folder() / each).read_bytes()
        (base / each).write_bytes(text[: len(text) // 2] if each == name else text)
    said = sftrun("prepare", write(ROWS, model={"name": "./base"}), "--out", tmp_path / "out")
    assert said.code == 1
    assert said.err.count("error: ") == 1
    assert f"{name} cannot be read: " in said.err
    assert "fetch or save the file again" in said.err


@pytest.mark.parametrize("out", ["file", "file/below", "broken/below"])
def test_a_run_directory_below_a_file_is_one_message(write, sftrun, tmp_path, out):
    (tmp_path / "file").write_text("")
    (tmp_path / "broken").symlink_to("nowhere")
    said = sftrun("prepare", write(ROWS), "--out", tmp_path / out)
    assert said.code in (1, 2)
    assert "is not a folder" in said.err or "is a file" in said.err
    assert "Traceback" not in said.err


def test_runs_that_is_a_file_is_one_message(write, sftrun, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").write_text("")
    said = sftrun("prepare", write(ROWS))
    assert said.code == 1
    assert "no run directory can be made at runs: runs is not a folder; name another --out" in said.err
