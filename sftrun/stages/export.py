"""Stage 4, export: converts the tuned model for deployment, in a worker process."""

from sftrun import events
from sftrun.kinds import Emit, Exporting
from sftrun.launch import workers
from sftrun.recipe.model import Recipe
from sftrun.registry import current
from sftrun.runs.directory import RunDir
from sftrun.runs.stage import StageWork


def export(work: StageWork) -> None:
    """Runs every exporter, which write to `export/`, in a worker process."""
    workers.run_in_worker("sftrun.stages.export:export_in_worker", work.run, work.emit)


def export_in_worker(recipe: Recipe, run: RunDir, emit: Emit) -> None:
    """Runs every exporter in this process."""
    for each in recipe.exporters:
        use = each
        facts = current().create("exporter", use).export(Exporting(recipe=recipe, run=run, emit=emit))
        run.merge_json("export/facts.json", {use.use: facts})
        emit(events.Exported(exporter=use.use, facts=facts))
