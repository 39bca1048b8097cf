"""A worker process: its events reach the parent, and its end is explained."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from sftrun.errors import Interrupted, OutOfMemory, UserError
from sftrun.events import Custom
from sftrun.launch.failures import WorkerError
from sftrun.launch.workers import work
from sftrun.recipe.model import typed_recipe
from sftrun.recipe.resolved import resolved_yaml
from sftrun.runs.directory import RunDir


@pytest.fixture
def run(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))
    recipe = typed_recipe({"model": {"name": "sftrun/tiny"}, "source": "jsonl", "seed": 7})
    folder = RunDir(tmp_path)
    folder.write("resolved.yaml", resolved_yaml(recipe))
    return folder


def test_events_reach_the_parent(run):
    seen = []
    work("workers:report", run, seen.append)
    assert seen == [Custom(name="seed", data={"seed": 7})]


def test_what_the_user_can_fix_keeps_its_place_and_its_hint(run):
    with pytest.raises(UserError) as raised:
        work("workers:user_error", run, print)
    (problem,) = raised.value.problems
    assert (problem.message, problem.path, problem.hint) == ("too hot", ("train", "precision"), "cool it")


@pytest.mark.parametrize("how", ["memory", "allocator", "killed"])
def test_running_out_of_memory_is_explained_with_what_to_change(run, how):
    with pytest.raises(OutOfMemory, match=r"train\.batch_size"):
        work(f"workers:{how}", run, print)


def test_a_bug_comes_with_its_traceback(run):
    with pytest.raises(WorkerError, match="ZeroDivisionError: a bug of ours"):
        work("workers:bug", run, print)


def test_a_crash_comes_with_the_last_lines_of_the_log(run):
    with pytest.raises(WorkerError, match="a library's last words"):
        work("workers:crashed", run, print)


@pytest.mark.parametrize(("how", "signals"), [("waiting", 1), ("stubborn", 2)])
def test_a_signal_asks_the_worker_to_end_and_a_second_one_ends_it(run, how, signals):
    def watch(event):
        for number in (signal.SIGINT, signal.SIGTERM)[:signals]:
            os.kill(os.getpid(), number)

    started = time.monotonic()
    with pytest.raises(Interrupted):
        work(f"workers:{how}", run, watch)
    assert time.monotonic() - started < 30


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_that_is_told_twice_at_once_is_one(run, number):
    """As by `timeout`, and by the shell and the kernel where a terminal is closed."""

    def watch(event):
        os.kill(os.getpid(), number)
        if event == Custom(name="ready"):
            os.kill(os.getpid(), number)

    with pytest.raises(Interrupted):
        work("workers:tidy", run, watch)
    assert (run.path / "tidied").exists()


def test_a_terminal_that_is_closed_asks_the_worker_to_end_and_takes_no_more_words(run):
    """What is written to it fails, in the middle of the signal too."""
    heard = f"""
import os, pty, signal
from pathlib import Path
from sftrun.errors import Interrupted
from sftrun.launch.workers import work
from sftrun.runs.directory import RunDir
def watch(event):
    os.kill(os.getpid(), signal.SIGHUP)
master, slave = pty.openpty()
os.dup2(slave, 2)
os.close(slave)
os.close(master)
try:
    work("workers:tidy", RunDir(Path({str(run.path)!r})), watch)
except Interrupted:
    os.write(2, b"unseen")
"""
    done = subprocess.run([sys.executable, "-c", heard], timeout=60, check=False)
    assert (done.returncode, (run.path / "tidied").exists()) == (0, True)


def test_nohup_is_respected(run):
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        work("workers:report", run, lambda event: os.kill(os.getpid(), signal.SIGHUP))
    finally:
        signal.signal(signal.SIGHUP, before)


def test_signals_are_as_before_when_the_work_is_done(run):
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    work("workers:report", run, print)
    assert before == (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM))


def test_a_worker_that_stopped_in_order_was_interrupted(run):
    with pytest.raises(Interrupted):
        work("workers:stopped", run, print)


def test_a_full_disk_is_something_to_fix(run):
    with pytest.raises(UserError, match=r"No space left on device.*free some space on the disk, then sftrun resume"):
        work("workers:full_disk", run, print)


def test_a_disk_that_is_full_for_a_library_is_so_for_us(run):
    """safetensors has errors of its own."""
    with pytest.raises(UserError, match=r"os error 27\).*free some space on the disk"):
        work("workers:full_for_safetensors", run, print)


def test_a_folder_of_someone_else_is_something_to_fix(run):
    with pytest.raises(UserError, match=r"Read-only file system.*check who may write there"):
        work("workers:read_only", run, print)
