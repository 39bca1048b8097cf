"""Stage 4, export: what is made of the tuned model for deployment, in a worker process."""

from sftrun.launch import workers
from sftrun.recipe.model import Recipe
from sftrun.registry import current
from sftrun.runs.directory import RunDir
from sftrun.types import Emit


def export(run: RunDir, emit: Emit) -> None:
    """Fills `export/`, one exporter after the other."""
    workers.work("sftrun.stages.export:export_here", run, emit)


def export_here(recipe: Recipe, run: RunDir, emit: Emit) -> None:
    """The same in this process."""
    for each in recipe.exporters:
        use = each
        facts = current().create("exporter", use).export(recipe, run.path, emit)
        run.merge_json("export/facts.json", {use.use: facts})
        emit({"event": "exported", "exporter": use.use, **facts})
