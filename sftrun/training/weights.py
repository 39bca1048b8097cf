"""The trained weights of a model: local parts, copies, restoring."""

from typing import Any

import torch


def local_parts(model: Any) -> list[torch.Tensor]:
    """Returns the part of each trained weight that this process holds."""
    parts = []
    for weight in model.parameters():
        if weight.requires_grad:
            part = getattr(weight, "ds_tensor", weight)  # set by DeepSpeed's stage 3
            parts.append(part.to_local() if hasattr(part, "to_local") else part)
    return parts


def copy_trained(model: Any) -> dict[str, torch.Tensor]:
    """Returns copies of the trained weights by name."""
    return {name: weight.detach().clone() for name, weight in model.named_parameters() if weight.requires_grad}


def restore(model: Any, copies: dict[str, torch.Tensor]) -> None:
    """Restores weights in fp32: trl rounds adapters on a quantised base to bf16, and a checkpoint has fp32."""
    weights = dict(model.named_parameters())
    for name, copy in copies.items():
        weights[name].data = copy.clone()
