"""Applies the switches for speed and memory, and checks which of them are available on this machine."""

import os
import shutil
from collections.abc import Iterator
from typing import Any

import torch
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.utils import is_flash_attn_2_available, is_torch_tf32_available

import sftrun
from sftrun.training import compute
from sftrun.training.model import attention

OWN = {"eager": "eager", "sdpa": "sdpa", "flash-attn": "flash_attention_2", "flex": "flex_attention"}
HUB_KERNEL = "kernels-community/flash-attn2"
PATH = ("train", "attention")


def check_switches(recipe: sftrun.Recipe) -> None:
    """Raises UserError with every switch that is not available on this machine."""
    problems = list(_unavailable(recipe))
    if problems:
        raise sftrun.UserError(problems)


def _unavailable(recipe: sftrun.Recipe) -> Iterator[sftrun.Problem]:
    train = recipe.train
    gpu = torch.cuda.is_available()
    if train.activation_offload and not gpu:
        message = "activation_offload moves activations from a GPU to the CPU's memory, and there is no GPU"
        yield sftrun.Problem(message, path=("train", "activation_offload"), hint="use gradient_checkpointing: true")
    if train.tf32 and not is_torch_tf32_available():
        message = "tf32 is a number format of NVIDIA GPUs since Ampere, and there is none"
        yield sftrun.Problem(message, path=("train", "tf32"), hint="leave it out")
    if train.cross_entropy != "torch" and not gpu:
        message = f"the kernels of {train.cross_entropy} need a GPU, and there is none"
        yield sftrun.Problem(message, path=("train", "cross_entropy"), hint="use cross_entropy: torch")
    if train.compile and not _has_compiler():
        message = "torch.compile needs a C++ compiler, and there is none"
        yield sftrun.Problem(message, path=("train", "compile"), hint="install g++, or leave compile out")
    if train.attention == "flex" and not gpu:
        message = "flex attention trains on a GPU only, and there is none"
        yield sftrun.Problem(message, path=PATH, hint="use attention: sdpa")
    reason = _why_no_flash(recipe, train.attention) if train.attention in ("flash-attn", "hub") else None
    if reason:
        yield sftrun.Problem(f"{train.attention} is not available: {reason}", path=PATH, hint="use attention: sdpa")


def _has_compiler() -> bool:
    own = os.environ.get("CXX", "")
    return torch.cuda.is_available() or any(shutil.which(name) for name in (own, "g++", "clang++") if name)


def _why_no_flash(recipe: sftrun.Recipe, wanted: str = "flash-attn") -> str | None:
    """Returns the reason why flash-attn, or with `hub` its build of the Hub, is not available; None if it is."""
    if not torch.cuda.is_available():
        return "it needs a GPU, and there is none"
    if not attention.has_ampere_gpu():
        return "it needs an NVIDIA GPU since Ampere, and this one is older"
    if compute.precision(recipe) == "fp32":
        return "it computes in bf16 or fp16, and train.precision is fp32"
    if wanted == "flash-attn" and not is_flash_attn_2_available():
        return "the package flash-attn is not installed"
    return None


def apply_switches(model: Any, recipe: sftrun.Recipe, emit: sftrun.kinds.Emit) -> dict[str, str]:
    """Sets a model's attention and compiles its layers; returns and emits the choices.

    Raises UserError if the model does not support the attention.
    """
    set_attention = _set_packed_attention if recipe.packing.strategy != "none" else _set_padded_attention
    used = {"attention": set_attention(model, recipe, emit)}
    used["optimizer"] = recipe.train.optimizer + (" (fused)" if recipe.train.optimizer == "adamw" else "")
    used |= {"precision": compute.precision(recipe), "cross_entropy": recipe.train.cross_entropy}
    checkpoints = recipe.train.gradient_checkpointing
    used["compiled"] = f"{_compile(model, checkpoints)} layers" if recipe.train.compile else "nothing"
    emit(sftrun.events.Using(**used))
    return used


def _set_packed_attention(model: Any, recipe: sftrun.Recipe, emit: sftrun.kinds.Emit) -> str:
    """Sets attention for packed rows: `attention.py` computes it per sequence, if the model allows it."""
    wanted = recipe.train.attention
    flash = wanted != "sdpa" and _why_no_flash(recipe) is None
    if wanted in ("auto", "sdpa", "flash-attn") and attention.isolate(model, flash):
        return f"{attention.kernel_name(flash, compute.precision(recipe))}, sequence by sequence"
    if wanted != "auto":
        _set(model, recipe)
    if model.config._attn_implementation in ("eager", "sdpa"):
        message = "this attention does not split packed rows, so its memory grows with the square of their length"
        emit(sftrun.events.Warned(message=message))
    return str(model.config._attn_implementation)


def _set_padded_attention(model: Any, recipe: sftrun.Recipe, _: sftrun.kinds.Emit) -> str:
    if recipe.train.attention != "auto":
        _set(model, recipe)
    elif _why_no_flash(recipe) is None and model._supports_flash_attn:
        model.set_attn_implementation(OWN["flash-attn"])
    return str(model.config._attn_implementation)


def _set(model: Any, recipe: sftrun.Recipe) -> None:
    wanted = recipe.train.attention
    name = f"{HUB_KERNEL}@{recipe.train.attention_revision}" if wanted == "hub" else OWN[wanted]
    try:
        model.set_attn_implementation(name)
    except (ValueError, ImportError) as error:
        problem = sftrun.Problem(
            f"{wanted} is not available for this model: {error}", path=PATH, hint="use attention: auto"
        )
        raise sftrun.UserError(problem) from error
    if model.config._attn_implementation != name:
        message = f"this model does not support {wanted}, and has {model.config._attn_implementation} instead"
        raise sftrun.UserError(sftrun.Problem(message, path=PATH, hint="use attention: auto"))


def _compile(model: Any, checkpoints: bool) -> int:
    """Compiles each layer separately, for any length; returns the number of layers.

    The head and the search for sequences change from batch to batch. With `checkpoints`, the parts of each layer are
    compiled: torch silently skips a checkpoint that contains the attention of packed rows.
    """
    layers = [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]
    if not layers:
        message = "this model has no layers that transformers can name, so there is nothing to compile"
        raise sftrun.UserError(sftrun.Problem(message, path=("train", "compile"), hint="leave it out"))
    for layer in layers:
        for module in layer.children() if checkpoints else [layer]:
            module.compile(dynamic=True)
    return len(layers)
