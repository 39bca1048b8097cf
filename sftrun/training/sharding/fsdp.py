"""FSDP2: each process holds a part of every weight, of its gradient and of its optimizer state.

The trainer's own `fsdp=` is silently plain DDP on a CPU. So the model is sharded here, on CPUs and GPUs alike, and
accelerate is kept from wrapping the model again.
"""

from pathlib import Path
from typing import Any

import torch
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor

import sftrun
from sftrun.training.sharding import empty

WEIGHTS, OPTIMIZER = "weights", "optimizer"  # folders of a checkpoint


class Fsdp:
    """A mix-in for trainers whose model is sharded by `fully_shard`."""

    args: Any
    model: Any
    optimizer: Any
    lr_scheduler: Any
    accelerator: Any

    def _move_model_to_device(self, model: Any, device: Any) -> None:
        """Leaves the model on its device: a GPU may be too small for the whole model."""

    def create_optimizer(self, *args: Any) -> Any:
        """Shards the model first, so that the optimizer gets the sharded weights."""
        if not is_sharded(self.model):
            self._shard()
        return super().create_optimizer(*args)  # type: ignore[misc]

    def _shard(self) -> None:
        shard(self.model, self.args.device, half=torch.bfloat16 if self.args.bf16 else None)
        wrap = self.accelerator.prepare_model

        def autocast_only(model: Any, **_more: Any) -> Any:
            return wrap(model, device_placement=False, evaluation_mode=True)

        self.accelerator.prepare_model = autocast_only

    def check_shards(self) -> None:
        """Raises UserError if a weight is not shared among all processes."""
        check_sharding(self.model)

    def gather_weights(self) -> dict[str, torch.Tensor] | None:
        """Returns the trained weights on rank 0; every rank must call it."""
        return gather_weights(self.model)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Writes a checkpoint; each process writes its part."""
        save(_trained(self.model), checkpoint_id=_folder(output_dir, WEIGHTS))

    def _load_from_checkpoint(self, folder: str, model: Any = None) -> None:
        load(_trained(self.model), checkpoint_id=_folder(folder, WEIGHTS))

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        save(get_optimizer_state_dict(self.model, self._inner()), checkpoint_id=_folder(output_dir, OPTIMIZER))
        if self.args.should_save:
            torch.save(self.lr_scheduler.state_dict(), Path(output_dir) / "scheduler.pt")

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is None:
            return
        state = get_optimizer_state_dict(self.model, self._inner())
        load(state, checkpoint_id=_folder(checkpoint, OPTIMIZER))
        set_optimizer_state_dict(self.model, self._inner(), optim_state_dict=state)
        self.lr_scheduler.load_state_dict(torch.load(Path(checkpoint) / "scheduler.pt", weights_only=True))

    def _inner(self) -> torch.optim.Optimizer:
        """Returns the optimizer without accelerate's wrapper."""
        return self.optimizer.optimizer  # type: ignore[no-any-return]


def shard(model: Any, device: torch.device, half: torch.dtype | None) -> None:
    """Shards rank 0's model over all processes, block by block, so that one block at a time is whole in memory.

    With `half`, blocks are gathered and computed in that dtype; weights and gradients keep their precision.
    """
    mesh = init_device_mesh(device.type, (torch.distributed.get_world_size(),))
    policy = MixedPrecisionPolicy(param_dtype=half, reduce_dtype=torch.float32 if half else None)
    empty.broadcast_dtypes(model)
    for block in transformer_blocks(model):
        empty.broadcast_weights(block.parameters(), device)
        fully_shard(block, mesh=mesh, mp_policy=policy)
    empty.broadcast_weights((weight for weight in model.parameters() if not isinstance(weight, DTensor)), device)
    # torch would leave the rest gathered after a forward pass, and no backward pass follows an evaluation
    fully_shard(model, mesh=mesh, mp_policy=policy, reshard_after_forward=True)
    for module in model.modules():  # buffers are not sharded
        for name, buffer in module.named_buffers(recurse=False):
            setattr(module, name, buffer.to(device))


def transformer_blocks(model: Any) -> list[Any]:
    """Returns the repeated blocks of a transformer; raises UserError if the model does not name them."""
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    names = set(base._no_split_modules or ())
    blocks = [module for module in model.modules() if type(module).__name__ in names]
    if not blocks:
        message = f"fsdp shards a model block by block, and {type(base).__name__} does not name its blocks"
        problem = sftrun.Problem(message, path=("launch", "strategy"), hint="use ddp, or deepspeed with zero_stage 3")
        raise sftrun.UserError(problem)
    return blocks


def check_sharding(model: Any) -> None:
    """Raises UserError if a weight is not shared among all processes."""
    processes = torch.distributed.get_world_size()
    for name, weight in model.named_parameters():
        if not isinstance(weight, DTensor):
            raise _sharding_error(f"{name} is whole in each process")
        if weight.device_mesh.size() != processes or not all(place.is_shard() for place in weight.placements):
            raise _sharding_error(f"{name} is shared among {weight.device_mesh.size()} of {processes} processes")


def _sharding_error(what: str) -> sftrun.UserError:
    message = f"launch.strategy fsdp did not shard the model: {what}"
    return sftrun.UserError(sftrun.Problem(message, path=("launch", "strategy")))


def is_sharded(model: Any) -> bool:
    """Returns True if processes share any of the weights."""
    return any(isinstance(weight, DTensor) for weight in model.parameters())


def gather_weights(model: Any) -> dict[str, torch.Tensor] | None:
    """Returns the whole trained weights on rank 0; None on other ranks, and if the model is not sharded."""
    if not is_sharded(model):
        return None
    frozen = not all(weight.requires_grad for weight in model.parameters())
    options = StateDictOptions(full_state_dict=True, cpu_offload=True, ignore_frozen_params=frozen)
    twice = hasattr(model, "peft_config")  # peft asks for a tied weight under both names, transformers under one
    names = {name for name, _ in model.named_parameters(remove_duplicate=not twice)}
    names |= {name for name, _ in model.named_buffers()}
    weights: dict[str, Any] = get_model_state_dict(model, options=options)
    return {name: weight for name, weight in weights.items() if name in names} or None


def _trained(model: Any) -> dict[str, Any]:
    return {name: weight for name, weight in model.named_parameters() if weight.requires_grad}


def _folder(checkpoint: str | None, name: str) -> str:
    return str(Path(checkpoint or ".") / name)
