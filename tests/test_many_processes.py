"""Many processes train together as one would: the launcher first, then real training on the CPU, over gloo."""

import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from conftest import talk

from sftrun import Interrupted, UserError
from sftrun.launch import Ranks, WorkerError, work
from sftrun.options import parse
from sftrun.recipe.model import Recipe
from sftrun.recipe.resolved import normal, resolved_yaml
from sftrun.report import history
from sftrun.rundir import RunDir
from sftrun.world import Node

TESTS = Path(__file__).parent
TWO = Ranks(processes=2)


@pytest.fixture
def run(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(TESTS), str(TESTS.parent)]))
    return described(RunDir(tmp_path), "")


def described(run, description, **launch):
    keys = {"model": {"name": "sftrun/tiny"}, "source": "jsonl", "description": description, "launch": launch}
    run.write("resolved.yaml", resolved_yaml(normal(parse(keys, Recipe))))
    return run


def wait_for(what, seconds=120):
    end = time.monotonic() + seconds
    while not (found := what()):
        assert time.monotonic() < end, "it did not come"
        time.sleep(0.01)
    return found


def test_each_process_knows_which_it_is_and_the_first_one_reports(run, monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    seen = []
    work("workers:ranked", run, seen.append, TWO)
    (event,) = seen
    cores = len(os.sched_getaffinity(0))
    assert event.pop("OMP_NUM_THREADS") == max(cores // 2, 1)
    ranks = {"RANK": 0, "LOCAL_RANK": 0, "WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 2, "GROUP_RANK": 0}
    assert event == {"event": "step", **ranks}


def test_a_worker_that_works_alone_knows_of_no_others(run, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    seen = []
    work("workers:alone", run, seen.append)
    assert seen == [{"event": "step", "variables": []}]


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
def test_a_failure_of_any_process_ends_all_and_is_explained(run, how, error, words):
    with pytest.raises(error, match=words):
        work("workers:second_fails", described(run, how), print, TWO)


@pytest.mark.slow
def test_who_lost_a_connection_is_not_the_cause(run):
    with pytest.raises(UserError, match="too hot"):
        work("workers:lost", run, print, TWO)


def test_all_start_again_where_one_was_killed_as_often_as_the_recipe_allows(run):
    seen = []
    work("workers:fails_once", described(run, "killed"), seen.append, Ranks(processes=2, restarts=1))
    assert [event.get("attempt") for event in seen] == [0, None, 1]
    assert seen[1] == {"event": "restarted", "restart": 1, "of": 1, "reason": "process 1 ended with SIGKILL"}


@pytest.mark.slow
def test_what_the_user_has_to_fix_is_not_tried_again(run):
    seen = []
    with pytest.raises(UserError, match="too hot"):
        work("workers:fails_once", described(run, "user_error"), seen.append, Ranks(processes=2, restarts=3))
    assert seen == [{"event": "began", "attempt": 0}]


def test_a_signal_asks_all_processes_and_a_second_one_ends_them(run):
    def watch(event):
        if event["event"] == "ready":
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(Interrupted):
        work("workers:until_asked", run, watch, TWO)
    assert sorted(path.name for path in run.path.glob("stopped-*")) == ["stopped-0", "stopped-1"]


def alive(pid):
    status = Path(f"/proc/{pid}/status")
    try:
        return "State:\tZ" not in status.read_text()
    except OSError:
        return False


@pytest.mark.parametrize("whom", ["parent", pytest.param("launcher", marks=pytest.mark.slow)])
def test_no_process_outlives_the_one_that_started_it(run, whom):
    code = "import sys, pathlib; from sftrun import launch, rundir\n"
    code += "launch.work('workers:stays', rundir.RunDir(pathlib.Path(sys.argv[1])), print, launch.Ranks(processes=2))"
    parent = subprocess.Popen([sys.executable, "-c", code, str(run.path)], stderr=subprocess.DEVNULL)
    files = [run.path / f"pid-{number}" for number in range(2)]
    wait_for(lambda: all(file.is_file() and " " in file.read_text() for file in files))
    pids = {int(pid) for file in files for pid in file.read_text().split()}
    assert len(pids) == 3
    launcher = int(files[0].read_text().split()[1])
    os.kill(parent.pid if whom == "parent" else launcher, signal.SIGKILL)
    wait_for(lambda: not any(map(alive, pids)), 20)
    parent.wait(20)


def free_port():
    import socket

    with socket.socket() as found:
        found.bind(("localhost", 0))
        return found.getsockname()[1]


def on_two_nodes(target, run, first=None, second=None, **more):
    """Calls `work` as two nodes would, of one process each; returns what they have seen, and how they ended."""
    rendezvous = f"localhost:{free_port()}"
    seen, ended = ([], []), [None, None]

    def node(number, given):
        own = RunDir(run.path)
        own.log = run.path / f"run-node{number}.log"
        ranks = Ranks(**{"processes": 1, "nodes": 2, "node": Node(number, rendezvous), **more, **(given or {})})
        try:
            work(target, own, seen[number].append, ranks)
        except Exception as error:
            ended[number] = error

    threads = [threading.Thread(target=node, args=each) for each in enumerate((first, second))]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    return seen, ended


def test_nodes_keep_their_numbers_and_start_again_together(run):
    seen, ended = on_two_nodes("workers:fails_once", described(run, "killed"), restarts=1)
    assert ended == [None, None]
    restarted = {"event": "restarted", "restart": 1, "of": 1, "reason": "process 1 ended with SIGKILL"}
    assert seen == ([{"event": "began", "attempt": 0}, restarted, {"event": "began", "attempt": 1}], [restarted])


@pytest.mark.slow
def test_a_failure_on_one_node_is_told_on_all(run):
    _, ended = on_two_nodes("workers:lost", run)
    assert [str(error) for error in ended] == ["error: too hot; cool it"] * 2


@pytest.mark.slow
@pytest.mark.parametrize(
    ("second", "words"),
    [
        ({"processes": 2}, "launch.processes is 2 on node 1 and 1 on node 0"),
        ({"recipe": "model: {}"}, "the recipe of node 1 is not that of node 0"),
    ],
)
def test_nodes_that_do_not_fit_are_refused(run, second, words):
    _, ended = on_two_nodes("workers:ranked", run, second=second)
    assert all(words in str(error) for error in ended)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--nodes", "2"], "launch.nodes is 2, and this command does not say where they meet; on each node, run"),
        (["--nodes", "2", "--node-rank", "2", "--rendezvous", "a:1"], "--node-rank is 2; of 2 nodes they go from 0"),
        (["--nodes", "2", "--node-rank", "1", "--rendezvous", "a:1"], "name it: --out DIR, the same on every node"),
        (["--nodes", "2", "--node-rank", "0", "--rendezvous", "a"], "--rendezvous is 'a', which is no HOST:PORT"),
        (["--node-rank", "1", "--rendezvous", "a:1"], "launch.nodes is 1; say how many they are: --nodes 2"),
    ],
)
def test_a_node_that_does_not_fit_the_recipe_is_refused_before_anything_runs(write, sftrun, words, said):
    result = sftrun(write([talk("hi", "ho")]), *words)
    assert result.code == 1
    assert said in result.err


def test_the_rank_of_a_node_needs_a_place_to_meet(write, sftrun):
    result = sftrun(write([talk("hi", "ho")]), "--nodes", "2", "--node-rank", "1")
    assert result.code == 2
    assert "--node-rank and --rendezvous go together" in result.err


@pytest.fixture
def gpus(tmp_path, monkeypatch):
    """A driver that lists so many GPUs."""

    def listed(count):
        lines = "".join(f"GPU {number}: H100\\n" for number in range(count))
        driver = tmp_path / "bin" / "nvidia-smi"
        driver.parent.mkdir()
        driver.write_text(f"#!/bin/sh\nprintf '{lines}'\n")
        driver.chmod(0o755)
        monkeypatch.setenv("PATH", f"{driver.parent}{os.pathsep}{os.environ['PATH']}")
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)

    return listed


def test_more_processes_than_gpus_are_refused(write, sftrun, gpus):
    gpus(2)
    result = sftrun(write([talk("hi", "ho")], launch={"processes": 4}))
    assert result.code == 1
    assert "launch.processes is 4, and this machine has 2 GPUs to train on; use 2, or auto" in result.err


def test_a_step_of_all_processes_sees_their_rows_together(write, gpus, monkeypatch):
    from sftrun import load
    from sftrun.plan import batches

    recipe = write([talk("hi", "ho")], train={"epochs": 1, "batch_size": 4, "grad_accum": 2})
    counts = {"launch.processes=1": 13, "launch={processes: 4, nodes: 2}": 2}
    assert {sets: batches.steps(load(recipe, [sets]), 100) for sets in counts} == counts
    gpus(3)
    assert batches.steps(load(recipe), 100) == 5
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    assert batches.steps(load(recipe), 100) == 13


def test_a_backend_that_does_not_know_of_others_trains_alone(write, sftrun):
    from sftrun.registry import Registered, current

    class Lonely:
        pass

    item = Registered("backend", "lonely", Lonely, None, "", __name__, "tests", "0")
    current().components["backend"]["lonely"] = item
    try:
        result = sftrun(write([talk("hi", "ho")], backend="lonely", launch={"processes": 2}))
    finally:
        del current().components["backend"]["lonely"]
    assert result.code == 1
    assert "the backend lonely trains in one process, and these would be 2" in result.err


# From here on, real training.

ROWS = [talk(f"What comes after {number}?", str(number + 1) * (1 + number % 7)) for number in range(26)]
DATA = {"train": ROWS[:21], "val": ROWS[21:]}
KEYS = {
    "model": {"name": "sftrun/tiny", "max_seq_len": 96},
    "source": {"use": "jsonl", "with": {"path": "."}},
    "tuning": {"mode": "full"},
    "train": {
        "epochs": 2,
        "learning_rate": 5e-3,
        "batch_size": 2,
        "eval_batch_size": 2,
        "logging_steps": 1,
        "save_strategy": "steps",
        "save_steps": 4,
        "eval_strategy": "steps",
        "eval_steps": 4,
    },
}
PROCESSES = "launch.processes=2"
DROPOUT = ["tuning={mode: lora, lora: {r: 4, dropout: 0.1}}"]
LONGER = ["train.epochs=5", "train.eval_steps=8"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("many")
    for split, rows in DATA.items():
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "recipe.yaml").write_text(json.dumps(KEYS))
    return folder


def trained(folder, name, *sets):
    """A run of the stages prepare and train."""
    import sftrun

    return sftrun.run(folder / "recipe.yaml", sets, folder / name)


def curves(run):
    past = history.history(run.events())
    return past.loss, past.validation, past.learning_rate


def close(run, other):
    for found, wanted in zip(curves(run), curves(other), strict=True):
        assert [step for step, _ in found] == [step for step, _ in wanted]
        assert [value for _, value in found] == pytest.approx([value for _, value in wanted], abs=1e-5)
    assert totals(run) == totals(other)


def totals(run):
    """Tokens of the whole training, and those of them that are trained."""
    last = [event for event in run.events() if event["event"] == "step"][-1]
    return last["tokens"], last["trained_tokens"]


def weights(run):
    return next(run.model.glob("*.safetensors")).read_bytes()


@pytest.fixture(scope="module")
def two(folder):
    return trained(folder, "two", PROCESSES)


def test_two_processes_train_as_one_does_with_batches_twice_as_large(folder, two):
    """21 rows: the last step of an epoch has one row, and the second process an empty batch; of 3 batches of the
    validation rows it has one."""
    from sftrun.data import store

    one = trained(folder, "one", "train.batch_size=4")
    close(two, one)
    rows = list(store.read_samples(two.prepared / "train.arrow"))
    assert totals(two) == (2 * sum(len(row.ids) for row in rows), 2 * sum(sum(row.trained[1:]) for row in rows))


def test_how_many_trained_is_recorded_and_said(two):
    assert two.read_json("lock.json")["launch"] == {"processes": 2, "nodes": 1, "strategy": "ddp"}
    (launched,) = [event for event in two.events() if event["event"] == "launched"]
    told = {name: launched[name] for name in ("processes", "nodes", "strategy", "backend")}
    assert told == {"processes": 2, "nodes": 1, "strategy": "ddp", "backend": "gloo"}


def test_every_process_has_its_random_numbers_in_each_checkpoint_and_none_is_written_twice(two):
    checkpoints = [event["step"] for event in two.events() if event["event"] == "checkpoint"]
    assert checkpoints == sorted(set(checkpoints))
    for checkpoint in two.checkpoints.glob("checkpoint-*"):
        sealed = json.loads((checkpoint / "whole.json").read_text())["files"]
        assert {"rng_state_0.pth", "rng_state_1.pth"} <= sealed.keys()


@pytest.mark.slow
def test_a_trainer_alone_is_refused_where_the_recipe_asks_for_many(folder, two):
    from sftrun import load
    from sftrun.stages.train import train_here

    with pytest.raises(UserError, match="the recipe asks for 2 processes, and there is 1"):
        train_here(load(folder / "recipe.yaml", [PROCESSES]), two, print)


@pytest.mark.slow
@pytest.mark.parametrize(("known", "words"), [(2, "has not wrapped the model for ddp, but as Linear"), (1, "of 1")])
def test_a_trainer_that_is_not_set_up_for_all_is_refused(run, known, words):
    with pytest.raises(UserError, match=words):
        work("workers:unwrapped", described(run, str(known), processes=2), print, TWO)


KINDS = {
    "in any order": ["train.group_by_length=false"],
    "packed": ["packing={strategy: best-fit}", "train.epochs=6"],
    "checkpointed": ["train.gradient_checkpointing=true"],
    "adapter on 4 bits": ["tuning={mode: qlora, lora: {r: 4}}", "backend=bnb"],
    "accumulated": [],
}


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("kind", KINDS)
def test_how_rows_are_split_among_processes_and_passes_does_not_matter(folder, kind):
    sets, size = KINDS[kind], 1 if kind == "accumulated" else 2
    parts = [f"train.batch_size={size}", f"train.grad_accum={2 // size}", PROCESSES]
    many = trained(folder, f"{kind} many", *sets, *parts)
    for number, passes in ((4, 1), (2, 2)):
        alone = (f"train.batch_size={number}", f"train.grad_accum={passes}")
        close(many, trained(folder, f"{kind} alone {passes}", *sets, *alone))


def command(folder, *words):
    return subprocess.Popen(
        [sys.executable, "-m", "sftrun", *map(str, words)], cwd=folder, stderr=subprocess.PIPE, text=True
    )


def said(process):
    error = process.communicate(timeout=200)[1]
    return process.returncode, error


def flags(sets):
    return [word for each in sets for word in ("--set", each)]


def children(pid):
    found = subprocess.run(["ps", "-o", "pid=", "--ppid", str(pid)], capture_output=True, text=True, check=False)
    return sorted(int(each) for each in found.stdout.split())


def reached(run, step):
    return lambda: any(event["event"] == "step" and event["step"] >= step for event in run.events())


@pytest.fixture(scope="module")
def reference(folder):
    return trained(folder, "reference", *DROPOUT, *LONGER, PROCESSES, "evaluators=[loss]")


@pytest.mark.slow
def test_other_stages_work_alone(reference):
    loss = reference.read_json("eval/scores.json")["tuned"]["loss"]["val_loss"]
    assert loss == pytest.approx(history.history(reference.events()).validation[-1][1], abs=1e-5)


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_killed_at_any_moment_and_resumed_it_ends_the_same(folder, reference):
    run = RunDir(folder / "killed")
    moment = random.Random()
    first = command(folder, "recipe.yaml", "--out", "killed", *flags([*DROPOUT, *LONGER, PROCESSES]))
    wait_for(reached(run, moment.randint(3, 9)))
    time.sleep(moment.uniform(0, 0.3))
    (launcher,) = children(first.pid)
    ranks = children(launcher)
    os.kill(ranks[-1], signal.SIGKILL)
    code, error = said(first)
    assert (code, "the worker was killed" in error) == (1, True), error

    second = command(folder, "resume", "killed")
    wait_for(reached(run, 16))
    second.send_signal(signal.SIGTERM)
    code, error = said(second)
    assert code == 130, error
    assert "is whole; to go on: sftrun resume killed" in error

    code, error = said(command(folder, "resume", "killed"))
    assert code == 0, error
    assert weights(run) == weights(reference)
    assert curves(run) == curves(reference)
    assert totals(run) == totals(reference)


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_process_that_dies_is_started_again_and_nothing_is_lost(folder, reference):
    run = RunDir(folder / "restarted")
    sets = [*DROPOUT, *LONGER, PROCESSES, "launch.restarts=1"]
    process = command(folder, "recipe.yaml", "--out", "restarted", *flags(sets))
    wait_for(reached(run, 7))
    (launcher,) = children(process.pid)
    os.kill(children(launcher)[0], signal.SIGKILL)
    code, error = said(process)
    assert code == 0, error
    assert "warning: process 0 ended with SIGKILL; all start again (1 of 1 restarts)" in error
    (event,) = [event for event in run.events() if event["event"] == "restarted"]
    assert event["restart"] == 1
    assert weights(run) == weights(reference)
    assert curves(run) == curves(reference)


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_two_nodes_train_as_two_processes_do(folder, reference):
    meet = ["--out", "nodes", "--nodes", "2", "--rendezvous", f"localhost:{free_port()}", *flags([*DROPOUT, *LONGER])]
    second = command(folder, "recipe.yaml", *meet, "--node-rank", "1")
    first = command(folder, "recipe.yaml", *meet, "--node-rank", "0")
    ended = [said(process) for process in (first, second)]
    assert [code for code, _ in ended] == [0, 0], ended
    assert "2 processes on 2 nodes, ddp over gloo" in ended[0][1]
    assert ended[1][1] == "node 1 of 2 waits for node 0 to prepare\nnode 1 of 2 trains\n"
    run = RunDir(folder / "nodes")
    assert weights(run) == weights(reference)
    assert run.read_json("lock.json")["launch"] == {"processes": 1, "nodes": 2, "strategy": "ddp"}


@pytest.mark.slow
def test_a_node_ends_where_the_first_one_cannot_prepare(folder):
    meet = ["--out", "bad", "--nodes", "2", "--rendezvous", f"localhost:{free_port()}", *flags(["expect_mask=abc"])]
    second = command(folder, "recipe.yaml", *meet, "--node-rank", "1")
    time.sleep(3)
    assert said(command(folder, "recipe.yaml", *meet, "--node-rank", "0"))[0] == 1
    code, error = said(second)
    assert code == 1
    assert "node 0 could not prepare" in error


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_run_may_go_on_with_other_processes_where_a_step_sees_as_many_rows(folder, two):
    from sftrun import load, resume

    def fits(*sets):
        return resume.fit(load(folder / "recipe.yaml", list(sets)), two)

    (warning,) = fits("train.batch_size=4")
    assert warning.startswith("launch.processes, train.batch_size changed: the weights will differ by rounding")
    assert fits(PROCESSES, "launch.restarts=2") == []
    with pytest.raises(UserError, match=r"launch.processes is 4, but the run in two has trained with 2"):
        fits("launch.processes=4")
    with pytest.raises(UserError, match=r'launch.processes is "auto", but the run in two has trained with 2'):
        fits()
