"""Stage 2, train: the backend trains on the prepared samples, in a worker process."""

from sftrun import files
from sftrun.errors import UserError
from sftrun.kinds import Emit, Training
from sftrun.launch import topology, workers
from sftrun.memory import recover
from sftrun.recipe.model import Recipe
from sftrun.registry import current
from sftrun.runs import manifest
from sftrun.runs.advice import Watch
from sftrun.runs.directory import RunDir
from sftrun.runs.stage import StageWork

TARGET = "sftrun.stages.train:train_in_worker"


def train(work: StageWork) -> None:
    """Writes `model/` and `checkpoints/`; continues from the last checkpoint of an earlier attempt.

    Raises UserError if the prepared samples differ from the earlier attempt, and OutOfMemory if memory runs out and
    the batch may not, or cannot, be smaller.
    """
    recipe, run, node = work.recipe, work.run, work.node
    _check_samples(run)
    manifest.pin_base(recipe, run)
    run.add_facts("train", launch=topology.facts(recipe))

    def attempt(recipe: Recipe, run: RunDir, emit: Emit) -> None:
        workers.run_in_worker(TARGET, run, Watch(recipe, run.events(), emit), workers.plan_ranks(recipe, node))

    recover.train_with_recovery(attempt, recipe, run, work.emit)


def train_in_worker(recipe: Recipe, run: RunDir, emit: Emit) -> None:
    """Trains in this process; each rank calls it."""
    current().create("backend", recipe.backend).train(Training(recipe=recipe, run=run, emit=emit))


def _check_samples(run: RunDir) -> None:
    before = run.facts("train").get("samples")
    now = {file.name: files.file_digest(file) for file in sorted(run.prepared.glob("*.arrow"))}
    if before is None:
        run.add_facts("train", samples=now)
        return
    changed = sorted(name for name in before.keys() | now.keys() if before.get(name) != now.get(name))
    if changed:
        message = f"{', '.join(changed)} in {run.prepared} is not what the run has trained on so far"
        raise UserError(message, hint="the rows have changed: start a new run, without --resume")
