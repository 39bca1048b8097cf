"""Worker processes: their events reach the parent, and their failures are explained."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from sftrun.errors import Interrupted, OutOfMemory, UserError
from sftrun.events import Custom
from sftrun.launch.failures import WorkerError
from sftrun.launch.workers import run_in_worker
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
    run_in_worker("workers:report", run, seen.append)
    assert seen == [Custom(name="seed", data={"seed": 7})]


def test_an_error_of_the_user_keeps_its_place_and_its_hint(run):
    with pytest.raises(UserError) as raised:
        run_in_worker("workers:user_error", run, print)
    (problem,) = raised.value.problems
    assert (problem.message, problem.path, problem.hint) == ("too hot", ("train", "precision"), "cool it")


@pytest.mark.parametrize("how", ["memory", "allocator"])
def test_out_of_memory_is_explained_with_what_to_change(run, how):
    with pytest.raises(OutOfMemory, match=r"train\.batch_size"):
        run_in_worker(f"workers:{how}", run, print)


def test_a_bug_comes_with_its_traceback(run):
    with pytest.raises(WorkerError, match="ZeroDivisionError: a bug of ours"):
        run_in_worker("workers:bug", run, print)


def test_a_crash_comes_with_the_last_lines_of_the_log(run):
    with pytest.raises(WorkerError, match="a library's last words"):
        run_in_worker("workers:crashed", run, print)


@pytest.mark.parametrize(("how", "signals"), [("waiting", 1), ("stubborn", 2)])
def test_a_signal_asks_the_worker_to_stop_and_a_second_one_kills_it(run, how, signals):
    def watch(event):
        for number in (signal.SIGINT, signal.SIGTERM)[:signals]:
            os.kill(os.getpid(), number)

    with pytest.raises(Interrupted):
        run_in_worker(f"workers:{how}", run, watch)


@pytest.fixture
def hangup():
    """The signal of a closed terminal is heeded, also if the tests run under nohup."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


@pytest.mark.usefixtures("hangup")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_repeated_signal_counts_once(run, number):
    """`timeout` sends a signal twice; so do the shell and the kernel when a terminal closes."""

    def watch(event):
        os.kill(os.getpid(), number)
        if event == Custom(name="ready"):
            os.kill(os.getpid(), number)

    with pytest.raises(Interrupted):
        run_in_worker("workers:tidy", run, watch)
    assert (run.path / "tidied").exists()


@pytest.mark.usefixtures("hangup")
def test_a_closed_terminal_stops_the_worker_and_later_messages_do_not_fail(run):
    """Writes to a closed terminal fail, also inside the signal handler."""
    heard = f"""
import os, pty, signal
from pathlib import Path
from sftrun.errors import Interrupted
from sftrun.launch.workers import run_in_worker
from sftrun.runs.directory import RunDir
def watch(event):
    os.kill(os.getpid(), signal.SIGHUP)
master, slave = pty.openpty()
os.dup2(slave, 2)
os.close(slave)
os.close(master)
try:
    run_in_worker("workers:tidy", RunDir(Path({str(run.path)!r})), watch)
except Interrupted:
    os.write(2, b"unseen")
"""
    done = subprocess.run([sys.executable, "-c", heard], check=False)
    assert (done.returncode, (run.path / "tidied").exists()) == (0, True)


def test_nohup_is_respected(run):
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        run_in_worker("workers:report", run, lambda event: os.kill(os.getpid(), signal.SIGHUP))
    finally:
        signal.signal(signal.SIGHUP, before)


def test_signal_handlers_are_restored_after_the_work(run):
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    run_in_worker("workers:report", run, print)
    assert before == (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM))


def test_a_worker_that_stops_after_a_signal_is_interrupted(run):
    with pytest.raises(Interrupted):
        run_in_worker("workers:stopped", run, print)


def test_a_full_disk_is_an_error_of_the_user(run):
    with pytest.raises(
        UserError,
        match=r"No space left on device.*free some space on the disk, "
        "then resume from the last checkpoint: sftrun resume",
    ):
        run_in_worker("workers:full_disk", run, print)


def test_a_full_disk_is_recognised_in_the_error_of_a_library(run):
    """safetensors raises its own exceptions."""
    with pytest.raises(UserError, match=r"os error 27\).*free some space on the disk"):
        run_in_worker("workers:full_for_safetensors", run, print)


def test_a_read_only_folder_is_an_error_of_the_user(run):
    with pytest.raises(UserError, match=r"Read-only file system.*check who may write there"):
        run_in_worker("workers:read_only", run, print)


def test_a_worker_that_leaves_with_code_0_has_not_done_its_work(run):
    with pytest.raises(WorkerError, match="the worker ended with code 0"):
        run_in_worker("workers:leaves_with_code_0", run, print)
