"""Stage 2, train: the backend trains on the prepared samples, in a worker process."""

from sftrun import files
from sftrun.errors import UserError
from sftrun.kinds import Emit, Training
from sftrun.launch import topology, workers
from sftrun.memory import recover
from sftrun.recipe.model import Recipe
from sftrun.registry import current
from sftrun.runs.advice import Watch
from sftrun.runs.directory import RunDir
from sftrun.runs.stage import StageWork

TARGET = "sftrun.stages.train:train_here"


def train(work: StageWork) -> None:
    """Fills `model/` and `checkpoints/`; continues from the last checkpoint of an earlier attempt.

    Raises UserError if the prepared samples are not those of that attempt, and OutOfMemory if memory has run out and
    the recipe does not allow for smaller batches, or there are none.
    """
    recipe, run, node = work.recipe, work.run, work.node
    _check_samples(run)
    run.add_facts("train", launch=topology.facts(recipe))

    def attempt(recipe: Recipe, run: RunDir, emit: Emit) -> None:
        workers.work(TARGET, run, Watch(recipe, run.events(), emit), workers.ranks(recipe, node))

    recover.guarded(attempt, recipe, run, work.emit)


def train_here(recipe: Recipe, run: RunDir, emit: Emit) -> None:
    """Trains in this process: what each rank calls."""
    current().create("backend", recipe.backend).train(Training(recipe=recipe, run=run, emit=emit))


def _check_samples(run: RunDir) -> None:
    before = run.facts("train").get("samples")
    now = {file.name: files.file_digest(file) for file in sorted(run.prepared.glob("*.arrow"))}
    if before is None:
        run.add_facts("train", samples=now)
        return
    changed = sorted(name for name in before.keys() | now.keys() if before.get(name) != now.get(name))
    if changed:
        message = f"{', '.join(changed)} in {run.prepared} is not what the run was trained on so far"
        raise UserError(message, hint="the rows have changed: start a new run, without --resume")
