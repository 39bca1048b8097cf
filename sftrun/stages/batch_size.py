"""Between prepare and train, for `train.batch_size: auto`: chooses the batch, and writes it to the run directory."""

from sftrun.errors import OutOfMemory, Problem
from sftrun.launch import topology
from sftrun.memory import recover, search
from sftrun.recipe.model import Recipe
from sftrun.runs.directory import RunDir
from sftrun.types import Emit


def choose_batch_size(recipe: Recipe, run: RunDir, emit: Emit) -> None:
    """Writes the largest batch that fits into resolved.yaml and the lock; raises OutOfMemory if none does."""
    choice = search.measure_batch(recipe, run, emit)
    if choice is None:
        message = f"not even one row at a time trains within {search.MARGIN:.0%} of the memory that is free"
        raise OutOfMemory(Problem(message, path=("train", "batch_size"), hint=_suggest_changes(recipe, run)))
    taken = {"peak": choice.trial.peak, "room": choice.trial.room, "margin": round(1 - search.MARGIN, 2)}
    made = recover.write_batch(recipe, run, choice.sets, chosen=taken)
    split = {"batch_size": made.train.batch_size, "grad_accum": made.train.grad_accum}
    emit({"event": "sized", **split, "rows": topology.rows_per_step(made), **taken})


def _suggest_changes(recipe: Recipe, run: RunDir) -> str:
    """Returns a hint; it names eval_batch_size first, because a trial includes an evaluation."""
    evaluates = recipe.train.eval_strategy != "no" and recipe.train.eval_batch_size > 1
    lower = "set train.eval_batch_size: 1, if evaluations take most; or " if evaluates else ""
    return lower + recover.suggest_other_changes(recipe, run, run)
