"""Options that several commands share."""

import functools
from collections.abc import Callable
from typing import Any

import click

overrides: Callable[[Any], Any] = click.option(
    "--set", "sets", multiple=True, metavar="KEY=VALUE", help="Override a value of the recipe; may be repeated."
)


def nodes(command: Callable[..., Any]) -> Callable[..., Any]:
    """Says which of several machines this is: --nodes is one more override, and the others are given as `node`."""

    @click.option("--nodes", type=click.IntRange(min=1), help="Machines that train together; overrides launch.nodes.")
    @click.option(
        "--node-rank",
        type=int,
        help="The number of this machine, from 0 on; node 0 also prepares, evaluates, exports and reports.",
    )
    @click.option("--rendezvous", metavar="HOST:PORT", help="Where the machines meet: a free port of number 0.")
    @functools.wraps(command)
    def wrapped(
        *args: Any, sets: tuple[str, ...], nodes: int | None, node_rank: int | None, rendezvous: str | None, **more: Any
    ) -> Any:
        from sftrun.launch.topology import Node

        if (node_rank is None) != (rendezvous is None):
            raise click.UsageError("--node-rank and --rendezvous go together")
        node = Node(node_rank, rendezvous) if node_rank is not None else None
        here = () if nodes is None else (f"launch.nodes={nodes}",)
        return command(*args, sets=(*sets, *here), node=node, **more)

    return wrapped
