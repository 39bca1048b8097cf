"""This process among those that train together: who it is, and what all of them agree on.

Outside a launcher there is one process, and all of this is nothing. What is agreed on goes through gloo and the CPU,
between steps, so that no GPU waits for it.
"""

import os
import socket
from collections.abc import Sequence
from datetime import timedelta
from typing import Any

import torch
from torch import distributed
from torch.nn.parallel import DistributedDataParallel

import sftrun

PATIENCE = timedelta(hours=2)  # that a process waits for another, which may be writing a large checkpoint
CPU = torch.device("cpu")


def size() -> int:
    """How many processes train."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def number() -> int:
    """Which of them this one is, from 0 on."""
    return int(os.environ.get("RANK", "0"))


def first() -> bool:
    """Whether this is the one that writes."""
    return number() == 0


def again() -> bool:
    """Whether these processes were started because others have failed."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")) > 0


def join(recipe: sftrun.Recipe) -> None:
    """Meets the other processes; raises UserError where they are not as many as the recipe asks for."""
    wanted = _wanted(recipe)
    if size() != wanted:
        message = f"the recipe asks for {wanted} processes, and {'they are' if size() > 1 else 'there is'} {size()}"
        raise sftrun.UserError(sftrun.Problem(message, path=("launch", "processes")))
    if size() == 1 or distributed.is_initialized():
        return
    if torch.cuda.is_available():
        _take_gpu()
    distributed.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo", timeout=PATIENCE)


def _wanted(recipe: sftrun.Recipe) -> int:
    processes = recipe.launch.processes
    each = max(torch.cuda.device_count(), 1) if processes == "auto" else processes
    return each * recipe.launch.nodes


def _take_gpu() -> None:
    own, there = int(os.environ["LOCAL_RANK"]), torch.cuda.device_count()
    if own >= there:
        message = f"there is no GPU for process {own} of this machine: torch sees {there}"
        raise sftrun.UserError(sftrun.Problem(message, path=("launch", "processes")))
    torch.cuda.set_device(own)


def one_gpu(settings: Any) -> Any:
    """Settings of a trainer that leaves other GPUs alone: in one process it would split batches among all it sees."""
    settings._n_gpu = min(settings.n_gpu, 1)
    return settings


def leave() -> None:
    """Waits for the others, so that none ends well while another fails."""
    if size() > 1:
        wait()
        distributed.destroy_process_group()


def agreed(flag: bool) -> bool:
    """Whether it is so in any process."""
    return sum(summed([float(flag)])) > 0


def summed(values: Sequence[float]) -> list[float]:
    """Sums over all processes."""
    if size() == 1:
        return list(values)
    both = torch.tensor(values, dtype=torch.float64)
    distributed.all_reduce(both)
    return [float(value) for value in both]


def told(value: Any) -> Any:
    """What the first process says."""
    if size() == 1:
        return value
    box = [value]
    distributed.broadcast_object_list(box, 0, device=CPU)
    return box[0]


def gathered(value: Any) -> list[Any]:
    """What each process says, in their order."""
    if size() == 1:
        return [value]
    found: list[Any] = [None] * size()
    distributed.all_gather_object(found, value)
    return found


def wait() -> None:
    """Returns when all processes are here."""
    summed([0.0])


def facts(recipe: sftrun.Recipe) -> dict[str, Any]:
    """Who trains here, for the events."""
    nodes, strategy = recipe.launch.nodes, recipe.launch.strategy
    shared = {"strategy": "ddp" if strategy == "auto" else strategy, "backend": distributed.get_backend()}
    return {"processes": size() // nodes, "nodes": nodes, **shared}


def check(trainer: Any, recipe: sftrun.Recipe) -> None:
    """Raises UserError where the trainer is not set up for all of these processes, whatever its settings say."""
    if size() == 1:
        return
    found = (trainer.args.world_size, distributed.get_world_size(), trainer.accelerator.num_processes)
    if set(found) != {size()}:
        message = "{3} processes train, but transformers knows of {0}, torch of {1}, accelerate of {2}".format(
            *found, size()
        )
        raise sftrun.UserError(sftrun.Problem(message, path=("launch", "processes")))
    if recipe.launch.strategy in ("auto", "ddp") and not isinstance(trainer.model_wrapped, DistributedDataParallel):
        message = f"the trainer has not wrapped the model for ddp, but as {type(trainer.model_wrapped).__name__}"
        raise sftrun.UserError(sftrun.Problem(message, path=("launch", "strategy")))
    devices = gathered((socket.gethostname(), str(trainer.args.device)))
    if trainer.args.device.type != "cpu" and len(set(devices)) != size():
        message = f"{size()} processes have only {len(set(devices))} GPUs among them"
        raise sftrun.UserError(sftrun.Problem(message, path=("launch", "processes")))
