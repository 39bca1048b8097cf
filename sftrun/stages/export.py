"""Stage 4, export: converts the tuned model for deployment, in a worker process."""

from sftrun.launch import workers
from sftrun.options import as_use
from sftrun.recipe.model import Recipe
from sftrun.registry import current
from sftrun.runs.directory import RunDir
from sftrun.types import Emit


def export(run: RunDir, emit: Emit) -> None:
    """Runs every exporter, which write to `export/`, in a worker process."""
    workers.run_in_worker("sftrun.stages.export:export_in_worker", run, emit)


def export_in_worker(recipe: Recipe, run: RunDir, emit: Emit) -> None:
    """Runs every exporter in this process."""
    for each in recipe.exporters:
        use = as_use(each)
        facts = current().create("exporter", use).export(recipe, run.path, emit)
        run.merge_json("export/facts.json", {use.use: facts})
        emit({"event": "exported", "exporter": use.use, **facts})
