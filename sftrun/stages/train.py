"""Stage 2, train: the backend trains on the prepared samples, in a worker process."""

from sftrun import launch
from sftrun.options import as_use
from sftrun.recipe.model import Recipe
from sftrun.registry import current
from sftrun.rundir import RunDir
from sftrun.types import Emit


def train(run: RunDir, emit: Emit) -> None:
    """Fills `model/`, `checkpoints/` and `tensorboard/`."""
    launch.work("sftrun.stages.train:train_here", run, emit)


def train_here(recipe: Recipe, run: RunDir, emit: Emit) -> None:
    """The same in this process."""
    current().create("backend", as_use(recipe.backend)).train(recipe, run.path, emit)
