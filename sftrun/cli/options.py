"""Options of several commands."""

import functools
import sys
from collections.abc import Callable
from typing import Any

import click

overrides: Callable[[Any], Any] = click.option(
    "--set",
    "sets",
    multiple=True,
    metavar="KEY=VALUE",
    help="Override a key of the recipe; may be repeated.",
)


def node_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Adds --nodes, which becomes an override, and --node-rank and --rendezvous, which become the argument `node`."""

    @click.option("--nodes", type=click.IntRange(min=1), help="Machines that train together; overrides launch.nodes.")
    @click.option(
        "--node-rank",
        type=int,
        help="Rank of this machine, from 0; node 0 also prepares, evaluates, exports and reports.",
    )
    @click.option("--rendezvous", metavar="HOST:PORT", help="Where the machines meet: node 0 and a free port on it.")
    @functools.wraps(command)
    def wrapped(
        *args: Any, sets: tuple[str, ...], nodes: int | None, node_rank: int | None, rendezvous: str | None, **more: Any
    ) -> Any:
        from sftrun.launch.topology import Node

        if (node_rank is None) != (rendezvous is None):
            raise click.UsageError("--node-rank and --rendezvous need each other")
        node = Node(node_rank, rendezvous) if node_rank is not None else None
        node_count = () if nodes is None else (f"launch.nodes={nodes}",)
        return command(*args, sets=(*sets, *node_count), node=node, **more)

    return wrapped


def choose_system_prompt(run: str, system: str | None, no_system: bool) -> str | None:
    """Returns the system prompt of a chat: the given one, or the one of the training, which is shown."""
    if no_system and system is not None:
        raise click.UsageError("--system and --no-system exclude each other")
    if no_system or system is not None:
        return system or None
    from sftrun.tools.generate import load_persona, needs_system_prompt

    persona = load_persona(run)
    if persona is not None:
        print(f"system prompt of the training: {persona!r} (--no-system leaves it out)", file=sys.stderr)
    elif needs_system_prompt(run):
        print("warning: every training row had a system prompt, and none is common; give one", file=sys.stderr)
    return persona
