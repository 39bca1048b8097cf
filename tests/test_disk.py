"""Disks that fill up: what is half written goes, what was there stays, and the error says what to do."""

import errno
import os
import subprocess
import sys

import pytest

from sftrun import files
from sftrun.runs.directory import RunDir


def test_a_folder_is_there_when_all_of_it_is_written(tmp_path):
    with files.atomic_folder(tmp_path / "model") as making:
        (making / "inner").mkdir()
        (making / "inner/weights").write_text("1")
        assert not (tmp_path / "model").exists()
    assert (tmp_path / "model/inner/weights").read_text() == "1"
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_a_file_that_only_its_owner_may_read_is_as_readable_as_its_folder(tmp_path):
    with files.atomic_folder(tmp_path / "model") as making:
        (making / "weights").touch(mode=0o600)
    usual = tmp_path / "usual"
    usual.touch()
    assert (tmp_path / "model/weights").stat().st_mode == usual.stat().st_mode


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()])
def test_what_fails_leaves_the_folder_that_was_there_and_no_rest(tmp_path, error):
    (tmp_path / "model").mkdir()
    (tmp_path / "model/weights").write_text("old")

    def write():
        with files.atomic_folder(tmp_path / "model") as making:
            (making / "weights").write_text("half")
            raise error

    with pytest.raises(type(error)):
        write()
    assert (tmp_path / "model/weights").read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (OSError(errno.EDQUOT, "Disk quota exceeded"), "free some space"),
        (ValueError("I/O error: No space left on device (os error 28)"), "free some space"),
        (PermissionError(errno.EACCES, "Permission denied", "runs"), "check who may write there"),
        (FileNotFoundError(errno.ENOENT, "No such file or directory"), None),
    ],
)
def test_an_error_of_the_disk_is_told_from_a_bug(error, words):
    said = files.disk_advice(error)
    assert said is None if words is None else words in said


@pytest.mark.skipif(not os.path.isdir("/sys/kernel"), reason="no folder where not even root may write")
def test_a_place_where_nobody_may_write_is_no_bug(write, sftrun):
    said = sftrun(write([]), "--out", "/sys/run")
    assert said.code == 1
    assert "/sys/run" in said.err
    assert "check who may write there" in said.err


def test_an_event_that_the_disk_took_half_of_does_not_spoil_those_that_follow(tmp_path):
    run = RunDir(tmp_path)
    run.event({"event": "step", "step": 1})
    limit = (tmp_path / "events.jsonl").stat().st_size + 10
    filling = f"""
import resource
from pathlib import Path
from sftrun.runs.directory import RunDir
resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit}))
RunDir(Path({str(tmp_path)!r})).event({{"event": "step", "step": 2}})
"""
    done = subprocess.run([sys.executable, "-c", filling], capture_output=True, text=True, check=False)
    assert "No space left on device" in done.stderr
    run.event({"event": "step", "step": 3})
    assert [event["step"] for event in run.events()] == [1, 3]


def test_a_pipe_that_nobody_reads_does_not_end_what_is_shown(tmp_path):
    """As `sftrun recipe.yaml 2>&1 | head -1`."""
    showing = """
from sftrun.cli import progress
from sftrun.events import Eval
with progress.watcher() as watch:
    for step in range(3):
        watch(Eval(step=step, loss=1.0))
        input()
print("done")
"""
    process = subprocess.Popen(
        [sys.executable, "-c", showing],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert "step 0" in process.stderr.readline()
    process.stderr.close()
    assert process.communicate("\n\n\n", timeout=60)[0] == "done\n"
