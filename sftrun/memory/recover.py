"""Out of memory in training: what to change, exactly; or the same training with fewer rows at a time."""

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
ASKED = ("batch_size", "grad_accum", "eval_batch_size")
FEW = 0.05  # of the rows may be lost to a shorter max_seq_len, if that makes it much shorter
SHORTER = 0.8  # of the longest row is not much shorter
STEP = 16  # tokens that a length is a multiple of


class Heard:
    """Passes events on, and remembers whether the last thing that training did was to begin an evaluation."""

    def __init__(self, emit: Emit) -> None:
        self.emit, self.validating = emit, False

    def __call__(self, event: events.Event) -> None:
        self.validating = isinstance(event, events.Validating)
        self.emit(event)


def guarded(attempt: Attempt, recipe: Recipe, run: RunDir, emit: Emit) -> None:
    """Trains; where memory runs out and `train.on_oom` is shrink, again from the last checkpoint with smaller batches.

    Raises OutOfMemory with what to change where that is not wanted, or batches cannot be smaller.
    """
    while True:
        heard = Heard(emit)
        try:
            return attempt(recipe, run, heard)
        except OutOfMemory as error:
            signals.SIGNALS.check()  # one who wants to stop does not want another attempt
            said, sets = error.problems[0].message, smaller(recipe, heard.validating)
            if recipe.train.on_oom == "error" or sets is None:
                hint = _advice(recipe, run, sets) if sets else otherwise(recipe, run, run)
                raise OutOfMemory(said, hint=hint + failures.if_killed(said, run)) from error
            doing: Literal["evaluation", "training"] = "evaluation" if heard.validating else "training"
            recipe = settle(recipe, run, sets, shrunk={"during": doing, "reason": said})
            emit(events.BatchShrunk(**_split(recipe), during=doing, reason=said))


def smaller(recipe: Recipe, validating: bool) -> changes.Sets | None:
    """Half the rows at a time, or the next fewer that divide a step; of the evaluation where that took too much."""
    train = recipe.train
    if validating and train.eval_batch_size > 1:
        return {"train.eval_batch_size": train.eval_batch_size // 2}
    rows = train.micro_batch * train.grad_accum
    fitting = (size for size in range(train.micro_batch // 2, 0, -1) if rows % size == 0)
    return next(({"train.batch_size": size, "train.grad_accum": rows // size} for size in fitting), None)


def settle(recipe: Recipe, run: RunDir, sets: changes.Sets, **why: dict[str, Any]) -> Recipe:
    """The recipe with another batch, written to resolved.yaml, and to state.json next to what was asked for.

    The state first: what a kill between the two leaves is a recipe that asks for what it did before.
    """
    known = run.facts("train").get("batch", {})
    made = changes.changed(recipe, sets)
    asked = _split(recipe) if recipe.train.batch_size == "auto" else known.get("asked", _split(recipe))
    record = {**known, "asked": asked, **_split(made)}
    for name, each in why.items():
        record[name] = [*known.get(name, []), {**_split(made), **each}]
    run.add_facts("train", batch=record)
    run.write_recipe(made)
    return made


def _split(recipe: Recipe) -> dict[str, Any]:
    return {name: getattr(recipe.train, name) for name in ASKED}


def _advice(recipe: Recipe, run: RunDir, sets: changes.Sets) -> str:
    """The change after which the training is the same, and the command that makes it and goes on."""
    rows = f" (the same {topology.rows(recipe)} rows a step)" if "train.batch_size" in sets else ""
    return f"set {_said(sets)}{rows}: {_command(run, sets)}; train.on_oom: shrink does so by itself"


def beforehand(recipe: Recipe, run: RunDir) -> str:
    """What to change where a plan has shown that it does not fit."""
    sets = smaller(recipe, validating=False)
    if sets is None:
        return otherwise(recipe, run, None)
    rows = topology.rows(recipe)
    auto = _said(changes.auto(recipe, {}))
    return f"set {_said(sets)} (the same {rows} rows a step), or {auto}, which takes the largest batch that fits"


def otherwise(recipe: Recipe, run: RunDir, resumed: RunDir | None) -> str:
    """What helps where there is no smaller batch, in order: from the same training to another one.

    `resumed` is the run that can go on with the first change, if there is one.
    """
    found = []
    if not recipe.train.gradient_checkpointing:
        sets = {"train.gradient_checkpointing": True}
        how = f": {_command(resumed, sets)}" if resumed else ""
        found.append(f"set {_said(sets)} (the same training, slower){how}")
    found += _in_a_new_run(recipe, run)
    return "; or ".join(found) if found else "take a smaller model, or a machine with more memory"


def _in_a_new_run(recipe: Recipe, run: RunDir) -> Iterator[str]:
    rows = batches.read(run.prepared, "train", recipe.packing.strategy != "none")
    shorter = _shorter(recipe, rows) if rows else None
    if shorter:
        length, lost = shorter
        fate = {"drop": "left out", "truncate": "cut", "split": "cut up", "error": "an error"}[recipe.data.on_too_long]
        assert rows is not None
        counts = f"{lost:,} of {len(rows.lengths):,} rows are longer, and would be {fate}"
        yield f"in a new run set model.max_seq_len: {length} ({counts})"
    for sets in changes.adapters(recipe, current()):
        yield f"in a new run set {_said(sets)}"


def _shorter(recipe: Recipe, rows: batches.Rows) -> tuple[int, int] | None:
    """A length that few rows exceed, or else half of the longest; and how many rows do."""
    longest = recipe.model.max_seq_len if rows.packs else int(rows.lengths.max())
    length = _rounded(float(np.quantile(rows.lengths, 1 - FEW, method="higher")))
    if length > SHORTER * longest:
        length = _rounded(longest / 2)
    return (length, int((rows.lengths > length).sum())) if length < longest else None


def _rounded(length: float) -> int:
    return -int(-length // STEP) * STEP


def _said(sets: changes.Sets) -> str:
    return " and ".join(f"{key}: {value_text(value)}" for key, value in sets.items())


def _command(run: RunDir, sets: changes.Sets) -> str:
    return f"sftrun resume {files.shell_path(run.path)} {set_options(sets)}"
