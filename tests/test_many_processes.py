"""Many processes train together on the CPU, over gloo: as one does, also where they are killed on the way."""

import json
import os
import random
import signal
import socket
import subprocess
import sys
import time

import pytest
from conftest import talk

from sftrun import UserError
from sftrun.data import Samples
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


def alone(folder, name, *sets):
    """The same in this process."""
    import sftrun
    from sftrun.flow import prepare
    from sftrun.stages.train import train_here

    run = prepare(folder / "recipe.yaml", sets, folder / name)
    train_here(sftrun.load(folder / "recipe.yaml", sets), run, run.event)
    return run


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

    close(two, alone(folder, "one", "train.batch_size=4"))
    rows = list(Samples(two.prepared / "train.arrow"))
    assert totals(two) == (2 * sum(len(row.ids) for row in rows), 2 * sum(sum(row.trained[1:]) for row in rows))


def test_how_many_trained_is_recorded_and_said(two):
    assert two.facts("train")["launch"] == {"processes": 2, "nodes": 1, "strategy": "ddp"}
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

    with pytest.raises(UserError, match="the recipe asks for 2 processes, and the launcher has started 1"):
        train_here(load(folder / "recipe.yaml", [PROCESSES]), two, print)


KINDS = {
    "in any order": ["train.group_by_length=false"],
    "packed": ["packing={strategy: best-fit}", "train.epochs=6"],
    "checkpointed": ["train.gradient_checkpointing=true"],
    "adapter on 4 bits": ["tuning={mode: qlora, lora: {r: 4}}", "backend=bnb"],
    "accumulated": [],
}


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("kind", KINDS)
def test_how_rows_are_split_among_processes_and_passes_does_not_matter(folder, kind):
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


def wait_for(what, seconds=300):
    end = time.monotonic() + seconds
    while not (found := what()):
        assert time.monotonic() < end, "it did not come"
        time.sleep(0.01)
    return found


def free_port():
    with socket.socket() as found:
        found.bind(("localhost", 0))
        return found.getsockname()[1]


@pytest.fixture(scope="module")
def reference(folder):
    return trained(folder, "reference", *DROPOUT, *LONGER, PROCESSES, "evaluators=[loss]")


@pytest.mark.slow
def test_other_stages_work_alone(reference):
    loss = reference.read_json("eval/scores.json")["tuned"]["loss"]["val_loss"]
    assert loss == pytest.approx(history.history(reference.events()).validation[-1][1], abs=1e-5)


@pytest.mark.slow
@pytest.mark.timeout(600)
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
@pytest.mark.timeout(600)
def test_a_process_that_dies_is_started_again_and_nothing_is_lost(folder, reference):
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
    assert run.facts("train")["launch"] == {"processes": 1, "nodes": 2, "strategy": "ddp"}


def begun(run):
    return any(event["event"] == "step" for event in run.events())


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    ("dead", "part", "left"),
    [(0, "command", "node 0, "), (0, "worker", "node 0, "), (1, "command", "node 1, "), (1, "worker", "node 1, ")],
)
def test_where_a_node_is_killed_the_other_ends_and_names_it(folder, dead, part, left):
    run = RunDir(folder / f"killed-{dead}-{part}")
    meet = ["--out", run.path, "--nodes", "2", "--rendezvous", f"localhost:{free_port()}", *flags(["train.epochs=40"])]
    nodes = [command(folder, "recipe.yaml", *meet, "--node-rank", number) for number in (0, 1)]
    wait_for(lambda: begun(run))
    since = time.monotonic()
    os.kill(nodes[dead].pid if part == "command" else children(nodes[dead].pid)[0], signal.SIGKILL)
    code, error = said(nodes[1 - dead])
    assert code == 1
    assert f"error: {left}" in error
    assert "is gone; its command or its machine has ended" in error
    assert time.monotonic() - since < 120
    said(nodes[dead])


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_port_that_another_program_has_ends_all_nodes(folder):
    with socket.socket() as other:
        other.bind(("localhost", 0))
        other.listen()  # and never answers
        meet = ["--out", "taken", "--nodes", "2", "--rendezvous", f"localhost:{other.getsockname()[1]}"]
        nodes = [command(folder, "recipe.yaml", *meet, "--node-rank", number) for number in (0, 1)]
        (code, error), (other_code, other_error) = [said(each) for each in nodes]
    assert (code, other_code) == (1, 1)
    assert "node 0 cannot listen at localhost" in error
    assert "node 0 has ended, before the nodes met" in other_error or "node 0 could not train" in other_error


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_node_ends_where_the_first_one_is_killed_before_they_meet(folder):
    run = RunDir(folder / "killed early")
    meet = ["--out", run.path, "--nodes", "2", "--rendezvous", f"localhost:{free_port()}"]
    second = command(folder, "recipe.yaml", *meet, "--node-rank", "1")
    first = command(folder, "recipe.yaml", *meet, "--node-rank", "0")
    wait_for(lambda: "train" in run.read_json("state.json"))
    first.kill()
    first.communicate()
    code, error = said(second)
    assert code == 1
    assert "node 0 has shown no sign of life for 60 seconds" in error


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
@pytest.mark.timeout(600)
def test_a_run_may_go_on_with_other_processes_where_a_step_sees_as_many_rows(folder, two):
    from sftrun import load
    from sftrun.launch import topology
    from sftrun.runs import resume

    def fits(*sets):
        recipe = load(folder / "recipe.yaml", list(sets))
        return resume.reconcile(recipe, two, topology.size(recipe))

    (warning,) = fits("train.batch_size=4")
    assert warning.startswith("launch.processes, train.batch_size changed: the weights will differ by rounding")
    assert fits(PROCESSES, "launch.restarts=2") == []
    with pytest.raises(UserError, match=r"launch.processes is 4, but the run in two has trained with 2"):
        fits("launch.processes=4")
    with pytest.raises(UserError, match=r'launch.processes is "auto", but the run in two has trained with 2'):
        fits()
