"""The process group of a training: this rank, the other ranks, and collectives between them.

Without a launcher there is one process, and every collective returns at once. Collectives of this module run over gloo
on the CPU, between steps, in a group of their own, so that no GPU waits for them. They may wait for a large checkpoint;
collectives of the model have a shorter timeout, so that a hang costs less.
"""

import functools
import os
import socket
from collections.abc import Sequence
from datetime import timedelta
from typing import Any

import torch
from torch import distributed
from torch.nn.parallel import DistributedDataParallel

import sftrun

MODEL_TIMEOUT = timedelta(minutes=30)  # for a collective of the model; rank 0 may be reading a large one
CONTROL_TIMEOUT = timedelta(hours=2)  # for a collective of this module; another rank may be writing a large checkpoint
CPU = torch.device("cpu")


def world_size() -> int:
    """Returns the number of processes that train."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def rank() -> int:
    """Returns the global rank of this process."""
    return int(os.environ.get("RANK", "0"))


def is_first() -> bool:
    """Returns True on rank 0, the only rank that writes."""
    return rank() == 0


def is_restarted() -> bool:
    """Returns True if the processes were started again after a failure."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")) > 0


def init(recipe: sftrun.Recipe) -> None:
    """Joins the process group; raises UserError if the world size differs from the recipe's number of processes."""
    _check_world_size(recipe)
    if world_size() == 1 or distributed.is_initialized():
        return
    shares_gpus = recipe.launch.processes == "auto" and world_size() > recipe.launch.nodes  # one process for each GPU
    if torch.cuda.is_available() or shares_gpus:
        _set_gpu()
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    distributed.init_process_group(backend, timeout=MODEL_TIMEOUT)
    _control_group()


@functools.cache
def _control_group() -> Any:
    """Returns the group of this module's collectives; every rank creates it at the same time."""
    return distributed.new_group(backend="gloo", timeout=CONTROL_TIMEOUT)


def _check_world_size(recipe: sftrun.Recipe) -> None:
    """Raises UserError for a wrong number of processes; for `auto` the launcher has counted the GPUs."""
    launch, started = recipe.launch, world_size()
    wanted = launch.processes if launch.processes != "auto" else max(started // launch.nodes, 1)
    if started != wanted * launch.nodes:
        message = f"the recipe asks for {wanted * launch.nodes} processes, and the launcher has started {started}"
        raise sftrun.UserError(sftrun.Problem(message, path=("launch", "processes")))


def _set_gpu() -> None:
    local_rank = int(os.environ["LOCAL_RANK"])
    count = torch.cuda.device_count()
    if local_rank >= count:
        message = f"there is no GPU for process {local_rank} of this machine: torch {torch.__version__} sees {count}"
        hint = "install torch for this machine's GPUs and driver, or set launch.processes to a number"
        raise sftrun.UserError(sftrun.Problem(message, path=("launch", "processes"), hint=hint))
    torch.cuda.set_device(local_rank)


def use_one_gpu(settings: Any) -> Any:
    """Limits a trainer's settings to one GPU; a single process would split batches among all visible GPUs."""
    settings._n_gpu = min(settings.n_gpu, 1)
    return settings


def finish() -> None:
    """Leaves the process group after a barrier, so that no rank succeeds while another fails."""
    if world_size() > 1:
        barrier()
        _control_group.cache_clear()
        distributed.destroy_process_group()


def any_rank(flag: bool) -> bool:
    """Returns True if the flag is set on any rank."""
    return sum(all_reduce_sum([float(flag)])) > 0


def all_reduce_sum(values: Sequence[float]) -> list[float]:
    """Returns the sums of the values over all ranks."""
    if world_size() == 1:
        return list(values)
    sums = torch.tensor(values, dtype=torch.float64)
    distributed.all_reduce(sums, group=_control_group())
    return [float(value) for value in sums]


def broadcast(value: Any) -> Any:
    """Returns the value of rank 0."""
    if world_size() == 1:
        return value
    box = [value]
    distributed.broadcast_object_list(box, 0, group=_control_group(), device=CPU)
    return box[0]


def all_gather(value: Any) -> list[Any]:
    """Returns the values of all ranks, in the order of ranks."""
    if world_size() == 1:
        return [value]
    values: list[Any] = [None] * world_size()
    distributed.all_gather_object(values, value, group=_control_group())
    return values


def barrier() -> None:
    """Returns when every rank has called it."""
    all_reduce_sum([0.0])


def launch_facts(recipe: sftrun.Recipe) -> dict[str, Any]:
    """Returns the processes, nodes, strategy and communication backend, for events."""
    nodes, strategy = recipe.launch.nodes, recipe.launch.strategy
    shared = {"strategy": "ddp" if strategy == "auto" else strategy, "backend": distributed.get_backend()}
    return {"processes": world_size() // nodes, "nodes": nodes, **shared}


def check_processes(trainer: Any, recipe: sftrun.Recipe) -> None:
    """Raises UserError if the trainer is not set up for all processes of the launcher."""
    size = world_size()
    if size == 1:
        return
    known = (trainer.args.world_size, distributed.get_world_size(), trainer.accelerator.num_processes)
    if set(known) != {size}:
        message = f"{size} processes train, but transformers sees {known[0]}, torch {known[1]}, accelerate {known[2]}"
        raise sftrun.UserError(sftrun.Problem(message, path=("launch", "processes")))
    if recipe.launch.strategy in ("auto", "ddp") and not isinstance(trainer.model_wrapped, DistributedDataParallel):
        message = f"the trainer has wrapped the model as {type(trainer.model_wrapped).__name__}, not for ddp"
        raise sftrun.UserError(sftrun.Problem(message, path=("launch", "strategy")))
    devices = all_gather((socket.gethostname(), str(trainer.args.device)))
    if trainer.args.device.type != "cpu" and len(set(devices)) != size:
        message = f"{size} processes share only {len(set(devices))} GPUs"
        raise sftrun.UserError(sftrun.Problem(message, path=("launch", "processes")))
