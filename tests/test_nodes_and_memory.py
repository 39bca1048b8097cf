"""Several nodes, each with its own command, if memory decides on the batch."""

import subprocess
import sys

import frail_backend
import pytest
from conftest import talk
from frail_backend import frail

from sftrun.runs.directory import RunDir

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

ROWS = [talk(f"What comes after {number}?", str(number + 1)) for number in range(24)]
TRAIN = {"max_steps": 3, "logging_steps": 1, "save_strategy": "steps", "save_steps": 1, "eval_strategy": "no"}


@pytest.fixture(scope="module", autouse=True)
def plugin(tmp_path_factory):
    with frail_backend.installed(tmp_path_factory.mktemp("site")):
        yield


def run_on_two_nodes(recipe, port, *words):
    """Runs the same command as two nodes; returns the run and what each node said."""
    out = recipe.parent / "out"
    command = [sys.executable, "-m", "sftrun", recipe, "--out", out, "--rendezvous", f"localhost:{port}", *words]
    nodes = [
        subprocess.Popen([*command, "--node-rank", str(number)], stderr=subprocess.PIPE, text=True) for number in (0, 1)
    ]
    said = [node.communicate(timeout=500)[1] for node in nodes]
    assert [node.returncode for node in nodes] == [0, 0], said
    return RunDir(out), said


def count_events(run, kind):
    return sum(event["event"] == kind for event in run.events())


def test_nodes_start_with_a_batch_that_node_0_has_chosen_and_resume_with_it(write, port):
    keys = {**TRAIN, "batch_size": "auto", "effective_batch_size": 8}
    recipe = write(ROWS, tuning={"mode": "full"}, train=keys, launch={"nodes": 2, "processes": 1})
    run, _ = run_on_two_nodes(recipe, port)
    assert count_events(run, "batch_chosen") == 1
    state = run.read_json("state.json")
    del state["train"]["status"]  # as if training had been stopped
    run.write_json("state.json", state)
    again, _ = run_on_two_nodes(recipe, port, "--resume")
    assert count_events(again, "resumed") == 1
    assert count_events(again, "batch_chosen") == 1


def test_nodes_shrink_their_batches_together(write, port):
    keys = {**TRAIN, "batch_size": 4, "on_oom": "shrink"}
    backend = frail(rows=1, step=2)
    recipe = write(ROWS, tuning={"mode": "full"}, train=keys, backend=backend, launch={"nodes": 2, "processes": 1})
    run, said = run_on_two_nodes(recipe, port)
    assert [(e["batch_size"], e["grad_accum"]) for e in run.events() if e["event"] == "batch_shrunk"] == [
        (2, 2),
        (1, 4),
    ]
    assert said[1].count("waiting for node 0 to choose a smaller batch") == 2
    assert run.done("train")
