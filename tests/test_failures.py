"""Failures of workers and ranks: what they are taken for, and what run.log keeps of them."""

import os
from pathlib import Path

import pytest

from sftrun.errors import OutOfMemory, UserError
from sftrun.events import Restarted
from sftrun.launch import failures
from sftrun.launch.failures import WorkerError
from sftrun.launch.workers import Ranks, run_in_worker
from sftrun.recipe.model import typed_recipe
from sftrun.recipe.resolved import resolved_yaml
from sftrun.runs.directory import RunDir

TESTS = Path(__file__).parent


@pytest.fixture
def run(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(TESTS), str(TESTS.parent)]))
    return describe(RunDir(tmp_path), "")


def describe(run, description, processes=2):
    keys = {"model": {"name": "sftrun/tiny"}, "source": "jsonl", "description": description}
    run.write("resolved.yaml", resolved_yaml(typed_recipe({**keys, "launch": {"processes": processes}})))
    return run


@pytest.fixture
def kernel(run, monkeypatch):
    """A count of the processes that the kernel has killed for memory, which a worker can raise."""
    file = run.path / "vmstat"
    file.write_text("pgpgin 4\noom_kill 3\n")
    monkeypatch.setattr(failures, "OOM_KILL_FILES", (file,))
    return file


def test_a_worker_that_the_kernel_killed_for_memory_is_out_of_memory(run, kernel):
    with pytest.raises(OutOfMemory, match=r"out of memory: the system killed the worker; lower train\.batch_size"):
        run_in_worker("workers:killed_for_memory", run, print)


def test_a_worker_that_someone_killed_is_not_out_of_memory(run, kernel):
    with pytest.raises(UserError, match=r"killed with SIGKILL, and not by the system.*sftrun resume") as raised:
        run_in_worker("workers:killed", run, print)
    assert not isinstance(raised.value, OutOfMemory)


def test_without_a_count_of_the_kernel_a_killed_worker_counts_as_out_of_memory(run, kernel):
    kernel.unlink()
    with pytest.raises(OutOfMemory, match="most often because memory ran out"):
        run_in_worker("workers:killed", run, print)


def test_a_line_that_a_kill_cut_in_a_character_is_left_out(run):
    seen = []
    with pytest.raises(WorkerError, match="ended with code 7"):
        run_in_worker("workers:killed_in_the_middle_of_a_line", run, seen.append)
    assert seen == []


def test_a_broken_pipe_of_the_job_is_a_failure_with_its_traceback(run):
    with pytest.raises(WorkerError, match=r"BrokenPipeError.*upload"):
        run_in_worker("workers:broken_pipe", run, print)


@pytest.mark.parametrize(("how", "line"), [("wrapped", "a bug of ours"), ("memory", "CUDA out of memory")])
def test_the_log_keeps_the_traceback_of_an_error_that_is_one_message(run, how, line):
    with pytest.raises(UserError):
        run_in_worker(f"workers:{how}", run, print)
    log = run.log.read_text()
    assert "Traceback (most recent call last)" in log
    assert f"in {'bug' if how == 'wrapped' else how}" in log
    assert line in log


@pytest.mark.parametrize("ranks", [None, Ranks(processes=2)])
def test_a_job_that_exits_with_success_before_its_end_is_a_failure(run, ranks):
    with pytest.raises(WorkerError, match="SystemExit: 0"):
        run_in_worker("workers:exits", run, print, ranks)


def fail_in_rank_1(run, how):
    seen = []
    with pytest.raises((UserError, WorkerError)) as raised:
        run_in_worker("workers:second_fails", describe(run, how), seen.append, Ranks(processes=2, restarts=1))
    return raised.value, [event for event in seen if isinstance(event, Restarted)]


def test_two_ranks_on_one_gpu_are_a_mistake_that_no_restart_mends(run):
    error, restarts = fail_in_rank_1(run, "duplicate_gpu")
    assert "Duplicate GPU detected : rank 0 and rank 1 both on CUDA device 1b0" in str(error)
    assert "each process needs its own GPU (CUDA_VISIBLE_DEVICES)" in str(error)
    assert restarts == []


@pytest.mark.slow
def test_a_lost_connection_of_nccl_is_tried_again(run, monkeypatch):
    error, restarts = fail_in_rank_1(run, "remote_error")
    assert "the training processes lost each other" in str(error)
    assert len(restarts) == 1


@pytest.mark.slow
def test_an_error_that_only_mentions_nccl_is_not_a_lost_connection(run):
    error, _ = fail_in_rank_1(run, "mentions_nccl")
    assert isinstance(error, WorkerError)
    assert "ValueError: NCCL_SOCKET_IFNAME: no such socket" in str(error)


@pytest.mark.slow
def test_a_network_interface_that_is_none_is_a_mistake_that_no_restart_mends(run, monkeypatch):
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "nosuch0")
    seen = []
    with pytest.raises(UserError, match=r"the training processes cannot communicate.*nosuch0"):
        run_in_worker("workers:joins", run, seen.append, Ranks(processes=2, restarts=1))
    assert seen == []
