"""A few real steps on the largest batches, the largest evaluation and a save: an estimate becomes a measurement."""

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
from sftrun.memory.estimate import PEAK
from sftrun.recipe.model import LaunchOptions, Recipe
from sftrun.runs.directory import RunDir

LARGEST, USUAL = 2, 4  # optimizer steps on the largest batches, and on usual ones
SUMMED = 2  # forward passes of a step that take as much memory as any number of them


def probe(recipe: Recipe, run: RunDir, folder: Path) -> dict[str, Any]:
    """Peak memory, seconds of a usual step and of the whole training, measured in a worker process.

    Raises UserError where memory runs out.
    """
    train = _rows(recipe, run)
    measured, events = _measured(recipe, run, folder, train, USUAL)
    return {**measured, **_times(recipe, train, [event for event in events if isinstance(event, Step)])}


def peak(recipe: Recipe, run: RunDir, folder: Path) -> dict[str, Any]:
    """Peak memory alone (`peak`), and how much there is for it (`room`), in bytes; in less time, as `probe` else."""
    train = msgspec.structs.replace(recipe.train, grad_accum=min(recipe.train.grad_accum, SUMMED))
    shorter = msgspec.structs.replace(recipe, train=train)
    return _measured(shorter, run, folder, _rows(recipe, run), 0)[0]


def _rows(recipe: Recipe, run: RunDir) -> batches.Rows:
    train = batches.read(run.prepared, "train", recipe.packing.strategy != "none")
    if train is None:
        raise UserError("there are no training rows to measure with")
    return train


def _measured(
    recipe: Recipe, run: RunDir, folder: Path, train: batches.Rows, usual: int
) -> tuple[dict[str, Any], list[Event]]:
    """What was in use at most in a process that trains so many usual steps after the largest ones; and its events.

    All processes of this machine train together, as they will; of their peaks the largest counts.
    """
    trial = RunDir(folder)
    trial.locks = run.locks
    _write(recipe, run, trial, train, usual)
    events: list[Event] = []
    count = topology.processes(recipe)
    workers.work("sftrun.memory.estimate:probe_here", trial, events.append, workers.Ranks(count) if count > 1 else None)
    found = [trial.read_json(PEAK.format(number)) for number in range(count)]
    return {**max(found, key=lambda each: each["peak"]), "processes": count}, events


def _write(recipe: Recipe, run: RunDir, trial: RunDir, train: batches.Rows, usual: int) -> None:
    evaluates = recipe.train.eval_strategy != "no" and (run.prepared / "val.arrow").is_file()
    trial.prepared.mkdir(parents=True)
    chosen = _chosen(recipe, train, usual)
    if train.packs is None:
        _copy(run, trial, "train", chosen)
    else:
        packs = [train.packs.rows(each) for each in chosen]
        _copy(run, trial, "train", np.concatenate(packs).tolist())
        starts = np.cumsum([0, *map(len, packs)]).astype(np.int32)
        pack.write_packs(
            trial.prepared / "train.packs.arrow", pack.Packs(np.arange(starts[-1], dtype=np.int32), starts)
        )
    if evaluates:
        _copy(run, trial, "val", _largest_evaluation(recipe, run))
    proof = run.read_json("prepared/proof.json")
    for split in proof["splits"].values():
        split["examples"] = []
    trial.write_json("prepared/proof.json", proof)
    trial.write("prepared/stats.json", (run.prepared / "stats.json").read_text("utf-8"))
    trial.write_recipe(_short(recipe, evaluates, LARGEST + usual))
    trial.write("lock.json", (run.path / "lock.json").read_text("utf-8"))


def _short(recipe: Recipe, evaluates: bool, last: int) -> Recipe:
    """The recipe with a few steps, each of which is reported, one evaluation and one save."""
    steps = {"epochs": 1, "max_steps": last, "logging_steps": 1, "group_by_length": True}
    evaluation: dict[str, Any] = {"eval_strategy": "steps" if evaluates else "no", "eval_steps": last}
    save: dict[str, Any] = {"save_strategy": "steps", "save_steps": last, "save_total_limit": 1}
    best: dict[str, Any] = {"keep_best": False, "early_stopping": None}
    count = topology.processes(recipe)
    here = msgspec.structs.replace(recipe.launch, processes=count, nodes=1, restarts=0)
    return msgspec.structs.replace(
        recipe,
        launch=here if count > 1 else LaunchOptions(processes=1),
        train=msgspec.structs.replace(recipe.train, **steps, **evaluation, **save, **best),
    )


def _chosen(recipe: Recipe, train: batches.Rows, usual: int) -> list[int]:
    """Rows, or packs, of so many steps: the largest, and some that are spread over all."""
    a_step = _rows_of_a_step(recipe)
    most = batches.largest(recipe, train)
    spread: list[int] = np.linspace(0, len(train) - 1, a_step * usual).astype(int).tolist()
    return [most[index % len(most)] for index in range(a_step * LARGEST)] + spread


def _rows_of_a_step(recipe: Recipe) -> int:
    """Of the processes that are measured; those of other machines work at the same time."""
    return recipe.train.micro_batch * recipe.train.grad_accum * topology.processes(recipe)


def _largest_evaluation(recipe: Recipe, run: RunDir) -> list[int]:
    rows = batches.read(run.prepared, "val")
    assert rows is not None
    longest: list[int] = np.argsort(-rows.lengths, kind="stable")[: recipe.train.eval_batch_size].tolist()
    return longest


def _copy(run: RunDir, trial: RunDir, split: str, rows: list[int]) -> None:
    """Writes some rows of a split, in this order, as a split of their own."""
    prepared = Samples(run.prepared / f"{split}.arrow")
    samples = [prepared[row] for row in rows]
    writer = store.Writer(trial.prepared / f"{split}.arrow")
    ids, trained = (np.concatenate([getattr(each, name) for each in samples]) for name in ("ids", "trained"))
    lengths = np.array([len(each.ids) for each in samples])
    writer.add(ids.astype(np.int32), trained, lengths, [each.origin for each in samples])
    writer.close()


def _times(recipe: Recipe, train: batches.Rows, events: list[Step]) -> dict[str, Any]:
    """Seconds of a step as a + b · tokens, fitted to the steps after the first, which warms up."""
    counts = np.diff([0, *(event.tokens or 0 for event in events)]).tolist()
    seconds = [count / (event.tokens_per_s or 1) for count, event in zip(counts, events, strict=True)]
    slowest = max(seconds[1:] or seconds)
    steps = batches.steps(recipe, len(train))
    usual = float(train.lengths.sum()) / len(train) * min(_rows_of_a_step(recipe), len(train))
    fixed, each = _line(counts[1:] or counts, seconds[1:] or seconds)
    took = fixed + each * usual
    return {"seconds_per_step": took, "slowest_step": slowest, "seconds": took * steps}


def _line(counts: list[int], seconds: list[float]) -> tuple[float, float]:
    if len(set(counts)) > 1:
        each, fixed = statistics.linear_regression(counts, seconds)
        if fixed >= 0 and each >= 0:
            return fixed, each
    return 0.0, sum(seconds) / max(sum(counts), 1)
