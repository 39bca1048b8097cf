"""Others' kernels that make no logits at all: the head and its cross-entropy at once, on a GPU."""

from typing import Any

import torch

import sftrun
from sftrun.builtin.backends import _head, _isolation

BOUND = 2e-2  # largest relative difference of a loss in 16 bits
PATH = ("train", "cross_entropy")


def kernel(model: Any, recipe: sftrun.Recipe) -> _head.Kernel | None:
    """The kernel that a recipe asks for; raises UserError for a model whose head it does not compute."""
    name = recipe.train.cross_entropy
    if name == "torch":
        return None
    head = model.get_output_embeddings()
    cap = getattr(model.config.get_text_config(), "final_logit_softcapping", None)
    found = (_liger if name == "liger" else _cut)(head, cap)
    _check(model, head, found, name)
    return found


def _liger(head: Any, cap: float | None) -> _head.Kernel:
    from liger_kernel.transformers import LigerFusedLinearCrossEntropyLoss

    loss: Any = LigerFusedLinearCrossEntropyLoss(reduction="sum", softcap=cap, accum_dtype=torch.float32)

    def kernel(hidden: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
        hidden, weight, bias = _alike(hidden, head.weight, getattr(head, "bias", None))
        made: torch.Tensor = loss(weight, hidden, wanted, bias)
        return made

    return kernel


def _cut(head: Any, cap: float | None) -> _head.Kernel:
    from cut_cross_entropy import linear_cross_entropy

    if getattr(head, "bias", None) is not None:
        raise _refusal("cut-cross-entropy", "its head has a bias")

    def kernel(hidden: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
        hidden, weight, _ = _alike(hidden, head.weight, None)
        made: torch.Tensor = linear_cross_entropy(hidden, weight, wanted, softcap=cap, reduction="sum")
        return made

    return kernel


def _alike(*tensors: Any) -> list[Any]:
    """In the number format of autocast, which does not reach kernels of others."""
    half = torch.get_autocast_dtype("cuda") if torch.is_autocast_enabled("cuda") else tensors[1].dtype
    return [each if each is None else each.to(half) for each in tensors]


def _check(model: Any, head: Any, found: _head.Kernel, name: str) -> None:
    """Compares a kernel with the model's own head on a short row; one whose parameters are others is refused."""
    ids = torch.arange(1, 33, device=model.device)[None] % head.weight.shape[0]
    losses = []
    for each in (None, found):
        _head.add(model, each)
        with _isolation.quiet(model), torch.autocast("cuda", torch.bfloat16):
            losses.append(float(model(input_ids=ids, scored=ids, use_cache=False)["loss"]))
    if not abs(losses[0] - losses[1]) <= BOUND * abs(losses[0]):
        raise _refusal(name, f"its loss is {losses[0]:.4f} by its own head, and {losses[1]:.4f} by that kernel")


def _refusal(name: str, reason: str) -> sftrun.UserError:
    message = f"{name} does not compute this model's head: {reason}"
    return sftrun.UserError(sftrun.Problem(message, path=PATH, hint="use cross_entropy: torch"))
