"""Several processes train together on the CPU, over gloo: the result equals that of one, also after kills."""

import json
import os
import random
import signal
import socket
import subprocess
import sys
import time

import pytest
from conftest import talk, wait_for

from sftrun import UserError
from sftrun.data import Samples
from sftrun.flow import STAGES
from sftrun.runs import history
from sftrun.runs.directory import RunDir

ROWS = [talk(f"What comes after {number}?", str(number + 1) * (1 + number % 7)) for number in range(26)]
DATA = {"train": ROWS[:21], "val": ROWS[21:]}
KEYS = {
    "model": {"name": "sftrun/tiny", "max_seq_len": 96},
    "source": {"use": "jsonl", "with": {"path": "."}},
    "tuning": {"mode": "full"},
    "train": {
        "epochs": 2,
        "learning_rate": 5e-3,
        "warmup": 3,
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
    """Runs a recipe with overrides, and returns its run directory."""
    import sftrun

    return sftrun.run(folder / "recipe.yaml", sets, folder / name)


def alone(folder, name, *sets):
    """Does the same in this process."""
    import sftrun
    from sftrun.flow import prepare
    from sftrun.stages.train import train_in_worker

    run = prepare(folder / "recipe.yaml", sets, folder / name)
    train_in_worker(sftrun.load(folder / "recipe.yaml", sets), run, run.event)
    return run


def curves(run):
    past = history.build_history(run.events())
    return past.loss, past.validation, past.learning_rate


def close(run, other):
    for found, wanted in zip(curves(run), curves(other), strict=True):
        assert [step for step, _ in found] == [step for step, _ in wanted]
        assert [value for _, value in found] == pytest.approx([value for _, value in wanted], abs=1e-5)
    assert totals(run) == totals(other)


def totals(run):
    """Returns the tokens and the trained tokens of the whole training."""
    last = [event for event in run.events() if event["event"] == "step"][-1]
    return last["tokens"], last["trained_tokens"]


def weights(run):
    return next(run.model.glob("*.safetensors")).read_bytes()


@pytest.fixture(scope="module")
def two(folder):
    return trained(folder, "two", PROCESSES)


def test_two_processes_train_as_one_with_batches_twice_as_large(folder, two):
    """21 rows: the last step of an epoch has one row, and the second process an empty batch; of 3 batches of the
    validation rows it has one."""

    close(two, alone(folder, "one", "train.batch_size=4"))
    rows = list(Samples(two.prepared / "train.arrow"))
    assert totals(two) == (2 * sum(len(row.ids) for row in rows), 2 * sum(sum(row.trained[1:]) for row in rows))


def test_the_number_of_processes_is_recorded_and_shown(two):
    assert two.facts("train")["launch"] == {"processes": 2, "nodes": 1, "strategy": "ddp"}
    (launched,) = [event for event in two.events() if event["event"] == "launched"]
    told = {name: launched[name] for name in ("processes", "nodes", "strategy", "backend")}
    assert told == {"processes": 2, "nodes": 1, "strategy": "ddp", "backend": "gloo"}


def test_a_checkpoint_has_the_random_state_of_every_process_and_no_file_twice(two):
    checkpoints = [event["step"] for event in two.events() if event["event"] == "checkpoint"]
    assert checkpoints == sorted(set(checkpoints))
    for checkpoint in two.checkpoints.glob("checkpoint-*"):
        sealed = json.loads((checkpoint / "whole.json").read_text())["files"]
        assert {"rng_state_0.pth", "rng_state_1.pth"} <= sealed.keys()


@pytest.mark.slow
def test_a_single_trainer_is_refused_if_the_recipe_asks_for_several(folder, two):
    from sftrun import load
    from sftrun.stages.train import train_in_worker

    with pytest.raises(UserError, match="the recipe asks for 2 processes, and the launcher has started 1"):
        train_in_worker(load(folder / "recipe.yaml", [PROCESSES]), two, print)


KINDS = {
    "by length": ["train.group_by_length=true"],
    "packed": ["packing={strategy: best-fit}", "train.epochs=6"],
    "checkpointed": ["train.gradient_checkpointing=true"],
    "adapter on 4 bits": ["tuning={mode: qlora, lora: {r: 4}}", "backend=bnb"],
    "accumulated": ["train.group_by_length=true"],
}


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("kind", KINDS)
def test_the_split_into_processes_and_micro_batches_does_not_matter(folder, kind):
    sets, size = KINDS[kind], 1 if kind == "accumulated" else 2
    parts = [f"train.batch_size={size}", f"train.grad_accum={2 // size}", PROCESSES]
    many = trained(folder, f"{kind} many", *sets, *parts)
    for number, passes in ((4, 1), (2, 2)):
        split = (f"train.batch_size={number}", f"train.grad_accum={passes}")
        close(many, alone(folder, f"{kind} alone {passes}", *sets, *split))


def command(folder, *words):
    return subprocess.Popen(
        [sys.executable, "-m", "sftrun", *map(str, words)], cwd=folder, stderr=subprocess.PIPE, text=True
    )


def said(process):
    error = process.communicate(timeout=400)[1]
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
def test_other_stages_run_in_one_process(reference):
    loss = reference.read_json("eval/scores.json")["tuned"]["loss"]["val_loss"]
    assert loss == pytest.approx(history.build_history(reference.events()).validation[-1][1], abs=1e-5)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_killed_at_any_moment_and_resumed_it_ends_the_same(folder, reference, seed):
    run = RunDir(folder / "killed")
    moment = random.Random(seed)
    first = command(folder, "recipe.yaml", "--out", "killed", *flags([*DROPOUT, *LONGER, PROCESSES]))
    wait_for(reached(run, moment.randint(3, 9)))
    time.sleep(moment.uniform(0, 0.3))  # seconds: anywhere in the step after
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
    assert "is complete; to resume: sftrun resume killed" in error

    code, error = said(command(folder, "resume", "killed"))
    assert code == 0, error
    assert weights(run) == weights(reference)
    assert curves(run) == curves(reference)
    assert totals(run) == totals(reference)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_every_process_restarts_if_one_dies_and_nothing_is_lost(folder, reference):
    run = RunDir(folder / "restarted")
    sets = [*DROPOUT, *LONGER, PROCESSES, "launch.restarts=1"]
    process = command(folder, "recipe.yaml", "--out", "restarted", *flags(sets))
    wait_for(reached(run, 7))
    (launcher,) = children(process.pid)
    os.kill(children(launcher)[0], signal.SIGKILL)
    code, error = said(process)
    assert code == 0, error
    assert "warning: process 0 ended with SIGKILL; restarting all processes (restart 1 of 1)" in error
    (event,) = [event for event in run.events() if event["event"] == "restarted"]
    assert event["restart"] == 1
    assert weights(run) == weights(reference)
    assert curves(run) == curves(reference)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_two_nodes_train_as_two_processes_do(folder, reference, port):
    meet = ["--out", "nodes", "--nodes", "2", "--rendezvous", f"localhost:{port}", *flags([*DROPOUT, *LONGER])]
    second = command(folder, "recipe.yaml", *meet, "--node-rank", "1")
    first = command(folder, "recipe.yaml", *meet, "--node-rank", "0")
    ended = [said(process) for process in (first, second)]
    assert [code for code, _ in ended] == [0, 0], ended
    assert "2 processes on 2 nodes, ddp over gloo" in ended[0][1]
    assert ended[1][1] == "node 1 of 2 waits for node 0 to prepare the data\nnode 1 of 2 trains\n"
    run = RunDir(folder / "nodes")
    assert weights(run) == weights(reference)
    assert run.facts("train")["launch"] == {"processes": 1, "nodes": 2, "strategy": "ddp"}


def begun(run):
    return any(event["event"] == "step" for event in run.events())


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    ("dead", "part", "left"),
    [(0, "command", "node 0, "), (0, "worker", "node 0, "), (1, "command", "node 1, "), (1, "worker", "node 1, ")],
)
def test_a_node_ends_if_the_other_is_killed_and_names_it(folder, port, dead, part, left):
    run = RunDir(folder / f"killed-{dead}-{part}")
    meet = ["--out", run.path, "--nodes", "2", "--rendezvous", f"localhost:{port}", *flags(["train.epochs=40"])]
    nodes = [command(folder, "recipe.yaml", *meet, "--node-rank", number) for number in (0, 1)]
    wait_for(lambda: begun(run))
    os.kill(nodes[dead].pid if part == "command" else children(nodes[dead].pid)[0], signal.SIGKILL)
    code, error = said(nodes[1 - dead])
    assert code == 1
    assert f"error: {left}" in error
    assert "is gone; its command or its machine has ended" in error
    said(nodes[dead])


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_port_in_use_ends_every_node(folder):
    with socket.socket() as other:
        other.bind(("localhost", 0))
        other.listen()  # and never answers
        meet = ["--out", "taken", "--nodes", "2", "--rendezvous", f"localhost:{other.getsockname()[1]}"]
        nodes = [command(folder, "recipe.yaml", *meet, "--node-rank", number) for number in (0, 1)]
        (code, error), (other_code, other_error) = [said(each) for each in nodes]
    assert (code, other_code) == (1, 1)
    assert "node 0 cannot listen at localhost" in error
    assert "node 0 has ended, before the nodes met" in other_error or "the stage train failed on node 0" in other_error


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_node_ends_if_node_0_is_killed_before_the_rendezvous(folder, port):
    run = RunDir(folder / "killed early")
    meet = ["--out", run.path, "--nodes", "2", "--rendezvous", f"localhost:{port}"]
    second = command(folder, "recipe.yaml", *meet, "--node-rank", "1")
    first = command(folder, "recipe.yaml", *meet, "--node-rank", "0")
    wait_for(lambda: "train" in run.read_json("state.json"))
    first.kill()
    first.communicate()
    code, error = said(second)
    assert code == 1
    assert "node 0 has sent no heartbeat for 60 seconds" in error


@pytest.mark.slow
def test_a_node_ends_if_node_0_cannot_prepare(folder, port):
    meet = ["--out", "bad", "--nodes", "2", "--rendezvous", f"localhost:{port}", *flags(["expect_mask=abc"])]
    second = command(folder, "recipe.yaml", *meet, "--node-rank", "1")
    assert second.stderr.readline() == "node 1 of 2 waits for node 0 to prepare the data\n"
    assert said(command(folder, "recipe.yaml", *meet, "--node-rank", "0"))[0] == 1
    code, error = said(second)
    assert code == 1
    assert "the stage prepare failed on node 0" in error


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_run_may_resume_with_other_processes_if_a_step_has_as_many_rows(folder, two):
    from sftrun import load
    from sftrun.launch import topology
    from sftrun.runs import resume

    def fits(*sets):
        recipe = load(folder / "recipe.yaml", list(sets))
        return resume.reconcile(recipe, two, topology.world_size(recipe), STAGES)

    (warning,) = fits("train.batch_size=4")
    assert warning.startswith("launch.processes, train.batch_size changed: the weights will differ by rounding")
    assert fits(PROCESSES, "launch.restarts=2") == []
    with pytest.raises(UserError, match=r"launch.processes is 4, but the run in two has trained with 2"):
        fits("launch.processes=4")
    with pytest.raises(UserError, match=r'launch.processes is "auto", but the run in two has trained with 2'):
        fits()
