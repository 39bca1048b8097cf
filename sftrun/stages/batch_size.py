"""Between prepare and train, for `train.batch_size: auto`: chooses the batch, and writes it to the run directory."""

from sftrun import events
from sftrun.errors import OutOfMemory, Problem
from sftrun.launch import topology
from sftrun.memory import recover, search
from sftrun.recipe.model import Recipe
from sftrun.runs.directory import RunDir
from sftrun.runs.stage import StageWork


def choose(work: StageWork) -> None:
    """Writes the largest batch that fits into resolved.yaml and state.json; raises OutOfMemory if none does."""
    recipe, run, emit = work.recipe, work.run, work.emit
    choice = search.measure_batch(recipe, run, emit)
    if choice is None:
        message = f"not even one row at a time trains within {search.MARGIN:.0%} of the memory that is free"
        raise OutOfMemory(Problem(message, path=("train", "batch_size"), hint=_suggest_changes(recipe, run)))
    trial = choice.trial
    margin = round(1 - search.MARGIN, 2)
    taken = {"peak": trial.peak, "room": trial.room, "margin": margin}
    made = recover.write_batch(recipe, run, choice.sets, chosen=taken)
    emit(
        events.BatchChosen(
            batch_size=made.train.micro_batch,
            grad_accum=made.train.grad_accum,
            rows=topology.rows_per_step(made),
            peak=trial.peak,
            room=trial.room,
            margin=margin,
        )
    )


def _suggest_changes(recipe: Recipe, run: RunDir) -> str:
    """Returns a hint; it names eval_batch_size first, because a trial includes an evaluation."""
    evaluates = recipe.train.eval_strategy != "no" and recipe.train.eval_batch_size > 1
    lower = "set train.eval_batch_size: 1, if evaluations take most; or " if evaluates else ""
    return lower + recover.suggest_other_changes(recipe, run, run)
