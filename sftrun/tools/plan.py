"""`sftrun plan`: the stage prepare, then estimates in a worker process, and a few real steps where asked for."""

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sftrun import flow
from sftrun.errors import OutOfMemory, Problem, UserError
from sftrun.events import Estimated, Event, encode
from sftrun.kinds import Emit
from sftrun.launch import workers
from sftrun.memory import batches, changes, recover, search
from sftrun.memory.machine import machine
from sftrun.recipe.model import Recipe
from sftrun.recipe.validate import PathLike, load_with_places
from sftrun.registry import current
from sftrun.runs import preflight, session
from sftrun.runs.directory import RunDir

KINDS = (*preflight.DATA_KINDS, "backend")


def plan(
    recipe: PathLike | Recipe,
    overrides: Sequence[str] = (),
    watch: Emit = lambda event: None,
    data: bool = True,
    probe: bool = False,
) -> dict[str, Any]:
    """What a recipe takes: parameters, data, memory, disk; without `data`, batches are taken to be full.

    With `probe`, a few steps are run and measured. Raises UserError as `run` does. Nothing of it stays but what
    preparing leaves in the cache.
    """
    loaded = load_with_places(recipe, overrides)
    with session.temporary_folder(".plan-") as folder, flow.new_run(loaded, folder / "run", watch, KINDS) as work:
        given, run, emit = work.recipe, work.run, work.emit
        estimates = _estimates(given, probe)
        if data or probe:
            from sftrun.stages.prepare import prepare

            prepare(work)
        chosen = _chosen(given, run, emit, probe) if given.train.batch_size == "auto" else None
        planned = run.recipe()
        found = {**_seen(planned, run), "chosen": chosen}
        if estimates:
            estimate = _estimated(run, emit)
            found["disk"]["checkpoint"] = estimate.pop("checkpoint")
            found |= estimate
        if probe:
            found["measured"] = _measured(planned, run, folder / "probe")
        return {**found, **_verdict(found)}


def _estimates(recipe: Recipe, probe: bool) -> bool:
    """Whether the backend can say what it takes; raises UserError where nothing else would either."""
    use = recipe.backend
    estimates = hasattr(current().create("backend", use), "estimate")
    if not estimates and not probe:
        message = f"the backend {use.use} cannot say what it takes before it has run (it has no `estimate`)"
        raise UserError(Problem(message, path=("backend",), hint="add --probe, which runs a few steps and measures"))
    return estimates


def _chosen(recipe: Recipe, run: RunDir, emit: Emit, probe: bool) -> dict[str, Any] | None:
    """Writes down the batch that `train.batch_size: auto` comes to; one row at a time where nothing fits."""
    found = search.measured(recipe, run, emit) if probe else search.estimated(recipe, run)
    made = changes.changed(recipe, found.sets if found else next(changes.splits(recipe)))
    run.write_recipe(made)
    split = {"batch_size": made.train.batch_size, "grad_accum": made.train.grad_accum}
    return {**split, "measured": found.measured} if found else None


def _measured(recipe: Recipe, run: RunDir, folder: Path) -> dict[str, Any]:
    from sftrun.memory.probe import probe

    try:
        return probe(recipe, run, folder)
    except OutOfMemory as error:
        raise OutOfMemory(error.problems[0].message, hint=recover.beforehand(recipe, run)) from error


def _estimated(run: RunDir, emit: Emit) -> dict[str, Any]:
    """What the backend says, without having run anything."""
    seen: list[Estimated] = []

    def pick(event: Event) -> None:
        if isinstance(event, Estimated):
            seen.append(event)
        else:
            emit(event)

    workers.work("sftrun.memory.estimate:estimate_here", run, pick)
    return {key: value for key, value in encode(seen[0]).items() if key != "event"}


def _seen(recipe: Recipe, run: RunDir) -> dict[str, Any]:
    """What is known without asking the backend."""
    train = batches.read(run.prepared, "train", recipe.packing.strategy != "none")
    shape = batches.training(recipe, train)
    kept = recipe.train.save_total_limit if recipe.train.save_strategy != "no" else 0
    return {
        "model": recipe.model.name,
        "batch": {"rows": len(shape.lengths), "longest": max(shape.lengths), "trained": shape.trained},
        "data": _data(recipe, train) if train else None,
        "disk": {"kept": kept, "free": shutil.disk_usage(Path.cwd()).free},
        "notes": [],
        "changes": [],
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
    needed, device = found.get("measured", found)["peak"], found.get("device")
    if device is None:
        kind = found["measured"]["kind"]
        here = machine(kind)
        device = {"kind": kind, "name": here.name, "total": here.total, "free": here.free}
    # estimates are within 15 %, so that more than this is narrow
    narrow = needed > search.MARGIN * device["free"]
    verdict = "does not fit" if needed > device["free"] else "fits narrowly" if narrow else "fits"
    return {"device": device, "verdict": verdict}
