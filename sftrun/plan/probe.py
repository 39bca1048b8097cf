"""A few real steps on the largest batches, the largest evaluation and a save: an estimate becomes a measurement."""

import statistics
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from sftrun import launch
from sftrun.data import pack, store
from sftrun.errors import UserError
from sftrun.plan import batches
from sftrun.recipe.model import LaunchOptions, Recipe
from sftrun.recipe.resolved import resolved_yaml
from sftrun.rundir import RunDir

LARGEST, USUAL = 2, 4  # optimizer steps on the largest batches, and on usual ones


def probe(recipe: Recipe, run: RunDir, folder: Path) -> dict[str, Any]:
    """Peak memory, seconds of a usual step and of the whole training, measured in a worker process.

    Raises UserError where memory runs out.
    """
    train = batches.read(run.prepared, "train", recipe.packing.strategy != "none")
    if train is None:
        raise UserError("there are no training rows to measure with")
    trial = RunDir(folder)
    evaluates = recipe.train.eval_strategy != "no" and (run.prepared / "val.arrow").is_file()
    _write(recipe, run, trial, train, evaluates)
    events: list[dict[str, Any]] = []
    launch.work("sftrun.plan.work:probe_here", trial, events.append)
    measured = next(event for event in events if event["event"] == "probed")
    found = {"peak": measured["peak"], "kind": measured["kind"]}
    return {**found, **_times(recipe, train, [event for event in events if event["event"] == "step"])}


def _write(recipe: Recipe, run: RunDir, trial: RunDir, train: batches.Rows, evaluates: bool) -> None:
    trial.prepared.mkdir(parents=True)
    chosen = _chosen(recipe, train)
    if train.packs is None:
        _copy(run, trial, "train", chosen)
    else:
        packs = [train.packs.rows(each) for each in chosen]
        _copy(run, trial, "train", np.concatenate(packs).tolist())
        starts = np.cumsum([0, *map(len, packs)]).astype(np.int32)
        pack.write(trial.prepared / "train.packs.arrow", pack.Packs(np.arange(starts[-1], dtype=np.int32), starts))
    if evaluates:
        _copy(run, trial, "val", _largest_evaluation(recipe, run))
    proof = run.read_json("prepared/proof.json")
    for split in proof["splits"].values():
        split["examples"] = []
    trial.write_json("prepared/proof.json", proof)
    trial.write("prepared/stats.json", (run.prepared / "stats.json").read_text("utf-8"))
    trial.write("resolved.yaml", resolved_yaml(_short(recipe, evaluates)))
    trial.write("lock.json", (run.path / "lock.json").read_text("utf-8"))


def _short(recipe: Recipe, evaluates: bool) -> Recipe:
    """The recipe with a few steps, each of which is reported, one evaluation and one save."""
    last = LARGEST + USUAL
    steps = {"epochs": 1, "max_steps": last, "logging_steps": 1, "group_by_length": True}
    evaluation: dict[str, Any] = {"eval_strategy": "steps" if evaluates else "no", "eval_steps": last}
    save: dict[str, Any] = {"save_strategy": "steps", "save_steps": last, "save_total_limit": 1}
    best: dict[str, Any] = {"keep_best": False, "early_stopping": None}
    alone = LaunchOptions(processes=1)
    return msgspec.structs.replace(
        recipe, launch=alone, train=msgspec.structs.replace(recipe.train, **steps, **evaluation, **save, **best)
    )


def _chosen(recipe: Recipe, train: batches.Rows) -> list[int]:
    """Rows, or packs, of so many steps: the largest, and some that are spread over all."""
    a_step = recipe.train.batch_size * recipe.train.grad_accum
    most = batches.largest(recipe, train)
    spread: list[int] = np.linspace(0, len(train) - 1, a_step * USUAL).astype(int).tolist()
    return [most[index % len(most)] for index in range(a_step * LARGEST)] + spread


def _largest_evaluation(recipe: Recipe, run: RunDir) -> list[int]:
    rows = batches.read(run.prepared, "val")
    assert rows is not None
    longest: list[int] = np.argsort(-rows.lengths, kind="stable")[: recipe.train.eval_batch_size].tolist()
    return longest


def _copy(run: RunDir, trial: RunDir, split: str, rows: list[int]) -> None:
    """Writes some rows of a split, in this order, as a split of their own."""
    wanted = set(rows)
    file = run.prepared / f"{split}.arrow"
    kept = {at: sample for at, sample in enumerate(store.read_samples(file)) if at in wanted}
    samples = [kept[row] for row in rows]
    writer = store.Writer(trial.prepared / f"{split}.arrow")
    ids, trained = (np.concatenate([getattr(each, name) for each in samples]) for name in ("ids", "trained"))
    lengths = np.array([len(each.ids) for each in samples])
    writer.add(ids.astype(np.int32), trained, lengths, [each.origin for each in samples])
    writer.close()


def _times(recipe: Recipe, train: batches.Rows, events: list[dict[str, Any]]) -> dict[str, Any]:
    """Seconds of a step as a + b · tokens, fitted to the steps after the first, which warms up."""
    counts = np.diff([0, *(event["tokens"] for event in events)]).tolist()
    seconds = [count / event["tokens_per_s"] for count, event in zip(counts, events, strict=True)]
    slowest = max(seconds[1:] or seconds)
    steps = batches.steps(recipe, len(train))
    a_step = recipe.train.batch_size * recipe.train.grad_accum  # of one process; others work at the same time
    usual = float(train.lengths.sum()) / len(train) * min(a_step, len(train))
    fixed, each = _line(counts[1:] or counts, seconds[1:] or seconds)
    took = fixed + each * usual
    return {"seconds_per_step": took, "slowest_step": slowest, "seconds": took * steps}


def _line(counts: list[int], seconds: list[float]) -> tuple[float, float]:
    if len(set(counts)) > 1:
        each, fixed = statistics.linear_regression(counts, seconds)
        if fixed >= 0 and each >= 0:
            return fixed, each
    return 0.0, sum(seconds) / max(sum(counts), 1)
