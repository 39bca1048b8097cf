"""`sftrun RECIPE`: runs every stage of a recipe."""

import shlex
import sys

import click

from sftrun.cli import progress, scores
from sftrun.cli.options import node_options, overrides
from sftrun.launch.topology import Node
from sftrun.runs.directory import RunDir


@click.command()
@click.argument("recipe", type=click.Path(dir_okay=False))
@overrides
@click.option("--out", type=click.Path(file_okay=False), help="The run directory; by default runs/<recipe>-<time>.")
@click.option("--resume", is_flag=True, help="Resume the newest run of this recipe, or the run in --out.")
@node_options
def command(recipe: str, sets: tuple[str, ...], out: str | None, resume: bool, node: Node | None) -> None:
    """Run a recipe: prepare, train, evaluate, export, report."""
    from sftrun.flow import run

    with progress.watcher() as watch:
        done = run(recipe, sets, out, watch, resume=resume, node=node)
    if not (node and node.rank):  # node 0 alone prints the result
        print_result(done)


def print_result(done: RunDir) -> None:
    """Prints the scores of a finished run and where its report and its model are."""
    scores.show(done)
    print(f"report: {done.path / 'report.html'}", file=sys.stderr)
    print(f"model:  {done.model}", file=sys.stderr)
    print(f"chat with it: sftrun chat {shlex.quote(str(done.path))}", file=sys.stderr)
