"""Nodes other than node 0: wait for the prepared data, then train with the other nodes."""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sftrun.errors import OutOfMemory, UserError
from sftrun.events import Joining, Warned
from sftrun.kinds import Emit
from sftrun.launch import signals, workers
from sftrun.launch.heartbeat import RESTART_HINT, HeartbeatMonitor
from sftrun.launch.topology import Node
from sftrun.recipe.model import Recipe
from sftrun.recipe.resolved import resolved_yaml
from sftrun.recipe.validate import Loaded
from sftrun.runs import directory, resume
from sftrun.runs.directory import RunDir

POLL_INTERVAL = 0.5  # seconds between two reads of the run directory


def join(loaded: Loaded, out: Path, node: Node, watch: Emit, target: str, stages: Sequence[str]) -> RunDir:
    """Trains as a node other than node 0, which also prepares, evaluates, exports and reports.

    `target` is the function that each rank calls, and `stages` are the names of those whose failure on node 0 ends this
    node too. Raises what `sftrun.run` raises, also if another node failed.
    """
    recipe = loaded.recipe
    run = RunDir(out.absolute())
    run.log = run.path / f"run-node{node.rank}.log"
    with signals.SIGNALS.handling():
        watch(Joining(status="waiting", node=node.rank, nodes=recipe.launch.nodes))
        if not _wait_for_training(run, stages):
            return run
        while not _train(recipe, run, node, watch, target):
            pass
    return run


def _train(recipe: Recipe, run: RunDir, node: Node, watch: Emit, target: str) -> bool:
    """Trains with the other nodes; returns False if memory ran out and node 0 has chosen a smaller batch."""
    watch(Joining(status="training", node=node.rank, nodes=recipe.launch.nodes))
    shrunk = _count_shrunk(run)
    # node 0 has chosen the commit of the model, and may have chosen the batch, in this attempt or an earlier one
    agreed = resume.keep_choices(recipe, RunDir(run.path))
    try:
        workers.run_in_worker(target, run, watch, workers.plan_ranks(agreed, node, resolved_yaml(agreed)))
        return True
    except OutOfMemory:
        signals.SIGNALS.raise_if_interrupted()
        if recipe.train.on_oom == "error":
            raise
        watch(Warned(message="memory ran out: waiting for node 0 to choose a smaller batch"))
        if not _wait_for_smaller_batch(run, shrunk):
            raise
    return False


def _wait_for_smaller_batch(run: RunDir, shrunk: int) -> bool:
    """Returns True once node 0 has shrunk the batch again, and False if it ends instead."""
    monitor = HeartbeatMonitor(run.path, seen=True)
    while _count_shrunk(run) == shrunk:
        status = _state(run).get("train", {}).get("status")
        if status != "started" or monitor.explain_end():
            return False
        time.sleep(POLL_INTERVAL)
    return True


def _count_shrunk(run: RunDir) -> int:
    return len(_state(run).get("train", {}).get("batch", {}).get("shrunk", []))


def _wait_for_training(run: RunDir, stages: Sequence[str]) -> bool:
    """Waits until node 0 trains, and returns True; returns False if training is already done.

    Raises UserError if node 0 fails or ends. An earlier attempt may have left the status "started". Then this node
    continues to the rendezvous, and waits for the other nodes there.
    """
    before = _state(run)
    monitor = HeartbeatMonitor(run.path)
    while True:
        ended = monitor.explain_end()
        now = _state(run)
        status = now.get("train", {}).get("status")
        if status == "done" or (status == "started" and monitor.seen and not ended):
            return bool(status == "started")
        for stage in stages:
            if stage in now and before.get(stage) != now[stage] and now[stage].get("status") == "failed":
                reason = now[stage].get("reason", "").removeprefix("error: ")
                raise UserError(f"the stage {stage} failed on node 0: {reason}")
        if ended:
            raise UserError(f"node 0 {ended}, before it trained", hint=RESTART_HINT)
        time.sleep(POLL_INTERVAL)


def _state(run: RunDir) -> dict[str, Any]:
    return dict(run.read_json("state.json")) if (run.path / directory.BEGUN).is_file() else {}
