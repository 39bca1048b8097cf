"""The launcher of ranks: events, failures, restarts, and the rendezvous of nodes."""

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import drivers
import pytest
from conftest import talk, wait_for
from workers import is_alive

from sftrun.errors import Interrupted, UserError
from sftrun.events import Custom, Restarted
from sftrun.launch import heartbeat
from sftrun.launch.failures import WorkerError
from sftrun.launch.topology import Node
from sftrun.launch.workers import Ranks, run_in_worker
from sftrun.recipe.model import typed_recipe
from sftrun.recipe.resolved import resolved_yaml
from sftrun.runs.directory import RunDir

TESTS = Path(__file__).parent
TWO = Ranks(processes=2)


@pytest.fixture
def run(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(TESTS), str(TESTS.parent)]))
    return described(RunDir(tmp_path), "")


def described(run, description, **launch):
    keys = {"model": {"name": "sftrun/tiny"}, "source": "jsonl", "description": description, "launch": launch}
    run.write("resolved.yaml", resolved_yaml(typed_recipe(keys)))
    return run


def test_each_process_knows_its_rank_and_rank_0_reports(run, monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    seen = []
    run_in_worker("workers:ranked", run, seen.append, TWO)
    (event,) = seen
    threads = max(len(os.sched_getaffinity(0)) // 2, 1)
    ranks = {"RANK": 0, "LOCAL_RANK": 0, "WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 2, "GROUP_RANK": 0}
    assert event == Custom(name="rank", data={**ranks, "OMP_NUM_THREADS": threads})


def test_a_single_worker_has_no_rank(run, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    seen = []
    run_in_worker("workers:alone", run, seen.append)
    assert seen == [Custom(name="rank", data={"variables": []})]


@pytest.mark.parametrize(
    ("how", "error", "words"),
    [
        ("user_error", UserError, "too hot; cool it"),
        pytest.param("memory", UserError, r"CUDA out of memory.*train\.batch_size", marks=pytest.mark.slow),
        pytest.param("killed", UserError, r"the worker was killed.*sftrun resume", marks=pytest.mark.slow),
        pytest.param("bug", WorkerError, "ZeroDivisionError: a bug of ours", marks=pytest.mark.slow),
        pytest.param("crashed", WorkerError, "ended with code 7(.|\n)*a library's last words", marks=pytest.mark.slow),
    ],
)
def test_a_failure_of_any_rank_ends_every_rank_and_is_explained(run, how, error, words):
    with pytest.raises(error, match=words):
        run_in_worker("workers:second_fails", described(run, how), print, TWO)


@pytest.mark.slow
def test_a_lost_connection_is_not_reported_as_the_cause(run):
    with pytest.raises(UserError, match="too hot"):
        run_in_worker("workers:lost", run, print, TWO)


def test_every_rank_restarts_if_one_is_killed_as_often_as_the_recipe_allows(run):
    seen = []
    run_in_worker("workers:fails_once", described(run, "killed"), seen.append, Ranks(processes=2, restarts=1))
    assert [event.get("data", {}).get("attempt") for event in seen] == [0, None, 1]
    assert seen[1] == Restarted(restart=1, of=1, reason="process 1 ended with SIGKILL")


@pytest.mark.slow
def test_an_error_of_the_user_causes_no_restart(run):
    seen = []
    with pytest.raises(UserError, match="too hot"):
        run_in_worker("workers:fails_once", described(run, "user_error"), seen.append, Ranks(processes=2, restarts=3))
    assert {event["name"] for event in seen} <= {"began"}  # which the first one may not have come to say
    assert not any(event.data["attempt"] for event in seen)


def test_a_signal_stops_every_rank(run):
    def watch(event):
        if event == Custom(name="ready"):
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(Interrupted):
        run_in_worker("workers:until_asked", run, watch, TWO)
    assert sorted(path.name for path in run.path.glob("stopped-*")) == ["stopped-0", "stopped-1"]


@pytest.mark.parametrize("whom", ["parent", pytest.param("launcher", marks=pytest.mark.slow)])
def test_no_process_outlives_its_parent(run, whom):
    code = "import sys, pathlib\nfrom sftrun.launch import workers; from sftrun.runs.directory import RunDir\n"
    code += (
        "workers.run_in_worker('workers:stays', RunDir(pathlib.Path(sys.argv[1])), print, workers.Ranks(processes=2))"
    )
    parent = subprocess.Popen([sys.executable, "-c", code, str(run.path)], stderr=subprocess.DEVNULL)
    files = [run.path / f"pid-{number}" for number in range(2)]
    wait_for(lambda: all(file.is_file() and " " in file.read_text() for file in files))
    pids = {int(pid) for file in files for pid in file.read_text().split()}
    assert len(pids) == 3
    launcher = int(files[0].read_text().split()[1])
    os.kill(parent.pid if whom == "parent" else launcher, signal.SIGKILL)
    wait_for(lambda: not any(map(is_alive, pids)))
    parent.wait()


def on_two_nodes(target, run, port, first=None, second=None, **more):
    """Calls `run_in_worker` as two nodes of one process each; returns the events of each node and its exception."""
    seen, ended = ([], []), [None, None]

    def node(number, given):
        own = RunDir(run.path)
        own.log = run.path / f"run-node{number}.log"
        ranks = Ranks(
            **{"processes": 1, "nodes": 2, "node": Node(number, f"localhost:{port}"), **more, **(given or {})}
        )
        try:
            run_in_worker(target, own, seen[number].append, ranks)
        except Exception as error:
            ended[number] = error

    threads = [threading.Thread(target=node, args=each) for each in enumerate((first, second))]
    with heartbeat.heartbeat(run, 2):
        for each in threads:
            each.start()
        for each in threads:
            each.join()
    return seen, ended


def test_nodes_keep_their_numbers_and_restart_together(run, port):
    seen, ended = on_two_nodes("workers:fails_once", described(run, "killed"), port, restarts=1)
    assert ended == [None, None]
    restarted = Restarted(restart=1, of=1, reason="process 1 ended with SIGKILL")
    first, second = (Custom(name="began", data={"attempt": attempt}) for attempt in (0, 1))
    assert seen == ([first, restarted, second], [restarted])


@pytest.mark.slow
def test_a_failure_on_one_node_is_reported_on_every_node(run, port):
    _, ended = on_two_nodes("workers:lost", run, port)
    assert [str(error) for error in ended] == ["error: too hot; cool it"] * 2


@pytest.mark.slow
@pytest.mark.parametrize(
    ("second", "words"),
    [
        ({"processes": 2}, "launch.processes is 2 on node 1 and 1 on node 0"),
        ({"recipe": "model: {}"}, "node 1 has another recipe than node 0"),
    ],
)
def test_nodes_that_differ_are_refused(run, port, second, words):
    _, ended = on_two_nodes("workers:ranked", run, port, second=second)
    assert all(words in str(error) for error in ended)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (
            ["--nodes", "2"],
            "launch.nodes is 2, and this command does not name its node or the rendezvous; on each node, run",
        ),
        (
            ["--nodes", "2", "--node-rank", "2", "--rendezvous", "a:1"],
            "is 2; with 2 nodes it is a number from 0 to 1",
        ),
        (["--nodes", "2", "--node-rank", "1", "--rendezvous", "a:1"], "name it: --out DIR, the same on every node"),
        (
            ["--nodes", "2", "--node-rank", "0", "--rendezvous", "a"],
            "'a', not HOST:PORT; write, for example, node0:29400",
        ),
        (["--node-rank", "1", "--rendezvous", "a:1"], "launch.nodes is 1; give the number of machines: --nodes 2"),
    ],
)
def test_wrong_node_options_are_refused_before_anything_runs(write, sftrun, words, said):
    result = sftrun(write([talk("hi", "ho")]), *words)
    assert result.code == 1
    assert said in result.err


def test_a_node_rank_needs_a_rendezvous(write, sftrun):
    result = sftrun(write([talk("hi", "ho")]), "--nodes", "2", "--node-rank", "1")
    assert result.code == 2
    assert "--node-rank and --rendezvous need each other" in result.err


@pytest.fixture
def gpus(tmp_path, monkeypatch):
    """Returns a function that installs a driver with `count` GPUs."""

    def listed(count):
        drivers.install(tmp_path, monkeypatch, *[drivers.H100] * count)

    return listed


def test_more_processes_than_gpus_are_refused(write, sftrun, gpus):
    gpus(2)
    result = sftrun(write([talk("hi", "ho")], launch={"processes": 4}))
    assert result.code == 1
    assert "launch.processes is 4, and this machine has 2 GPUs to train on; use 2, or auto" in result.err


def test_a_step_has_the_rows_of_every_process(write, gpus, monkeypatch):
    from sftrun import load
    from sftrun.memory import batches

    recipe = write([talk("hi", "ho")], train={"epochs": 1, "batch_size": 4, "grad_accum": 2})
    counts = {"launch.processes=1": 13, "launch={processes: 4, nodes: 2}": 2}
    assert {sets: batches.count_steps(load(recipe, [sets]), 100) for sets in counts} == counts
    gpus(3)
    assert batches.count_steps(load(recipe), 100) == 5
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    assert batches.count_steps(load(recipe), 100) == 13


def test_a_backend_without_support_for_ranks_is_refused(write, sftrun):
    from sftrun.registry import Registered, current

    class Lonely:
        honours = frozenset()

        def train(self, work):
            """It is not come to."""

        def load(self, work):
            """It is not come to."""

    item = Registered("backend", "lonely", Lonely, None, "", __name__, "tests", "0")
    current().components["backend"]["lonely"] = item
    try:
        result = sftrun(write([talk("hi", "ho")], backend="lonely", launch={"processes": 2}))
    finally:
        del current().components["backend"]["lonely"]
    assert result.code == 1
    assert "the backend lonely trains in one process, and the recipe asks for 2" in result.err


@pytest.mark.slow
@pytest.mark.parametrize(("known", "words"), [(2, "has wrapped the model as Linear, not for ddp"), (1, "accelerate 1")])
def test_a_trainer_that_is_not_distributed_is_refused(run, known, words):
    with pytest.raises(UserError, match=words):
        run_in_worker("workers:unwrapped", described(run, str(known), processes=2), print, TWO)


@pytest.mark.slow
def test_only_rank_0_loads_a_sharded_model(run):
    seen = []
    run_in_worker("workers:shared_model", described(run, "", processes=2, strategy="fsdp"), seen.append, TWO)
    assert seen == [Custom(name="shared", data={"loaded": [True, False], "same": True, "buffers": True})]
