"""`sftrun resume`: resumes a run that was stopped."""

import click

from sftrun.cli import progress
from sftrun.cli.options import node_options, overrides
from sftrun.cli.run import print_result
from sftrun.launch.topology import Node


@click.command()
@click.argument("run", type=click.Path(exists=True, file_okay=False))
@overrides
@node_options
def command(run: str, sets: tuple[str, ...], node: Node | None) -> None:
    """Resume a run directory from its last complete checkpoint, and run every stage that is not done.

    With --set, keys that do not affect the trained weights may change; exporters and evaluators may change too.
    """
    from sftrun import flow

    with progress.watcher() as watch:
        done = flow.resume(run, sets, watch, node)
    if not (node and node.rank):
        print_result(done)
