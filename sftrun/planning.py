"""`sftrun plan`: the stage prepare, then estimates in a worker process, and a few real steps where asked for."""

import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sftrun import flow, launch
from sftrun.data.store import cache_folder
from sftrun.plan import batches
from sftrun.recipe.model import Recipe
from sftrun.registry import current
from sftrun.rundir import RunDir
from sftrun.types import Emit

KINDS = (*flow.DATA_LINE, "backend")
MARGIN = 0.9  # estimates are within 15 %: more of the free memory than this is narrow


def plan(
    path: str | Path,
    overrides: Sequence[str] = (),
    watch: Emit = lambda event: None,
    data: bool = True,
    probe: bool = False,
) -> dict[str, Any]:
    """What a recipe takes: parameters, data, memory, disk; without `data`, batches are taken to be full.

    With `probe`, a few steps are run and measured. Raises UserError as `run` does. Nothing of it stays but what
    preparing leaves in the cache.
    """
    root = cache_folder()
    root.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix=".plan-", dir=root))
    try:
        with flow.started(path, overrides, folder / "run", watch, KINDS) as (recipe, run, emit):
            if data or probe:
                from sftrun.stages.prepare import prepare

                prepare(recipe, run, current(), emit)
            found = _estimated(recipe, run, emit)
            if probe:
                from sftrun.plan.probe import probe as measure

                found["measured"] = measure(recipe, run, folder / "probe")
            return {**found, **_verdict(found)}
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _estimated(recipe: Recipe, run: RunDir, emit: Emit) -> dict[str, Any]:
    seen: list[dict[str, Any]] = []

    def pick(event: dict[str, Any]) -> None:
        if event["event"] == "planned":
            seen.append(event)
        else:
            emit(event)

    launch.work("sftrun.plan.work:estimate_here", run, pick)
    found = {key: value for key, value in seen[0].items() if key != "event"}
    train = batches.read(run.prepared, "train", recipe.packing.strategy != "none")
    shape = batches.training(recipe, train)
    kept = recipe.train.save_total_limit if recipe.train.save_strategy != "no" else 0
    disk = {"checkpoint": found.pop("checkpoint"), "kept": kept, "free": shutil.disk_usage(Path.cwd()).free}
    return {
        "model": recipe.model.name,
        **found,
        "batch": {"rows": len(shape.lengths), "longest": max(shape.lengths), "trained": shape.trained},
        "data": _data(recipe, train) if train else None,
        "disk": disk,
    }


def _data(recipe: Recipe, train: batches.Rows) -> dict[str, Any]:
    found: dict[str, Any] = {
        "rows": len(train.lengths),
        "tokens": int(train.lengths.sum()),
        "trained_tokens": int(train.trained.sum()),
        "steps": batches.steps(recipe, len(train)),
    }
    return found if train.packs is None else {**found, "sequences": len(train)}


def _verdict(found: dict[str, Any]) -> dict[str, Any]:
    """Whether it fits: by what was measured, else by what was estimated."""
    needed, free = found.get("measured", found)["peak"], found["device"]["free"]
    verdict = "does not fit" if needed > free else "fits narrowly" if needed > MARGIN * free else "fits"
    return {"verdict": verdict}
