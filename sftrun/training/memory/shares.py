"""What one process holds of a model that several share, from the sizes of the model's parts and their number.

What is shared is divided; what remains is what is whole at a time, for a computation or on its way between processes.
Of FSDP2 as `_fsdp` sets it up, and of DeepSpeed's ZeRO with its own sizes of buckets, which `_deepspeed` leaves.
"""

from typing import Any

import msgspec

import sftrun
from sftrun.training import compute
from sftrun.training.memory import sizes
from sftrun.training.sharding import strategies

FP32 = 4  # bytes of a trained weight, of its gradient as it is kept, and of each of its optimizer states
BUCKET = 500_000_000  # ZeRO: gradients that are reduced together (reduce_bucket_size)
PREFETCH = 50_000_000  # ZeRO-3: weights that are gathered together (stage3_prefetch_bucket_size)
LIVE = 1_000_000_000  # ZeRO-3: weights that stay whole when they are used again soon (max_live_parameters)


class Unit(msgspec.Struct, frozen=True):
    """Weights that are gathered together: their bytes when whole, and how many of them are trained."""

    whole: int
    trained: int


class Model(msgspec.Struct, frozen=True):
    """A model as a process that has it for itself would hold it.

    `held` are bytes of all weights, `everywhere` of what each process needs (buffers, the scales of a quantised base),
    `states` of the optimizer; `count` and `trained` are numbers of weights, `item` is the bytes of a number of the
    computation. A `block` is one of the repeated ones, the `rest` is all that is in none (embeddings, the head).
    """

    held: int
    everywhere: int
    states: int
    count: int
    trained: int
    item: int
    block: Unit
    rest: Unit


class Share(msgspec.Struct, frozen=True):
    """Bytes in one process; `gathered` are there beside activations, `reduced` when the last gradients meet."""

    weights: int
    states: int
    gradients: int
    gathered: int = 0
    reduced: int = 0


def fsdp(model: Model, processes: int, gloo: bool) -> Share:
    """FSDP2: the rest is whole all along; of blocks the one in use and the next, and the gradient of one.

    A block's weights are gathered end to end and copied apart, while the next is gathered. Its gradient is copied to
    fp32, to be reduced. Gloo makes a copy of its own of what it gathers and of what it reduces.
    """
    block, rest = model.block, model.rest
    copies = 2 if gloo else 1
    whole = rest.whole + rest.trained * model.item
    passing = (1 + copies) * block.whole + block.trained * (model.item + copies * FP32)
    return Share(
        weights=model.everywhere + (model.held - model.everywhere) // processes,
        states=model.states // processes,
        gradients=FP32 * model.trained // processes,
        gathered=whole + passing,
        reduced=whole + copies * FP32 * rest.trained,
    )


def zero(model: Model, processes: int, stage: int, gloo: bool) -> Share:
    """ZeRO: weights in the computation's precision, whole (2) or shared (3), and a share of the trained ones in fp32.

    Gradients go through a bucket, which a GPU has from the start; on a CPU what is not written to takes no memory.
    Weights are gathered end to end and copied apart, many at a time. Gloo makes copies of its own.
    """
    copies = 2 if gloo else 1
    weights, meeting = model.item * model.count, model.item * min(model.trained, BUCKET)
    bucket = meeting if gloo else model.item * BUCKET
    live, passing = (min(model.count, most) * model.item if stage == 3 else 0 for most in (LIVE, PREFETCH))
    return Share(
        weights=model.everywhere
        + (weights // processes if stage == 3 else weights)
        + FP32 * model.trained // processes,
        states=model.states // processes,
        gradients=model.item * model.trained // processes,
        gathered=live + bucket + copies * passing,
        reduced=live + bucket + (copies if stage == 3 else 1) * meeting,  # stage 2 reduces to whole gradients, in place
    )


def of(model: Any, recipe: sftrun.Recipe, quantisation: dict[str, Any] | None, where: str) -> Share:
    """The share of each process that a recipe has; all of it where they do not share.

    Raises UserError for a model that does not name its blocks, where they are what is shared.
    """
    processes, launch, gloo = strategies.sharing(recipe), recipe.launch, where == "cpu"
    trained = [each for each in model.parameters() if each.requires_grad]
    states = sizes.states(recipe.train.optimizer, trained)
    if processes == 1:
        return Share(sizes.weights(model, quantisation), states, sum(map(sizes.size, trained)))
    item = compute.DTYPES[compute.precision(recipe)].itemsize
    if launch.strategy == "deepspeed":
        return zero(measured(model, quantisation, states, item, []), processes, launch.zero_stage, gloo)
    from sftrun.training.sharding.fsdp import blocks

    return fsdp(measured(model, quantisation, states, item, blocks(model)), processes, gloo)


def measured(model: Any, quantisation: dict[str, Any] | None, states: int, item: int, blocks: list[Any]) -> Model:
    """The sizes of a model, as it is trained; without `blocks` all of it is the rest."""
    weights = list(model.parameters())
    whole = {id(each): each.numel() * item for each in weights}
    whole |= {id(each): sizes.packed(each, quantisation) for each in sizes.quantised(model, quantisation)}
    inside = {id(each) for block in blocks for each in block.parameters()}
    units = [_unit(block.parameters(), whole) for block in blocks]
    return Model(
        held=sizes.weights(model, quantisation),
        everywhere=sizes.everywhere(model, quantisation),
        states=states,
        count=sum(each.numel() for each in weights),
        trained=sum(each.numel() for each in weights if each.requires_grad),
        item=item,
        block=max(units, key=lambda unit: unit.whole, default=Unit(0, 0)),
        rest=_unit((each for each in weights if id(each) not in inside), whole),
    )


def _unit(weights: Any, whole: dict[int, int]) -> Unit:
    found = list(weights)
    return Unit(sum(whole[id(each)] for each in found), sum(each.numel() for each in found if each.requires_grad))
