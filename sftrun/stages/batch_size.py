"""Between prepare and train, for `train.batch_size: auto`: the batch is chosen, and written down."""

from sftrun import events
from sftrun.errors import OutOfMemory, Problem
from sftrun.launch import topology
from sftrun.memory import recover
from sftrun.memory import search as sizes
from sftrun.recipe.model import Recipe
from sftrun.runs.directory import RunDir
from sftrun.runs.stage import StageWork


def choose(work: StageWork) -> None:
    """Writes the largest batch that fits into resolved.yaml and state.json; raises OutOfMemory if none does."""
    recipe, run, emit = work.recipe, work.run, work.emit
    found = sizes.measured(recipe, run, emit)
    if found is None:
        message = f"not even one row at a time trains within {sizes.MARGIN:.0%} of the memory that is free"
        raise OutOfMemory(Problem(message, path=("train", "batch_size"), hint=_hint(recipe, run)))
    trial, margin = found.trial, round(1 - sizes.MARGIN, 2)
    taken = {"peak": trial.peak, "room": trial.room, "margin": margin}
    made = recover.settle(recipe, run, found.sets, chosen=taken)
    emit(
        events.BatchChosen(
            batch_size=made.train.micro_batch,
            grad_accum=made.train.grad_accum,
            rows=topology.rows(made),
            peak=trial.peak,
            room=trial.room,
            margin=margin,
        )
    )


def _hint(recipe: Recipe, run: RunDir) -> str:
    """A trial has an evaluation in it, which may be what takes most."""
    evaluates = recipe.train.eval_strategy != "no" and recipe.train.eval_batch_size > 1
    lower = "set train.eval_batch_size: 1, if evaluations take most; or " if evaluates else ""
    return lower + recover.otherwise(recipe, run, run)
