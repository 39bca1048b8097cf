"""`sftrun resume`: a run that was stopped goes on."""

import click

from sftrun.cli import progress
from sftrun.cli.options import nodes, overrides
from sftrun.cli.run import tell
from sftrun.launch.topology import Node


@click.command()
@click.argument("run", type=click.Path(exists=True, file_okay=False))
@overrides
@nodes
def command(run: str, sets: tuple[str, ...], node: Node | None) -> None:
    """Go on with a run directory: from its last whole checkpoint, through every stage that is not done.

    With --set, what does not change the trained weights may be another than before, and so may exporters and
    evaluators.
    """
    from sftrun import flow

    with progress.watcher() as watch:
        done = flow.resume(run, sets, watch, node)
    if not (node and node.rank):
        tell(done)
