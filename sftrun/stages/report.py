"""Stage 5, report: summarises the run directory as report.html and as a model card."""

from sftrun.recipe.model import Recipe
from sftrun.report.card import card
from sftrun.report.facts import gather
from sftrun.report.page import page
from sftrun.runs import manifest
from sftrun.runs.directory import RunDir
from sftrun.runs.stage import StageWork


def report(work: StageWork) -> None:
    """Writes the report and the model card of a run."""
    manifest.write(work.run)
    write_report(work.recipe, work.run)


def write_report(recipe: Recipe, run: RunDir) -> None:
    """Writes report.html and README.md; a copy of the card goes with the model."""
    facts = gather(run)
    run.write("report.html", page(recipe, facts))
    text = card(recipe, facts)
    run.write("README.md", text)
    if run.model.is_dir():
        run.write("model/README.md", text)
