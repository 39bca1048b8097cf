"""The learning rate of each optimizer step, as a factor of its peak."""

import functools
import math
from typing import Any

import torch


def learning_rate_factor(step: int, *, scheduler: str, warmup: int, steps: int) -> float:
    """Returns the factor for a step, counted from 0; it is above 0 for every step of a training of `steps` steps.

    A warm-up of n steps has the factors 1/(n+1), 2/(n+1), … n/(n+1), and the peak comes after it. A ramp from 0, as
    transformers has it, would train nothing in the first step.
    """
    if step < warmup:
        return (step + 1) / (warmup + 1)
    left = max(steps - step, 0) / max(steps - warmup, 1)
    if scheduler == "linear":
        return left
    return 0.5 * (1 - math.cos(math.pi * left)) if scheduler == "cosine" else 1.0


def make_scheduler(optimizer: Any, scheduler: str, warmup: int, steps: int) -> torch.optim.lr_scheduler.LambdaLR:
    """Returns torch's scheduler of an optimizer, with the factors of `learning_rate_factor`."""
    factor = functools.partial(learning_rate_factor, scheduler=scheduler, warmup=warmup, steps=steps)
    return torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
