"""`sftrun plan`: prepares the data, estimates memory in a worker process, and measures a few steps on request."""

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
from sftrun.memory.machine import read_machine
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
    """Returns what a recipe needs: parameters, data, memory, disk; without `data`, batches count as full.

    With `probe`, runs a few steps and measures them. Raises UserError as `run` does. Leaves nothing on the disk but
    the prepared data in the cache.
    """
    loaded = load_with_places(recipe, overrides)
    with session.temporary_folder(".plan-") as folder, flow.new_run(loaded, folder / "run", watch, KINDS) as work:
        given, run, emit = work.recipe, work.run, work.emit
        estimates = _can_estimate(given, probe)
        if data or probe:
            from sftrun.stages.prepare import prepare

            prepare(work)
        chosen = _choose_batch(given, run, emit, probe) if given.train.batch_size == "auto" else None
        planned = run.recipe()
        found = {**_describe_data(planned, run), "chosen": chosen}
        if estimates:
            estimate = _estimate(run, emit)
            found["disk"]["checkpoint"] = estimate.pop("checkpoint")
            found |= estimate
        if probe:
            found["measured"] = _measure(planned, run, folder / "probe")
        return {**found, **_judge(found)}


def _can_estimate(recipe: Recipe, probe: bool) -> bool:
    """Returns True if the backend estimates memory; raises UserError if it does not and `probe` is False."""
    use = recipe.backend
    estimates = hasattr(current().create("backend", use), "estimate")
    if not estimates and not probe:
        message = f"the backend {use.use} cannot estimate memory (it has no method `estimate`)"
        raise UserError(Problem(message, path=("backend",), hint="add --probe, which runs a few steps and measures"))
    return estimates


def _choose_batch(recipe: Recipe, run: RunDir, emit: Emit, probe: bool) -> dict[str, Any] | None:
    """Writes the batch that `train.batch_size: auto` chooses to resolved.yaml; a single row if nothing fits."""
    choice = search.measure_batch(recipe, run, emit) if probe else search.estimate_batch(recipe, run)
    changed = changes.apply_changes(recipe, choice.sets if choice else next(changes.split_step(recipe)))
    run.write_recipe(changed)
    split = {"batch_size": changed.train.batch_size, "grad_accum": changed.train.grad_accum}
    return {**split, "measured": choice.measured} if choice else None


def _measure(recipe: Recipe, run: RunDir, folder: Path) -> dict[str, Any]:
    from sftrun.memory.probe import measure_steps

    try:
        return measure_steps(recipe, run, folder)
    except OutOfMemory as error:
        raise OutOfMemory(error.problems[0].message, hint=recover.suggest_smaller_batch(recipe, run)) from error


def _estimate(run: RunDir, emit: Emit) -> dict[str, Any]:
    """Returns the estimate of the backend, without training."""
    planned: list[Estimated] = []

    def pick(event: Event) -> None:
        if isinstance(event, Estimated):
            planned.append(event)
        else:
            emit(event)

    workers.run_in_worker("sftrun.memory.estimate:estimate_in_worker", run, pick)
    return {key: value for key, value in encode(planned[0]).items() if key != "event"}


def _describe_data(recipe: Recipe, run: RunDir) -> dict[str, Any]:
    """Returns the facts that need no backend: batch, data, disk."""
    train = batches.read_row_lengths(run.prepared, "train", recipe.packing.strategy != "none")
    shape = batches.largest_training_batch(recipe, train)
    kept = recipe.train.save_total_limit if recipe.train.save_strategy != "no" else 0
    return {
        "model": recipe.model.name,
        "batch": {"rows": len(shape.lengths), "longest": max(shape.lengths), "trained": shape.trained},
        "data": _count_data(recipe, train) if train else None,
        "disk": {"kept": kept, "free": shutil.disk_usage(Path.cwd()).free},
        "notes": [],
        "changes": [],
    }


def _count_data(recipe: Recipe, train: batches.RowLengths) -> dict[str, Any]:
    steps = batches.count_steps(recipe, len(train))
    found: dict[str, Any] = {
        "rows": len(train.lengths),
        "tokens": int(train.lengths.sum()),
        "trained_tokens": int(train.trained.sum()),
        "steps": steps,
        "warmup_steps": recipe.train.warmup_steps(steps),
    }
    return found if train.packs is None else {**found, "sequences": len(train)}


def _judge(found: dict[str, Any]) -> dict[str, Any]:
    """Returns the device and the verdict whether the recipe fits, from the measurement if there is one."""
    needed = found.get("measured", found)["peak"]
    device = found.get("device")
    if device is None:
        kind = found["measured"]["kind"]
        here = read_machine(kind)
        device = {"kind": kind, "name": here.name, "total": here.total, "free": here.free}
    # estimates are off by up to 15 %
    narrow = needed > search.MARGIN * device["free"]
    verdict = "does not fit" if needed > device["free"] else "fits narrowly" if narrow else "fits"
    return {"device": device, "verdict": verdict}
