"""The weights of a model that are trained."""

from typing import Any

import torch


def here(model: Any) -> list[torch.Tensor]:
    """Of each trained weight, what this process holds."""
    found = []
    for weight in model.parameters():
        if weight.requires_grad:
            part = getattr(weight, "ds_tensor", weight)  # of DeepSpeed's stage 3
            found.append(part.to_local() if hasattr(part, "to_local") else part)
    return found


def copied(model: Any) -> dict[str, torch.Tensor]:
    """Copies of them by name."""
    return {name: weight.detach().clone() for name, weight in model.named_parameters() if weight.requires_grad}


def restore(model: Any, copies: dict[str, torch.Tensor]) -> None:
    """Puts them back as they were: on a quantised base, trl rounds adapters to bf16, and a checkpoint brings fp32."""
    weights = dict(model.named_parameters())
    for name, copy in copies.items():
        weights[name].data = copy.clone()
