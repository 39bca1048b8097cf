"""Commands that start at the same time: each has its own run directory or is refused, and no run is damaged."""

import subprocess
import sys
import threading

import pytest
from conftest import talk

from sftrun import UserError, load
from sftrun.flow import run
from sftrun.runs import directory
from sftrun.runs.directory import RunDir

ROWS = [talk(f"What comes after {number}?", str(number + 1)) for number in range(8)]
TRAIN = {"max_steps": 1, "save_strategy": "no", "eval_strategy": "no"}


@pytest.fixture
def recipe(write):
    return write(ROWS, tuning={"mode": "full"}, train=TRAIN)


@pytest.mark.slow
@pytest.mark.parametrize("words", [[], ["--resume"]], ids=["new", "resumed"])
def test_of_two_commands_with_one_folder_one_runs_and_the_other_is_refused(recipe, tmp_path, words):
    command = [sys.executable, "-m", "sftrun", recipe, "--out", tmp_path / "out", *words]
    sets = [["--set", f"seed={seed}"] for seed in (1, 2)]
    both = [subprocess.Popen([*command, *each], stderr=subprocess.PIPE, text=True) for each in sets]
    said = [each.communicate(timeout=120)[1] for each in both]
    (won,) = [number for number, each in enumerate(both) if each.returncode == 0]
    assert both[1 - won].returncode == 1
    assert str(tmp_path / "out") in said[1 - won]
    assert load(tmp_path / "out" / "resolved.yaml").seed == won + 1
    stages = [each for each in RunDir(tmp_path / "out").events() if each["event"] == "stage"]
    assert [each["stage"] for each in stages if each["status"] == "done"] == ["prepare", "train", "report"]


@pytest.mark.parametrize("resume", [False, True])
def test_files_that_another_process_is_writing_stay(recipe, tmp_path, monkeypatch, resume):
    monkeypatch.setattr("sftrun.runs.directory.PATIENCE", 0.1)
    begun = RunDir(tmp_path / "out")
    begun.write("resolved.yaml", "mine")
    with begun.locked(), pytest.raises(UserError, match=r"another process is using|is not empty"):
        run(recipe, out=begun.path, resume=resume)
    assert (begun.path / "resolved.yaml").read_text() == "mine"


def test_a_folder_of_a_command_that_was_killed_before_it_wrote_anything_counts_as_empty(recipe, tmp_path):
    with directory.create(recipe, tmp_path / "out").locked():
        pass
    with directory.create(recipe, tmp_path / "out").locked():
        pass


def test_runs_that_begin_in_the_same_second_have_their_own_folders(recipe, tmp_path):
    made = []
    together = [
        threading.Thread(target=lambda: made.append(directory.create(recipe, None, tmp_path).path)) for _ in "12345678"
    ]
    for each in together:
        each.start()
    for each in together:
        each.join()
    assert len({path.name for path in made}) == len(together)
