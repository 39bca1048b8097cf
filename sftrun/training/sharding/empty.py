"""Models without their weights, for processes that are given them by the first one.

Processes that share a model need only their parts of it. So the first one alone loads it; the others make its shape,
in memory that is reserved and not written to, and take each weight as it is shared.
"""

from collections.abc import Iterable
from typing import Any

import torch
import transformers
from torch import distributed

import sftrun
from sftrun.training import ranks


def loads_weights(strategy: str | None, recipe: sftrun.Recipe, quantisation: Any) -> bool:
    """Whether this process has to load the weights.

    A quantised base is loaded by all: its scales are no weights, and every process needs them whole.
    """
    shared = strategy == "fsdp" or (strategy == "deepspeed" and recipe.launch.zero_stage == 3)
    return ranks.first() or not shared or quantisation is not None


def empty_model(location: str, revision: str, dtype: torch.dtype) -> Any:
    """The model of a config, with weights of no particular value."""
    config = transformers.AutoConfig.from_pretrained(location, revision=revision)
    with torch.device("meta"):
        made = transformers.AutoModelForCausalLM.from_config(config, dtype=dtype)
    made.to_empty(device="cpu")
    made.tie_weights()  # which are two now
    return made.eval()


def agree(model: Any) -> None:
    """Gives weights the types that they have in the first process, and buffers their values.

    Raises RuntimeError where that one has another model.
    """
    types = {name: weight.dtype for name, weight in model.named_parameters()}
    wanted = ranks.told(types)
    if wanted.keys() != types.keys():
        raise RuntimeError(f"the first process has other weights: {sorted(wanted.keys() ^ types.keys())}")
    for name, weight in model.named_parameters():
        if weight.dtype != wanted[name]:  # some models keep a few in fp32
            weight.data = torch.empty_like(weight, dtype=wanted[name])
    given = ranks.told([buffer.cpu() for buffer in model.buffers()])
    for buffer, value in zip(model.buffers(), given, strict=True):
        buffer.copy_(value)


def give(weights: Iterable[torch.Tensor], device: torch.device) -> None:
    """Moves weights to a device, with the values that they have in the first process."""
    for weight in weights:
        weight.data = weight.data.to(device) if ranks.first() else torch.empty_like(weight.data, device=device)
        distributed.broadcast(weight.data, 0)
