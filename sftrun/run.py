"""The whole flow: a recipe to a trained, evaluated, exported and reported model."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from sftrun import lock, rundir
from sftrun.recipe.model import Recipe
from sftrun.recipe.validate import Checked, read, resolved_yaml
from sftrun.registry import current
from sftrun.rundir import RunDir
from sftrun.types import Emit


def run(
    path: str | Path,
    overrides: Sequence[str] = (),
    out: str | Path | None = None,
    watch: Emit = lambda event: None,
) -> RunDir:
    """Runs a recipe through every stage and returns its run directory; `watch` is given each event.

    Raises UserError for all that the user can fix, with file and line.
    """
    from sftrun.stages.evaluate import evaluate
    from sftrun.stages.export import export
    from sftrun.stages.prepare import prepare
    from sftrun.stages.report import report
    from sftrun.stages.train import train

    checked = ready(read(path, overrides))
    recipe, registry = checked.recipe, current()
    with checked.explained():
        folder = begin(checked, out, overrides)
        emit = recorder(folder, watch)
        stage(folder, emit, "prepare", lambda: prepare(recipe, folder, registry, emit))
        stage(folder, emit, "train", lambda: train(folder, emit))
        if recipe.evaluators:
            stage(folder, emit, "evaluate", lambda: evaluate(folder, emit))
        if recipe.exporters:
            stage(folder, emit, "export", lambda: export(folder, emit))
        stage(folder, emit, "report", lambda: report(recipe, folder))
        rundir.point_latest(folder, Path(path).stem)
    return folder
