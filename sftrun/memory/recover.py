"""Recovery from out-of-memory in training: a smaller micro-batch, or the exact change to make."""

from collections.abc import Callable, Iterator
from typing import Any, Literal

import numpy as np

from sftrun import events, files
from sftrun.errors import OutOfMemory
from sftrun.kinds import Emit
from sftrun.launch import failures, signals, topology
from sftrun.memory import batches, changes
from sftrun.recipe.model import Recipe
from sftrun.recipe.overrides import set_options, value_text
from sftrun.registry import current
from sftrun.runs.directory import RunDir

Attempt = Callable[[Recipe, RunDir, Emit], None]
BATCH_KEYS = ("batch_size", "grad_accum", "eval_batch_size")
FEW = 0.05  # share of the rows that may exceed a suggested max_seq_len
SHORTER = 0.8  # share of the longest row; a longer max_seq_len would not save enough
MULTIPLE = 16  # tokens; suggested lengths are multiples of it


class EvaluationWatch:
    """A listener that passes events on; `validating` is True while an evaluation runs."""

    def __init__(self, emit: Emit) -> None:
        self.emit = emit
        self.validating = False

    def __call__(self, event: events.Event) -> None:
        self.validating = isinstance(event, events.Validating)
        self.emit(event)


def train_with_recovery(attempt: Attempt, recipe: Recipe, run: RunDir, emit: Emit) -> None:
    """Trains; if memory runs out and `train.on_oom` is shrink, resumes from the last checkpoint with smaller batches.

    Raises OutOfMemory, with a hint what to change, if `on_oom` is error or batches cannot be smaller.
    """
    while True:
        watch = EvaluationWatch(emit)
        try:
            return attempt(recipe, run, watch)
        except OutOfMemory as error:
            signals.SIGNALS.raise_if_interrupted()  # after Ctrl-C, do not try again
            said = error.problems[0].message
            sets = shrink_batch(recipe, watch.validating)
            if recipe.train.on_oom == "error" or sets is None:
                hint = _suggest_change(recipe, run, sets) if sets else suggest_other_changes(recipe, run, run)
                raise OutOfMemory(said, hint=hint + failures.suggest_resume_if_killed(said, run)) from error
            doing: Literal["evaluation", "training"] = "evaluation" if watch.validating else "training"
            recipe = write_batch(recipe, run, sets, shrunk={"during": doing, "reason": said})
            emit(events.BatchShrunk(**_batch_values(recipe), during=doing, reason=said))


def shrink_batch(recipe: Recipe, validating: bool) -> changes.Changes | None:
    """Returns the next smaller micro-batch that divides a step, at most half; None if there is none.

    With `validating`, halves the evaluation batch instead, if it has more than one row.
    """
    train = recipe.train
    if validating and train.eval_batch_size > 1:
        return {"train.eval_batch_size": train.eval_batch_size // 2}
    rows = train.micro_batch * train.grad_accum
    fitting = (size for size in range(train.micro_batch // 2, 0, -1) if rows % size == 0)
    return next(({"train.batch_size": size, "train.grad_accum": rows // size} for size in fitting), None)


def write_batch(recipe: Recipe, run: RunDir, sets: changes.Changes, **why: dict[str, Any]) -> Recipe:
    """Returns the recipe with another batch; writes it to resolved.yaml and state.json, next to the original batch.

    Writes the state first: after a kill between the two writes, resolved.yaml still has the earlier batch.
    """
    known = run.facts("train").get("batch", {})
    changed = changes.apply_changes(recipe, sets)
    original = _batch_values(recipe)
    asked = original if recipe.train.batch_size == "auto" else known.get("asked", original)
    record = {**known, "asked": asked, **_batch_values(changed)}
    for name, each in why.items():
        record[name] = [*known.get(name, []), {**_batch_values(changed), **each}]
    run.add_facts("train", batch=record)
    run.write_recipe(changed)
    return changed


def _batch_values(recipe: Recipe) -> dict[str, Any]:
    return {name: getattr(recipe.train, name) for name in BATCH_KEYS}


def _suggest_change(recipe: Recipe, run: RunDir, sets: changes.Changes) -> str:
    """Returns a hint with a change that keeps the training the same, and the command that resumes with it."""
    rows = f" (the same {topology.rows_per_step(recipe)} rows a step)" if "train.batch_size" in sets else ""
    return f"set {_format_changes(sets)}{rows}: {_resume_command(run, sets)}; train.on_oom: shrink does so by itself"


def suggest_smaller_batch(recipe: Recipe, run: RunDir) -> str:
    """Returns a hint for a recipe that does not fit and has not been run."""
    sets = shrink_batch(recipe, validating=False)
    if sets is None:
        return suggest_other_changes(recipe, run, None)
    rows = topology.rows_per_step(recipe)
    auto = _format_changes(changes.choose_automatically(recipe, {}))
    smaller = f"set {_format_changes(sets)} (the same {rows} rows a step)"
    return f"{smaller}, or {auto}, which takes the largest batch that fits"


def suggest_other_changes(recipe: Recipe, run: RunDir, resumed: RunDir | None) -> str:
    """Returns suggestions for a recipe whose batch cannot shrink, least intrusive first.

    `resumed` is a run that can resume with the first suggestion.
    """
    suggestions = []
    if not recipe.train.gradient_checkpointing:
        sets = {"train.gradient_checkpointing": True}
        how = f": {_resume_command(resumed, sets)}" if resumed else ""
        suggestions.append(f"set {_format_changes(sets)} (the same training, slower){how}")
    suggestions += _suggest_new_run(recipe, run)
    return "; or ".join(suggestions) if suggestions else "take a smaller model, or a machine with more memory"


def _suggest_new_run(recipe: Recipe, run: RunDir) -> Iterator[str]:
    rows = batches.read_row_lengths(run.prepared, "train", recipe.packing.strategy != "none")
    shorter = _find_shorter_length(recipe, rows) if rows else None
    if shorter:
        length, lost = shorter
        fate = {"drop": "left out", "truncate": "cut", "split": "cut up", "error": "an error"}[recipe.data.on_too_long]
        assert rows is not None
        counts = f"{lost:,} of {len(rows.lengths):,} rows are longer, and would be {fate}"
        yield f"in a new run set model.max_seq_len: {length} ({counts})"
    for sets in changes.suggest_adapters(recipe, current()):
        yield f"in a new run set {_format_changes(sets)}"


def _find_shorter_length(recipe: Recipe, rows: batches.RowLengths) -> tuple[int, int] | None:
    """Returns a shorter max_seq_len and the number of longer rows: a length that few exceed, or half the longest."""
    longest = recipe.model.max_seq_len if rows.packs else int(rows.lengths.max())
    length = _round_up(float(np.quantile(rows.lengths, 1 - FEW, method="higher")))
    if length > SHORTER * longest:
        length = _round_up(longest / 2)
    return (length, int((rows.lengths > length).sum())) if length < longest else None


def _round_up(length: float) -> int:
    return -int(-length // MULTIPLE) * MULTIPLE


def _format_changes(sets: changes.Changes) -> str:
    return " and ".join(f"{key}: {value_text(value)}" for key, value in sets.items())


def _resume_command(run: RunDir, sets: changes.Changes) -> str:
    return f"sftrun resume {files.shell_path(run.path)} {set_options(sets)}"
