"""Stage 2, train: the backend trains on the prepared samples, in a worker process."""

from sftrun import files
from sftrun.errors import UserError
from sftrun.launch import topology, workers
from sftrun.memory import recover
from sftrun.options import as_use
from sftrun.recipe.model import Recipe
from sftrun.registry import current
from sftrun.runs.advice import Watch
from sftrun.runs.directory import RunDir
from sftrun.types import Emit

TARGET = "sftrun.stages.train:train_in_worker"


def train(recipe: Recipe, run: RunDir, emit: Emit, node: topology.Node | None = None) -> None:
    """Writes `model/`, `checkpoints/` and `tensorboard/`; resumes from the last checkpoint of an earlier attempt.

    `node` is this machine, if several train. Raises UserError if the prepared samples differ from the earlier attempt,
    and OutOfMemory if memory runs out and the batch may not, or cannot, be smaller.
    """
    _check_samples(run)
    run.merge_json("lock.json", {"launch": topology.facts(recipe)})

    def attempt(recipe: Recipe, run: RunDir, emit: Emit) -> None:
        workers.run_in_worker(TARGET, run, Watch(recipe, run.events(), emit), workers.plan_ranks(recipe, node))

    recover.train_with_recovery(attempt, recipe, run, emit)


def train_in_worker(recipe: Recipe, run: RunDir, emit: Emit) -> None:
    """Trains in this process, which is a worker or a rank."""
    current().create("backend", as_use(recipe.backend)).train(recipe, run.path, emit)


def _check_samples(run: RunDir) -> None:
    before = run.read_json("lock.json").get("samples")
    now = {file.name: files.digest(file) for file in sorted(run.prepared.glob("*.arrow"))}
    if before is None:
        run.merge_json("lock.json", {"samples": now})
        return
    changed = sorted(name for name in before.keys() | now.keys() if before.get(name) != now.get(name))
    if changed:
        message = f"{', '.join(changed)} in {run.prepared} is not what the run has trained on so far"
        raise UserError(message, hint="the rows have changed: start a new run, without --resume")
