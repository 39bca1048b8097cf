"""External GPU kernels that fuse the head and its cross-entropy, and compute no logits."""

from typing import Any

import torch

import sftrun
from sftrun.training import compute
from sftrun.training.model import head, isolation

# largest difference in 16 bits, as a share of the value from the model's own head
BOUNDS = {"loss": 2e-2, "gradient": 5e-2}
PATH = ("train", "cross_entropy")


def load_kernel(model: Any, recipe: sftrun.Recipe) -> head.Kernel | None:
    """Returns the kernel that a recipe asks for; raises UserError if it does not reproduce the model's own head."""
    name = recipe.train.cross_entropy
    if name == "torch":
        return None
    layer = model.get_output_embeddings()
    cap = getattr(model.config.get_text_config(), "final_logit_softcapping", None)
    precision = compute.precision(recipe)
    if name == "cut-cross-entropy" and precision == "fp32":
        raise _kernel_error(name, "its gradient is computed in bf16 or fp16, and train.precision is fp32")
    kernel = (_liger if name == "liger" else _cut)(layer, cap)
    _check_kernel(model, kernel, name, precision)
    return kernel


def _liger(layer: Any, cap: float | None) -> head.Kernel:
    from liger_kernel.transformers import LigerFusedLinearCrossEntropyLoss

    loss: Any = LigerFusedLinearCrossEntropyLoss(reduction="sum", softcap=cap, accum_dtype=torch.float32)

    def kernel(hidden: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        if not len(targets):  # empty rows at the end of an epoch: liger would divide by zero
            return hidden.sum()
        hidden, weight, bias = _cast_to_autocast(hidden, layer.weight, getattr(layer, "bias", None))
        summed: torch.Tensor = loss(weight, hidden, targets, bias)
        return summed

    return kernel


def _cut(layer: Any, cap: float | None) -> head.Kernel:
    from cut_cross_entropy import linear_cross_entropy

    if getattr(layer, "bias", None) is not None:
        raise _kernel_error("cut-cross-entropy", "its head has a bias")

    def kernel(hidden: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        if not len(targets):
            return hidden.sum()
        hidden, weight, _ = _cast_to_autocast(hidden, layer.weight, None)
        summed: torch.Tensor = linear_cross_entropy(hidden, weight, targets, softcap=cap, reduction="sum")
        return summed

    return kernel


def _cast_to_autocast(*tensors: Any) -> list[Any]:
    """Casts tensors to the autocast dtype: autocast does not apply to external kernels."""
    device = tensors[0].device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else tensors[1].dtype
    return [each if each is None else each.to(dtype) for each in tensors]


def _check_kernel(model: Any, kernel: head.Kernel, name: str, precision: str) -> None:
    """Raises UserError if a kernel differs from the model's own head on a short row.

    Loss, norm of the gradient, and the weights that get a gradient must agree.
    """
    own = _run_head(model, None, precision)
    try:
        other = _run_head(model, kernel, precision)
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # a kernel may fail in any way on a model or a GPU that it does not support
        raise _kernel_error(name, f"it fails with {type(error).__name__}: {error}") from error
    if own["trained"] != other["trained"]:
        raise _kernel_error(name, f"no gradient reaches {', '.join(sorted(own['trained'] ^ other['trained']))}")
    for what, bound in BOUNDS.items():
        if not abs(own[what] - other[what]) <= bound * abs(own[what]):  # also true for NaN
            reason = f"its {what} is {own[what]:.4f} with the own head, and {other[what]:.4f} with the kernel"
            raise _kernel_error(name, reason)


def _run_head(model: Any, kernel: head.Kernel | None, precision: str) -> dict[str, Any]:
    """Returns the loss of a short row, the norm of its gradient, and the names of the weights with a gradient."""
    head.patch_forward(model, kernel)
    ids = torch.arange(1, 33, device=model.device)[None] % model.config.get_text_config().vocab_size
    weights = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
    with isolation.eval_mode(model):
        with isolation.autocast(precision, model.device):
            loss = model(input_ids=ids, scored=ids, use_cache=False)["loss"]
        gradients = torch.autograd.grad(loss, list(weights.values()), allow_unused=True)
    norms = {name: each.float().norm() for name, each in zip(weights, gradients, strict=True) if each is not None}
    total = torch.stack(list(norms.values())).norm() if norms else torch.zeros(())
    return {"loss": float(loss.detach()), "gradient": float(total), "trained": norms.keys()}


def _kernel_error(name: str, reason: str) -> sftrun.UserError:
    message = f"{name} does not reproduce this model's head: {reason}"
    return sftrun.UserError(sftrun.Problem(message, path=PATH, hint="use cross_entropy: torch"))
