"""`sftrun RECIPE`: a recipe through every stage."""

import shlex
import sys

import click

from sftrun.cli import progress, scores
from sftrun.cli.options import nodes, overrides
from sftrun.launch.topology import Node
from sftrun.runs.directory import RunDir


@click.command()
@click.argument("recipe", type=click.Path(dir_okay=False))
@overrides
@click.option("--out", type=click.Path(file_okay=False), help="The run directory; by default runs/<recipe>-<time>.")
@click.option("--resume", is_flag=True, help="Go on with the recipe's newest run, or the one in --out.")
@nodes
def command(recipe: str, sets: tuple[str, ...], out: str | None, resume: bool, node: Node | None) -> None:
    """Run a recipe: prepare, train, evaluate, export, report."""
    from sftrun.flow import run

    with progress.watcher() as watch:
        done = run(recipe, sets, out, watch, resume=resume, node=node)
    if not (node and node.rank):  # the first node tells of it
        tell(done)


def tell(done: RunDir) -> None:
    """What a run has come to, and what to do with it."""
    scores.show(done)
    print(f"report: {done.path / 'report.html'}", file=sys.stderr)
    print(f"model:  {done.model}", file=sys.stderr)
    print(f"talk to it: sftrun chat {shlex.quote(str(done.path))}", file=sys.stderr)
