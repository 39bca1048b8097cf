"""Estimates what one process holds of a model that several processes share.

Weights, gradients and optimizer states are divided by the number of processes. `gathered` is the rest: weights that are
whole during a computation, and buffers of the communication. The sizes follow FSDP2 as `sharding/fsdp.py` sets it up,
and DeepSpeed's ZeRO with its default bucket sizes.
"""

from collections.abc import Iterable
from typing import Any

import msgspec
import torch

import sftrun
from sftrun.training import compute
from sftrun.training.memory import sizes
from sftrun.training.sharding import strategies

FP32 = 4  # bytes of a trained weight, of its gradient, and of each of its optimizer states
BUCKET = 500_000_000  # gradients that ZeRO reduces together (reduce_bucket_size)
PREFETCH = 50_000_000  # weights that ZeRO-3 gathers together (stage3_prefetch_bucket_size)
LIVE = 1_000_000_000  # weights that ZeRO-3 keeps gathered for their next use (max_live_parameters)


class Unit(msgspec.Struct, frozen=True):
    """A group of weights that is gathered at once: `full` bytes, and the number of weights that are trained."""

    full: int
    trained: int


class ModelSize(msgspec.Struct, frozen=True):
    """The sizes of a model in a process that does not share it.

    `weights` are bytes of all weights, `replicated` bytes of buffers and quantisation scales (every process holds
    them), `states` bytes of the optimizer. `parameters` and `trained` count weights; `item` is the bytes of a number in
    the precision of the computation. `block` is the largest transformer block, `rest` everything outside the blocks.
    """

    weights: int
    replicated: int
    states: int
    parameters: int
    trained: int
    item: int
    block: Unit
    rest: Unit


class Share(msgspec.Struct, frozen=True):
    """The bytes of a model in one process; `gathered` come on top of the activations."""

    weights: int
    states: int
    gradients: int
    gathered: int = 0


def fsdp(model: ModelSize, processes: int, gloo: bool) -> Share:
    """Returns the share of a process under FSDP2.

    Embeddings and head stay whole during a step. Of the blocks, the current and the next one are whole, and the
    gradient of one, which is copied to fp32 for the reduction. Gloo copies what it gathers and what it reduces.
    """
    block, rest = model.block, model.rest
    copies = 2 if gloo else 1
    of_blocks = (1 + copies) * block.full + block.trained * (model.item + copies * FP32)
    return Share(
        weights=model.replicated + (model.weights - model.replicated) // processes,
        states=model.states // processes,
        gradients=FP32 * model.trained // processes,
        gathered=rest.full + rest.trained * model.item + max(of_blocks, copies * FP32 * rest.trained),
    )


def zero(model: ModelSize, processes: int, stage: int, gloo: bool) -> Share:
    """Returns the share of a process under ZeRO: weights in the computation's precision, trained ones also in fp32.

    A GPU allocates the bucket of gradients at the start; on a CPU untouched pages take no memory. The optimizer step
    makes fp32 gradients of its share. Gloo copies what it gathers and what it reduces.
    """
    copies = 2 if gloo else 1
    weights, reduced = model.item * model.parameters, model.item * min(model.trained, BUCKET)
    gathered = reduced if gloo else model.item * BUCKET
    if stage == 3:
        weights //= processes
        prefetched = model.item * min(model.parameters, PREFETCH)
        gathered += model.item * min(model.parameters, LIVE) + copies * max(prefetched, reduced)
    else:
        gathered += reduced  # whole gradients are reduced in place
    return Share(
        weights=model.replicated + weights + FP32 * model.trained // processes,
        states=model.states // processes,
        gradients=(model.item + FP32) * model.trained // processes,
        gathered=gathered,
    )


def share(model: Any, recipe: sftrun.Recipe, quantisation: dict[str, Any] | None, device: str) -> Share:
    """Returns the share of each process of a recipe, which is the whole model if the processes do not share it.

    Raises UserError if the model does not name the blocks that fsdp shards.
    """
    processes, launch, gloo = strategies.sharing_processes(recipe), recipe.launch, device == "cpu"
    trained = [each for each in model.parameters() if each.requires_grad]
    states = sizes.state_bytes(recipe.train.optimizer, trained)
    if processes == 1:
        return Share(sizes.weight_bytes(model, quantisation), states, sum(map(sizes.tensor_bytes, trained)))
    item = compute.DTYPES[compute.precision(recipe)].itemsize
    if launch.strategy == "deepspeed":
        return zero(model_size(model, quantisation, states, item, []), processes, launch.zero_stage, gloo)
    from sftrun.training.sharding.fsdp import transformer_blocks

    return fsdp(model_size(model, quantisation, states, item, transformer_blocks(model)), processes, gloo)


def model_size(model: Any, quantisation: dict[str, Any] | None, states: int, item: int, blocks: list[Any]) -> ModelSize:
    """Returns the sizes of a model; without `blocks`, all its weights are in `rest`."""
    parameters = list(model.parameters())
    full = {id(each): each.numel() * item for each in parameters}
    full |= {id(each): sizes.packed_bytes(each, quantisation) for each in sizes.quantised(model, quantisation)}
    inside = {id(each) for block in blocks for each in block.parameters()}
    units = [_unit(block.parameters(), full) for block in blocks]
    return ModelSize(
        weights=sizes.weight_bytes(model, quantisation),
        replicated=sizes.replicated_bytes(model, quantisation),
        states=states,
        parameters=sum(each.numel() for each in parameters),
        trained=sum(each.numel() for each in parameters if each.requires_grad),
        item=item,
        block=max(units, key=lambda unit: unit.full, default=Unit(0, 0)),
        rest=_unit((each for each in parameters if id(each) not in inside), full),
    )


def _unit(parameters: Iterable[torch.Tensor], full: dict[int, int]) -> Unit:
    group = list(parameters)
    return Unit(sum(full[id(each)] for each in group), sum(each.numel() for each in group if each.requires_grad))
