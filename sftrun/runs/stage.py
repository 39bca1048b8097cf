"""A stage of a run, and the context of its function."""

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sftrun.recipe.model import Recipe
from sftrun.runs.directory import RunDir
from sftrun.runs.recorder import Recorder

if TYPE_CHECKING:
    from sftrun.launch.topology import Node


@dataclass(frozen=True)
class StageWork:
    """The context of a stage: the run directory, its recorder of events, and this node."""

    run: RunDir
    emit: Recorder
    node: "Node | None" = None

    @property
    def recipe(self) -> Recipe:
        """The resolved recipe of the run."""
        return self.run.recipe()


def _always(recipe: Recipe) -> bool:
    return True


@dataclass(frozen=True)
class Stage:
    """One entry of the flow: `target` (`"package.module:function"`) is called with a `StageWork`.

    `when` returns True if a recipe has the stage. `after` is called each time the run passes the stage, even if it is
    already done. `redo_for` is the recipe key whose change makes a resumed run do the stage again. `writes` are the
    files and folders of the run directory that the stage leaves.
    """

    name: str
    target: str
    when: Callable[[Recipe], bool] = _always
    after: str | None = None
    redo_for: str | None = None
    writes: tuple[str, ...] = ()

    def call(self, target: str, work: StageWork) -> None:
        """Imports a function and calls it."""
        module, _, name = target.partition(":")
        function: Callable[[StageWork], Any] = getattr(importlib.import_module(module), name)
        function(work)
