"""Stage 2, train: the backend trains on the prepared samples, in a worker process."""

from sftrun import disk, launch, oom, world
from sftrun.errors import UserError
from sftrun.options import as_use
from sftrun.recipe.model import Recipe
from sftrun.registry import current
from sftrun.report.advice import Watch
from sftrun.rundir import RunDir
from sftrun.types import Emit

HERE = "sftrun.stages.train:train_here"


def train(recipe: Recipe, run: RunDir, emit: Emit, node: world.Node | None = None) -> None:
    """Fills `model/`, `checkpoints/` and `tensorboard/`; goes on where an attempt before this one was whole.

    `node` is this machine among several. Raises UserError where the prepared samples are not those of that attempt,
    OutOfMemory where memory has run out and the recipe does not allow for smaller batches, or there are none.
    """
    _check_samples(run)
    run.merge_json("lock.json", {"launch": world.facts(recipe)})

    def attempt(recipe: Recipe, run: RunDir, emit: Emit) -> None:
        launch.work(HERE, run, Watch(recipe, run.events(), emit), ranks(recipe, node))

    oom.guarded(attempt, recipe, run, emit)


def ranks(recipe: Recipe, node: world.Node | None, resolved: str | None = None) -> launch.Ranks | None:
    """The processes that train here; None for one that nobody starts again.

    `resolved` is the recipe as a node other than the first has it.
    """
    wanted = recipe.launch
    if world.size(recipe) == 1 and not wanted.restarts:
        return None
    processes = world.processes(recipe)
    return launch.Ranks(processes, wanted.nodes, wanted.restarts, node or world.Node(), resolved)


def train_here(recipe: Recipe, run: RunDir, emit: Emit) -> None:
    """The same in this process."""
    current().create("backend", as_use(recipe.backend)).train(recipe, run.path, emit)


def _check_samples(run: RunDir) -> None:
    before = run.read_json("lock.json").get("samples")
    now = {file.name: disk.digest(file) for file in sorted(run.prepared.glob("*.arrow"))}
    if before is None:
        run.merge_json("lock.json", {"samples": now})
        return
    changed = sorted(name for name in before.keys() | now.keys() if before.get(name) != now.get(name))
    if changed:
        message = f"{', '.join(changed)} in {run.prepared} is not what the run was trained on so far"
        raise UserError(message, hint="the rows have changed: start a new run, without --resume")
