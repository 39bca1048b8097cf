"""What a node other than the first does: it waits for the prepared data, and trains with the others."""

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sftrun.errors import UserError
from sftrun.events import Joining
from sftrun.kinds import Emit
from sftrun.launch import signals, workers
from sftrun.launch.heartbeat import AGAIN, Pulse
from sftrun.launch.topology import Node
from sftrun.recipe.resolved import resolved_yaml
from sftrun.recipe.validate import Loaded
from sftrun.runs import directory
from sftrun.runs.directory import RunDir

EVERY = 0.5  # seconds between two looks at the run directory
STAGES = ("prepare", "train")


def join(loaded: Loaded, out: Path, node: Node, watch: Emit, target: str) -> RunDir:
    """Trains as one of the nodes of a run; the first one prepares, evaluates, exports and reports.

    `target` is the function that each rank calls. Raises as a run does; for what fails on another node too.
    """
    recipe = loaded.recipe
    run = RunDir(out.absolute())
    run.log = run.path / f"run-node{node.rank}.log"
    with signals.SIGNALS.heard():
        watch(Joining(status="waiting", node=node.rank, nodes=recipe.launch.nodes))
        if not _trains(run):
            return run
        watch(Joining(status="training", node=node.rank, nodes=recipe.launch.nodes))
        workers.work(target, run, watch, workers.ranks(recipe, node, resolved_yaml(recipe)))
    return run


def _trains(run: RunDir) -> bool:
    """Waits until the first node trains; False where it has done so before. Raises UserError where it fails, or ends.

    What an attempt before has left may say that it trains already: then the nodes wait for each other where they meet.
    """
    before, pulse = _state(run), Pulse(run.path)
    while True:
        ended, now = pulse.ended(), _state(run)
        status = now.get("train", {}).get("status")
        if status == "done" or (status == "started" and pulse.heard and not ended):
            return bool(status == "started")
        for stage in _changed(before, now):
            if now[stage].get("status") == "failed":
                reason = now[stage].get("reason", "").removeprefix("error: ")
                raise UserError(f"node 0 could not {stage}: {reason}")
        if ended:
            raise UserError(f"node 0 {ended}, before it trained", hint=AGAIN)
        time.sleep(EVERY)


def _state(run: RunDir) -> dict[str, Any]:
    return dict(run.read_json("state.json")) if (run.path / directory.BEGUN).is_file() else {}


def _changed(before: dict[str, Any], now: dict[str, Any]) -> Iterator[str]:
    return (stage for stage in STAGES if stage in now and before.get(stage) != now[stage])
