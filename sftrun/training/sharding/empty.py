"""Models without weights, for ranks that receive their parts from rank 0.

Only rank 0 loads a shared model. The other ranks create its tensors in memory that is reserved and not written, and
receive each weight when it is sharded.
"""

from collections.abc import Iterable
from typing import Any

import torch
from torch import distributed

import sftrun
from sftrun.training import pretrained, ranks


def loads_weights(strategy: str | None, recipe: sftrun.Recipe, quantisation: Any) -> bool:
    """Returns True if this rank has to load the weights.

    Every rank loads a quantised base: its scales are not weights, and every rank needs all of them.
    """
    shared = strategy == "fsdp" or (strategy == "deepspeed" and recipe.launch.zero_stage == 3)
    return ranks.is_first() or not shared or quantisation is not None


def empty_model(location: str, options: Any, revision: str, dtype: torch.dtype) -> Any:
    """Builds a model from its config, with uninitialised weights."""
    config = pretrained.load_config(location, options, revision=revision)
    with torch.device("meta"):
        model = pretrained.build_model(config, options, dtype=dtype)
    model.to_empty(device="cpu")
    model.tie_weights()  # to_empty has untied them
    return model.eval()


def broadcast_dtypes(model: Any) -> None:
    """Sets the dtypes of the weights and the values of the buffers as on rank 0.

    Raises RuntimeError if rank 0 has another model.
    """
    own = {name: weight.dtype for name, weight in model.named_parameters()}
    wanted = ranks.broadcast(own)
    if wanted.keys() != own.keys():
        raise RuntimeError(f"rank 0 has other weights: {sorted(wanted.keys() ^ own.keys())}")
    for name, weight in model.named_parameters():
        if weight.dtype != wanted[name]:  # some models keep a few weights in fp32
            weight.data = torch.empty_like(weight, dtype=wanted[name])
    values = ranks.broadcast([buffer.cpu() for buffer in model.buffers()])
    for buffer, value in zip(model.buffers(), values, strict=True):
        buffer.copy_(value)


def broadcast_weights(weights: Iterable[torch.Tensor], device: torch.device) -> None:
    """Moves weights to a device and broadcasts their values from rank 0."""
    for weight in weights:
        weight.data = weight.data.to(device) if ranks.is_first() else torch.empty_like(weight.data, device=device)
        distributed.broadcast(weight.data, 0)
