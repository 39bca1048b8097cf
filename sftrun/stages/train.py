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

TARGET = "sftrun.stages.train:train_here"


def train(recipe: Recipe, run: RunDir, emit: Emit, node: topology.Node | None = None) -> None:
    """Fills `model/`, `checkpoints/` and `tensorboard/`; goes on where an attempt before this one was whole.

    `node` is this machine among several. Raises UserError where the prepared samples are not those of that attempt,
    OutOfMemory where memory has run out and the recipe does not allow for smaller batches, or there are none.
    """
    _check_samples(run)
    run.merge_json("lock.json", {"launch": topology.facts(recipe)})

    def attempt(recipe: Recipe, run: RunDir, emit: Emit) -> None:
        workers.work(TARGET, run, Watch(recipe, run.events(), emit), workers.ranks(recipe, node))

    recover.guarded(attempt, recipe, run, emit)


def train_here(recipe: Recipe, run: RunDir, emit: Emit) -> None:
    """The same in this process."""
    current().create("backend", as_use(recipe.backend)).train(recipe, run.path, emit)


def _check_samples(run: RunDir) -> None:
    before = run.read_json("lock.json").get("samples")
    now = {file.name: files.file_digest(file) for file in sorted(run.prepared.glob("*.arrow"))}
    if before is None:
        run.merge_json("lock.json", {"samples": now})
        return
    changed = sorted(name for name in before.keys() | now.keys() if before.get(name) != now.get(name))
    if changed:
        message = f"{', '.join(changed)} in {run.prepared} is not what the run was trained on so far"
        raise UserError(message, hint="the rows have changed: start a new run, without --resume")
