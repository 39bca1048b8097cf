"""Nodes other than node 0: wait for the prepared data, then train with the other nodes."""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sftrun.errors import UserError
from sftrun.events import Joining
from sftrun.kinds import Emit
from sftrun.launch import signals, workers
from sftrun.launch.heartbeat import RESTART_HINT, HeartbeatMonitor
from sftrun.launch.topology import Node
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
        watch(Joining(status="training", node=node.rank, nodes=recipe.launch.nodes))
        resolved = resolved_yaml(resume.keep_choices(recipe, run))  # node 0 has chosen the commit of the model
        workers.run_in_worker(target, run, watch, workers.plan_ranks(recipe, node, resolved))
    return run


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
