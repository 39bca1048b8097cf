"""Others' kernels that make no logits at all: the head and its cross-entropy at once, on a GPU."""

from typing import Any

import torch

import sftrun
from sftrun.training import compute
from sftrun.training.model import head, isolation

# largest difference, as a share of what the model's own head gives, in 16 bits
BOUNDS = {"loss": 2e-2, "gradient": 5e-2}
PATH = ("train", "cross_entropy")


def kernel(model: Any, recipe: sftrun.Recipe) -> head.Kernel | None:
    """The kernel that a recipe asks for; raises UserError for a model whose head it does not compute."""
    name = recipe.train.cross_entropy
    if name == "torch":
        return None
    layer = model.get_output_embeddings()
    cap = getattr(model.config.get_text_config(), "final_logit_softcapping", None)
    precision = compute.precision(recipe)
    if name == "cut-cross-entropy" and precision == "fp32":
        raise _refusal(name, "its gradient is computed in bf16 or fp16, and train.precision is fp32")
    found = (_liger if name == "liger" else _cut)(layer, cap)
    _check(model, found, name, precision)
    return found


def _liger(layer: Any, cap: float | None) -> head.Kernel:
    from liger_kernel.transformers import LigerFusedLinearCrossEntropyLoss

    loss: Any = LigerFusedLinearCrossEntropyLoss(reduction="sum", softcap=cap, accum_dtype=torch.float32)

    def kernel(hidden: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
        if not len(wanted):  # rows that fill up a step: liger would divide by their number
            return hidden.sum()
        hidden, weight, bias = _alike(hidden, layer.weight, getattr(layer, "bias", None))
        made: torch.Tensor = loss(weight, hidden, wanted, bias)
        return made

    return kernel


def _cut(layer: Any, cap: float | None) -> head.Kernel:
    from cut_cross_entropy import linear_cross_entropy

    if getattr(layer, "bias", None) is not None:
        raise _refusal("cut-cross-entropy", "its head has a bias")

    def kernel(hidden: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
        if not len(wanted):
            return hidden.sum()
        hidden, weight, _ = _alike(hidden, layer.weight, None)
        made: torch.Tensor = linear_cross_entropy(hidden, weight, wanted, softcap=cap, reduction="sum")
        return made

    return kernel


def _alike(*tensors: Any) -> list[Any]:
    """In the number format of autocast, which does not reach kernels of others."""
    where = tensors[0].device.type
    half = torch.get_autocast_dtype(where) if torch.is_autocast_enabled(where) else tensors[1].dtype
    return [each if each is None else each.to(half) for each in tensors]


def _check(model: Any, found: head.Kernel, name: str, precision: str) -> None:
    """Compares a kernel with the model's own head, on a short row, in loss, gradient, and what has a gradient."""
    own = _tried(model, None, precision)
    try:
        other = _tried(model, found, precision)
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # whatever a kernel does with a model or a GPU that it was not written for
        raise _refusal(name, f"it fails with {type(error).__name__}: {error}") from error
    if own["trained"] != other["trained"]:
        raise _refusal(name, f"no gradient reaches {', '.join(sorted(own['trained'] ^ other['trained']))}")
    for what, bound in BOUNDS.items():
        if not abs(own[what] - other[what]) <= bound * abs(own[what]):  # also where it is no number
            reason = f"its {what} is {own[what]:.4f} by its own head, and {other[what]:.4f} by that kernel"
            raise _refusal(name, reason)


def _tried(model: Any, kernel: head.Kernel | None, precision: str) -> dict[str, Any]:
    """The loss of a short row, the norm of its gradient, and the names of the weights that have one."""
    head.add(model, kernel)
    ids = torch.arange(1, 33, device=model.device)[None] % model.config.get_text_config().vocab_size
    weights = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
    with isolation.quiet(model):
        with isolation.computing_in(precision, model.device):
            loss = model(input_ids=ids, scored=ids, use_cache=False)["loss"]
        made = torch.autograd.grad(loss, list(weights.values()), allow_unused=True)
    there = {name: each.float().norm() for name, each in zip(weights, made, strict=True) if each is not None}
    norm = torch.stack(list(there.values())).norm() if there else torch.zeros(())
    return {"loss": float(loss.detach()), "gradient": float(norm), "trained": there.keys()}


def _refusal(name: str, reason: str) -> sftrun.UserError:
    message = f"{name} does not compute this model's head: {reason}"
    return sftrun.UserError(sftrun.Problem(message, path=PATH, hint="use cross_entropy: torch"))
