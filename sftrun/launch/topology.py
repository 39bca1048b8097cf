"""How many processes train, and on which machines: what a recipe asks for, against what is here."""

import os
import subprocess
from collections.abc import Iterator
from itertools import takewhile
from typing import Any

import msgspec

from sftrun.errors import Problem, UserError
from sftrun.recipe.checks import batch_mismatch
from sftrun.recipe.model import Recipe

# Who a process is among others that train together, as torch and its launchers have it.
VARIABLES = (
    *("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "GROUP_RANK", "GROUP_WORLD_SIZE", "ROLE_NAME"),
    *("ROLE_RANK", "ROLE_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"),
)


class Node(msgspec.Struct, frozen=True):
    """This machine among those that train together: its number from 0 on, and the `host:port` where all meet."""

    rank: int = 0
    rendezvous: str | None = None


def gpu_count() -> int:
    """GPUs that a process would see; asked of the driver, because importing torch would take seconds."""
    try:
        said = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=30, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return 0
    there = sum(line.startswith("GPU ") for line in said.splitlines())
    chosen = os.environ.get("CUDA_VISIBLE_DEVICES")
    if chosen is None:
        return there
    # CUDA reads the list up to the first name that it does not know
    return min(there, len(list(takewhile(lambda name: name.strip() not in ("", "-1"), chosen.split(",")))))


def processes(recipe: Recipe) -> int:
    """Training processes on this machine."""
    wanted = recipe.launch.processes
    return max(gpu_count(), 1) if wanted == "auto" else wanted


def size(recipe: Recipe) -> int:
    """Training processes on all machines."""
    return processes(recipe) * recipe.launch.nodes


def rows(recipe: Recipe) -> int:
    """Rows of an optimizer step, of all processes together."""
    return recipe.train.step_rows(size(recipe))


def strategy(recipe: Recipe) -> str | None:
    """How the processes share the model; None for one that has it for itself."""
    wanted = recipe.launch.strategy
    if wanted == "auto":
        return "ddp" if size(recipe) > 1 else None
    return wanted


def facts(recipe: Recipe) -> dict[str, Any]:
    """What lock.json says of it."""
    return {"processes": processes(recipe), "nodes": recipe.launch.nodes, "strategy": strategy(recipe)}


def check(recipe: Recipe, node: Node | None, named: bool, backend: Any) -> None:
    """Raises UserError where a recipe cannot be trained on this machine, or from this command.

    `named` says that the command names the run directory.
    """
    problems = [*_here(recipe, backend), *_nodes(recipe, node, named), *_rows(recipe)]
    if problems:
        raise UserError(problems)


def _rows(recipe: Recipe) -> Iterator[Problem]:
    """The rows of a step, which all processes share."""
    train, count, path = recipe.train, size(recipe), ("train", "effective_batch_size")
    wanted = train.effective_batch_size
    if wanted and train.batch_size == "auto" and wanted % count:
        message = f"train.effective_batch_size is {wanted}, which {count} processes cannot share evenly"
        yield Problem(message, path=path, hint=f"write {-(-wanted // count) * count}")
    elif wanted and train.batch_size != "auto":
        wrong = batch_mismatch(train.batch_size, train.grad_accum, count, wanted)
        if wrong:
            yield Problem(wrong[0], path=path, hint=wrong[1])


def _here(recipe: Recipe, backend: Any) -> Iterator[Problem]:
    wanted, there = processes(recipe), gpu_count()
    if there and wanted > there:
        message = f"launch.processes is {wanted}, and this machine has {there} GPU{'s' * (there > 1)} to train on"
        yield Problem(message, path=("launch", "processes"), hint=f"use {there}, or auto")
    if size(recipe) > 1 and not getattr(backend, "distributed", False):
        message = f"the backend {recipe.backend.use} trains in one process, and these would be {size(recipe)}"
        yield Problem(message, path=("launch", "processes"), hint="write launch: {processes: 1}, or use backend: hf")


def _nodes(recipe: Recipe, node: Node | None, named: bool) -> Iterator[Problem]:
    count = recipe.launch.nodes
    if count == 1:
        if node is not None:
            message = "--node-rank and --rendezvous are for several machines, and launch.nodes is 1"
            yield Problem(message, hint="say how many they are: --nodes 2")
        return
    if node is None or node.rendezvous is None:
        message = f"launch.nodes is {count}, and this command does not say where they meet"
        yield Problem(message, path=("launch", "nodes"), hint=HOW)
        return
    if not 0 <= node.rank < count:
        yield Problem(f"--node-rank is {node.rank}; of {count} nodes they go from 0 to {count - 1}")
    if not named:
        message = "several nodes write to one run directory, on a file system that all of them share"
        yield Problem(message, hint="name it: --out DIR, the same on every node")
    if address(node.rendezvous) is None:
        yield Problem(f"--rendezvous is {node.rendezvous!r}, which is no HOST:PORT", hint="such as node0:29400")


HOW = "on each node, run the same command with --node-rank (0, 1, …) and --rendezvous HOST:PORT, a free port of node 0"


def address(rendezvous: str) -> tuple[str, int] | None:
    """Host and port of `host:port`; None for what is none."""
    host, _, port = rendezvous.rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 2**16:
        return None
    return host.strip("[]"), int(port)
