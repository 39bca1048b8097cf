"""Measures memory and time: a few real steps on the largest batches, the largest evaluation and a save."""

import statistics
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from sftrun.data import pack, store
from sftrun.data.samples import Samples
from sftrun.errors import UserError
from sftrun.events import Event, Step
from sftrun.launch import topology, workers
from sftrun.memory import batches
from sftrun.memory.estimate import PEAK_FILE
from sftrun.recipe.model import LaunchOptions, Recipe
from sftrun.runs.directory import RunDir

LARGEST_STEPS = 2  # optimizer steps on the largest batches
USUAL_STEPS = 4  # optimizer steps on rows spread over the data
ACCUMULATED = 2  # micro-batches of a step: more of them take no more memory


def measure_steps(recipe: Recipe, run: RunDir, folder: Path) -> dict[str, Any]:
    """Returns peak memory, seconds of a usual step and of the whole training, measured in a worker process.

    Raises UserError if memory runs out.
    """
    train = _read_train(recipe, run)
    measured, events = _train_and_measure(recipe, run, folder, train, USUAL_STEPS)
    return {**measured, **_estimate_times(recipe, train, [event for event in events if isinstance(event, Step)])}


def measure_peak(recipe: Recipe, run: RunDir, folder: Path) -> dict[str, Any]:
    """Returns the peak memory (`peak`) and the memory that was available (`room`), in bytes.

    Takes less time than `measure_steps`. Raises UserError if memory runs out.
    """
    train = msgspec.structs.replace(recipe.train, grad_accum=min(recipe.train.grad_accum, ACCUMULATED))
    shorter = msgspec.structs.replace(recipe, train=train)
    return _train_and_measure(shorter, run, folder, _read_train(recipe, run), 0)[0]


def _read_train(recipe: Recipe, run: RunDir) -> batches.RowLengths:
    train = batches.read_row_lengths(run.prepared, "train", recipe.packing.strategy != "none")
    if train is None:
        raise UserError("there are no training rows to measure with")
    return train


def _train_and_measure(
    recipe: Recipe, run: RunDir, folder: Path, train: batches.RowLengths, usual: int
) -> tuple[dict[str, Any], list[Event]]:
    """Trains LARGEST_STEPS and then `usual` steps in a worker; returns the memory that it used, and its events.

    Every rank of this machine trains, as in a run, and the largest of their peaks counts.
    """
    trial = RunDir(folder)
    trial.locks = run.locks
    _write_trial(recipe, run, trial, train, usual)
    events: list[Event] = []
    count = topology.local_world_size(recipe)
    ranks = workers.Ranks(count) if count > 1 else None
    workers.run_in_worker("sftrun.memory.estimate:measure_in_worker", trial, events.append, ranks)
    peaks = [trial.read_json(PEAK_FILE.format(rank)) for rank in range(count)]
    return {**max(peaks, key=lambda each: each["peak"]), "processes": count}, events


def _write_trial(recipe: Recipe, run: RunDir, trial: RunDir, train: batches.RowLengths, usual: int) -> None:
    """Fills a run directory with the chosen rows and a short recipe."""
    evaluates = recipe.train.eval_strategy != "no" and (run.prepared / "val.arrow").is_file()
    trial.prepared.mkdir(parents=True)
    chosen = _choose_rows(recipe, train, usual)
    if train.packs is None:
        _copy_rows(run, trial, "train", chosen)
    else:
        packs = [train.packs.rows(each) for each in chosen]
        _copy_rows(run, trial, "train", np.concatenate(packs).tolist())
        starts = np.cumsum([0, *map(len, packs)]).astype(np.int32)
        pack.write_packs(
            trial.prepared / "train.packs.arrow", pack.Packs(np.arange(starts[-1], dtype=np.int32), starts)
        )
    if evaluates:
        _copy_rows(run, trial, "val", _longest_validation_rows(recipe, run))
    proof = run.read_json("prepared/proof.json")
    for split in proof["splits"].values():
        split["examples"] = []
    trial.write_json("prepared/proof.json", proof)
    trial.write("prepared/stats.json", (run.prepared / "stats.json").read_text("utf-8"))
    trial.write_recipe(_shorten(recipe, evaluates, LARGEST_STEPS + usual))
    trial.write("lock.json", (run.path / "lock.json").read_text("utf-8"))


def _shorten(recipe: Recipe, evaluates: bool, last: int) -> Recipe:
    """Returns the recipe with `last` steps, all logged, with one save, and one evaluation if `evaluates`."""
    steps = {"epochs": 1, "max_steps": last, "logging_steps": 1, "group_by_length": True}
    evaluation: dict[str, Any] = {"eval_strategy": "steps" if evaluates else "no", "eval_steps": last}
    save: dict[str, Any] = {"save_strategy": "steps", "save_steps": last, "save_total_limit": 1}
    best: dict[str, Any] = {"keep_best": False, "early_stopping": None}
    count = topology.local_world_size(recipe)
    one_machine = msgspec.structs.replace(recipe.launch, processes=count, nodes=1, restarts=0)
    return msgspec.structs.replace(
        recipe,
        launch=one_machine if count > 1 else LaunchOptions(processes=1),
        train=msgspec.structs.replace(recipe.train, **steps, **evaluation, **save, **best),
    )


def _choose_rows(recipe: Recipe, train: batches.RowLengths, usual: int) -> list[int]:
    """Returns the rows (or packs) to train on: the longest for LARGEST_STEPS, then evenly spread ones."""
    count = _local_rows_per_step(recipe)
    longest = batches.pick_longest_rows(recipe, train)
    spread: list[int] = np.linspace(0, len(train) - 1, count * usual).astype(int).tolist()
    return [longest[index % len(longest)] for index in range(count * LARGEST_STEPS)] + spread


def _local_rows_per_step(recipe: Recipe) -> int:
    """Returns the rows of an optimizer step on this machine; other machines are not measured."""
    return recipe.train.micro_batch * recipe.train.grad_accum * topology.local_world_size(recipe)


def _longest_validation_rows(recipe: Recipe, run: RunDir) -> list[int]:
    rows = batches.read_row_lengths(run.prepared, "val")
    assert rows is not None
    longest: list[int] = np.argsort(-rows.lengths, kind="stable")[: recipe.train.eval_batch_size].tolist()
    return longest


def _copy_rows(run: RunDir, trial: RunDir, split: str, rows: list[int]) -> None:
    """Writes rows of a split, in the given order, as the same split of another run directory."""
    prepared = Samples(run.prepared / f"{split}.arrow")
    samples = [prepared[row] for row in rows]
    writer = store.Writer(trial.prepared / f"{split}.arrow")
    ids, trained = (np.concatenate([getattr(each, name) for each in samples]) for name in ("ids", "trained"))
    lengths = np.array([len(each.ids) for each in samples])
    writer.add(ids.astype(np.int32), trained, lengths, [each.origin for each in samples])
    writer.close()


def _estimate_times(recipe: Recipe, train: batches.RowLengths, events: list[Step]) -> dict[str, Any]:
    """Returns seconds of a step and of the training, from a fit of a + b · tokens; the first step is a warm-up."""
    counts = np.diff([0, *(event.tokens or 0 for event in events)]).tolist()
    seconds = [count / (event.tokens_per_s or 1) for count, event in zip(counts, events, strict=True)]
    slowest = max(seconds[1:] or seconds)
    steps = batches.count_steps(recipe, len(train))
    tokens = float(train.lengths.sum()) / len(train) * min(_local_rows_per_step(recipe), len(train))
    fixed, per_token = _fit_line(counts[1:] or counts, seconds[1:] or seconds)
    per_step = fixed + per_token * tokens
    return {"seconds_per_step": per_step, "slowest_step": slowest, "seconds": per_step * steps}


def _fit_line(counts: list[int], seconds: list[float]) -> tuple[float, float]:
    if len(set(counts)) > 1:
        per_token, fixed = statistics.linear_regression(counts, seconds)
        if fixed >= 0 and per_token >= 0:
            return fixed, per_token
    return 0.0, sum(seconds) / max(sum(counts), 1)
