"""Between prepare and train, for `train.batch_size: auto`: the batch is chosen, and written down."""

from sftrun.errors import OutOfMemory, Problem
from sftrun.launch import topology
from sftrun.memory import recover
from sftrun.memory import search as sizes
from sftrun.recipe.model import Recipe
from sftrun.runs.directory import RunDir
from sftrun.types import Emit


def size(recipe: Recipe, run: RunDir, emit: Emit) -> None:
    """Writes the largest batch that fits into resolved.yaml and the lock; raises OutOfMemory where none does."""
    found = sizes.measure_batch(recipe, run, emit)
    if found is None:
        message = f"not even one row at a time trains within {sizes.MARGIN:.0%} of the memory that is free"
        raise OutOfMemory(Problem(message, path=("train", "batch_size"), hint=_hint(recipe, run)))
    taken = {"peak": found.trial.peak, "room": found.trial.room, "margin": round(1 - sizes.MARGIN, 2)}
    made = recover.write_batch(recipe, run, found.sets, chosen=taken)
    split = {"batch_size": made.train.batch_size, "grad_accum": made.train.grad_accum}
    emit({"event": "sized", **split, "rows": topology.rows_per_step(made), **taken})


def _hint(recipe: Recipe, run: RunDir) -> str:
    """A trial has an evaluation in it, which may be what takes most."""
    evaluates = recipe.train.eval_strategy != "no" and recipe.train.eval_batch_size > 1
    lower = "set train.eval_batch_size: 1, if evaluations take most; or " if evaluates else ""
    return lower + recover.suggest_other_changes(recipe, run, run)
