"""Stage 4, export: what is made of the tuned model for deployment, in a worker process."""

from sftrun import events
from sftrun.kinds import Emit, Exporting
from sftrun.launch import workers
from sftrun.recipe.model import Recipe
from sftrun.registry import current
from sftrun.runs.directory import RunDir
from sftrun.runs.stage import StageWork


def export(work: StageWork) -> None:
    """Fills `export/`, one exporter after the other."""
    workers.work("sftrun.stages.export:export_here", work.run, work.emit)


def export_here(recipe: Recipe, run: RunDir, emit: Emit) -> None:
    """Exports in this process."""
    for each in recipe.exporters:
        use = each
        facts = current().create("exporter", use).export(Exporting(recipe=recipe, run=run, emit=emit))
        run.merge_json("export/facts.json", {use.use: facts})
        emit(events.Exported(exporter=use.use, facts=facts))
