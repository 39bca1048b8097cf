"""The number of training processes and machines that a recipe asks for, compared with this machine and this command."""

from collections.abc import Iterator
from typing import Any

import msgspec

from sftrun.errors import Problem, UserError
from sftrun.gpus import gpu_count
from sftrun.recipe.checks import batch_mismatch
from sftrun.recipe.model import Recipe

# Environment variables that give a process its rank, as torchrun sets them.
RANK_VARIABLES = (
    *("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "GROUP_RANK", "GROUP_WORLD_SIZE", "ROLE_NAME"),
    *("ROLE_RANK", "ROLE_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"),
)


class Node(msgspec.Struct, frozen=True):
    """A machine of a training on several: its number, from 0 on, and the rendezvous endpoint `host:port`."""

    rank: int = 0
    rendezvous: str | None = None


def local_world_size(recipe: Recipe) -> int:
    """Returns the number of training processes on this machine."""
    wanted = recipe.launch.processes
    return max(gpu_count(), 1) if wanted == "auto" else wanted


def world_size(recipe: Recipe) -> int:
    """Returns the number of training processes on all machines."""
    return local_world_size(recipe) * recipe.launch.nodes


def rows_per_step(recipe: Recipe) -> int:
    """Returns the rows of an optimizer step, summed over all processes."""
    return recipe.train.step_rows(world_size(recipe))


def strategy(recipe: Recipe) -> str | None:
    """Returns how the processes share the model; None for a single process."""
    wanted = recipe.launch.strategy
    if wanted == "auto":
        return "ddp" if world_size(recipe) > 1 else None
    return wanted


def facts(recipe: Recipe) -> dict[str, Any]:
    """Returns the fact `launch` of state.json."""
    return {"processes": local_world_size(recipe), "nodes": recipe.launch.nodes, "strategy": strategy(recipe)}


def check_topology(recipe: Recipe, node: Node | None, named: bool, backend: Any) -> None:
    """Raises UserError if a recipe cannot be trained on this machine, or with the options of this command.

    `named` is True if the command names the run directory.
    """
    problems = [*_check_machine(recipe, backend), *_check_nodes(recipe, node, named), *_check_rows_per_step(recipe)]
    if problems:
        raise UserError(problems)


def _check_rows_per_step(recipe: Recipe) -> Iterator[Problem]:
    """Yields a problem if the processes cannot share the rows of an optimizer step."""
    train = recipe.train
    count = world_size(recipe)
    path = ("train", "effective_batch_size")
    wanted = train.effective_batch_size
    if wanted and train.batch_size == "auto" and wanted % count:
        message = f"train.effective_batch_size is {wanted}, which {count} processes cannot share evenly"
        yield Problem(message, path=path, hint=f"write {-(-wanted // count) * count}")
    elif wanted and train.batch_size != "auto":
        wrong = batch_mismatch(train.batch_size, train.grad_accum, count, wanted)
        if wrong:
            yield Problem(wrong[0], path=path, hint=wrong[1])


def _check_machine(recipe: Recipe, backend: Any) -> Iterator[Problem]:
    wanted = local_world_size(recipe)
    count = gpu_count()
    if count and wanted > count:
        message = f"launch.processes is {wanted}, and this machine has {count} GPU{'s' * (count > 1)} to train on"
        yield Problem(message, path=("launch", "processes"), hint=f"use {count}, or auto")
    if world_size(recipe) > 1 and not getattr(backend, "distributed", False):
        count = world_size(recipe)
        message = f"the backend {recipe.backend.use} trains in one process, and the recipe asks for {count}"
        yield Problem(message, path=("launch", "processes"), hint="write launch: {processes: 1}, or use backend: hf")


def _check_nodes(recipe: Recipe, node: Node | None, named: bool) -> Iterator[Problem]:
    count = recipe.launch.nodes
    if count == 1:
        if node is not None:
            message = "--node-rank and --rendezvous are for several machines, and launch.nodes is 1"
            yield Problem(message, hint="give the number of machines: --nodes 2")
        return
    if node is None or node.rendezvous is None:
        message = f"launch.nodes is {count}, and this command does not name its node or the rendezvous"
        yield Problem(message, path=("launch", "nodes"), hint=NODES_HINT)
        return
    if not 0 <= node.rank < count:
        yield Problem(f"--node-rank is {node.rank}; with {count} nodes it is a number from 0 to {count - 1}")
    if not named:
        message = "all nodes write to one run directory, on a file system that they share"
        yield Problem(message, hint="name it: --out DIR, the same on every node")
    if parse_endpoint(node.rendezvous) is None:
        yield Problem(f"--rendezvous is {node.rendezvous!r}, not HOST:PORT", hint="write, for example, node0:29400")


NODES_HINT = (
    "on each node, run the same command with --node-rank (0, 1, …) and --rendezvous HOST:PORT, a free port of node 0"
)


def parse_endpoint(rendezvous: str) -> tuple[str, int] | None:
    """Returns host and port of `host:port`; None if the text is malformed."""
    host, _, port = rendezvous.rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 2**16:
        return None
    return host.strip("[]"), int(port)
