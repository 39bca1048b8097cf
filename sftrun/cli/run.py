"""`sftrun RECIPE`: a recipe through every stage."""

import sys

import click

from sftrun.cli import progress, scores
from sftrun.cli.options import overrides


@click.command()
@click.argument("recipe", type=click.Path(dir_okay=False))
@overrides
@click.option("--out", type=click.Path(file_okay=False), help="The run directory; by default runs/<recipe>-<time>.")
def command(recipe: str, sets: tuple[str, ...], out: str | None) -> None:
    """Run a recipe: prepare, train, evaluate, export, report."""
    from sftrun.flow import run

    with progress.watcher() as watch:
        done = run(recipe, sets, out, watch)
    scores.show(done)
    print(f"report: {done.path / 'report.html'}", file=sys.stderr)
    print(f"model:  {done.model}", file=sys.stderr)
    print(f"talk to it: sftrun chat {done.path}", file=sys.stderr)
