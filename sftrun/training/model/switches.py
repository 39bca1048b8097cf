"""What the switches for speed and memory become on this machine, and why one of them cannot be had."""

import importlib.util
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
HUB_KERNEL = "kernels-community/flash-attn2"  # what transformers takes where flash-attn is not installed
PATH = ("train", "attention")


def check(recipe: sftrun.Recipe) -> None:
    """Raises UserError with everything that a recipe asks for and this machine has not, before a model is loaded."""
    problems = list(_missing(recipe))
    if problems:
        raise sftrun.UserError(problems)


def _missing(recipe: sftrun.Recipe) -> Iterator[sftrun.Problem]:
    train, gpu = recipe.train, torch.cuda.is_available()
    if train.activation_offload and not gpu:
        message = "activation_offload moves activations from a GPU to the CPU's memory, and there is no GPU"
        yield sftrun.Problem(message, path=("train", "activation_offload"), hint="use gradient_checkpointing: true")
    if train.tf32 and not is_torch_tf32_available():
        message = "tf32 is a number format of NVIDIA GPUs since Ampere, and there is none"
        yield sftrun.Problem(message, path=("train", "tf32"), hint="leave it out")
    if train.cross_entropy != "torch" and not gpu:
        message = f"the kernels of {train.cross_entropy} need a GPU, and there is none"
        yield sftrun.Problem(message, path=("train", "cross_entropy"), hint="use cross_entropy: torch")
    if train.compile and not _compiler():
        message = "torch.compile needs a C++ compiler, and there is none"
        yield sftrun.Problem(message, path=("train", "compile"), hint="install g++, or leave compile out")
    if train.attention == "flex" and not gpu:
        message = "flex attention can be trained on a GPU alone, and there is none"
        yield sftrun.Problem(message, path=PATH, hint="use attention: sdpa")
    why_not = _no_flash(recipe) if train.attention == "flash-attn" else None
    if why_not:
        yield sftrun.Problem(f"flash-attn cannot be had: {why_not}", path=PATH, hint="use attention: sdpa")


def _compiler() -> bool:
    named = os.environ.get("CXX", "")
    return torch.cuda.is_available() or any(shutil.which(name) for name in (named, "g++", "clang++") if name)


def _no_flash(recipe: sftrun.Recipe) -> str | None:
    """Why flash-attn does not work here; None where it does."""
    if not torch.cuda.is_available():
        return "it needs a GPU, and there is none"
    if not attention.modern():
        return "it needs a GPU of NVIDIA's since Ampere, and this one is older"
    if compute.precision(recipe) == "fp32":
        return "it computes in bf16 or fp16, and train.precision is fp32"
    if not is_flash_attn_2_available():
        return "the package flash-attn is not installed"
    return None


def give(model: Any, recipe: sftrun.Recipe, emit: sftrun.kinds.Emit) -> dict[str, str]:
    """Gives a model its attention, and compiles its layers; returns, and says, what it trains with.

    Raises UserError where the model has no such attention.
    """
    used = {"attention": (_packed if recipe.packing.strategy != "none" else _padded)(model, recipe, emit)}
    used["optimizer"] = recipe.train.optimizer + (" (fused)" if recipe.train.optimizer == "adamw" else "")
    used |= {"precision": compute.precision(recipe), "cross_entropy": recipe.train.cross_entropy}
    checkpoints = recipe.train.gradient_checkpointing
    used["compiled"] = f"{_compile(model, checkpoints)} layers" if recipe.train.compile else "nothing"
    emit(sftrun.events.Using(**used))
    return used


def _packed(model: Any, recipe: sftrun.Recipe, emit: sftrun.kinds.Emit) -> str:
    """Attention for packed rows: one that is ours and goes sequence by sequence, where a model allows it."""
    wanted = recipe.train.attention
    flash = wanted != "sdpa" and _no_flash(recipe) is None
    if wanted in ("auto", "sdpa", "flash-attn") and attention.isolate(model, flash):
        return f"{attention.named(flash, compute.precision(recipe))}, sequence by sequence"
    if wanted != "auto":
        _set(model, wanted)
    if model.config._attn_implementation in ("eager", "sdpa"):
        message = "this attention reads a packed row as a whole, so it takes memory for length × length"
        emit(sftrun.events.Warned(message=message))
    return str(model.config._attn_implementation)


def _padded(model: Any, recipe: sftrun.Recipe, emit: sftrun.kinds.Emit) -> str:
    wanted = recipe.train.attention
    if wanted != "auto":
        _set(model, wanted)
    elif _no_flash(recipe) is None and model._supports_flash_attn:
        _set(model, "flash-attn")
    elif _has_hub_kernel(recipe) and model._supports_flash_attn:
        try:
            model.set_attn_implementation(HUB_KERNEL)
        except Exception as error:  # whatever a download or a binary does
            emit(sftrun.events.Warned(message=f"no {HUB_KERNEL}: {error}; sdpa takes its place"))
    return str(model.config._attn_implementation)


def _has_hub_kernel(recipe: sftrun.Recipe) -> bool:
    half = attention.modern() and compute.precision(recipe) != "fp32"
    return half and importlib.util.find_spec("kernels") is not None


def _set(model: Any, wanted: str) -> None:
    try:
        model.set_attn_implementation(OWN[wanted])
    except (ValueError, ImportError) as error:
        problem = sftrun.Problem(
            f"{wanted} cannot be had for this model: {error}", path=PATH, hint="use attention: auto"
        )
        raise sftrun.UserError(problem) from error
    if model.config._attn_implementation != OWN[wanted]:
        message = f"this model has no attention {wanted}, but {model.config._attn_implementation}"
        raise sftrun.UserError(sftrun.Problem(message, path=PATH, hint="use attention: auto"))


def _compile(model: Any, checkpoints: bool) -> int:
    """Compiles each layer apart, for any length: the head and the search for sequences change from batch to batch.

    With `checkpoints`, which transformers makes within a layer, the parts of each layer: torch would not compile a
    checkpoint that holds the attention of packed rows, and would not say so.
    """
    layers = [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]
    if not layers:
        message = "this model has no layers that transformers knows as such, so there is nothing to compile"
        raise sftrun.UserError(sftrun.Problem(message, path=("train", "compile"), hint="leave it out"))
    for layer in layers:
        for module in layer.children() if checkpoints else [layer]:
            module.compile(dynamic=True)
    return len(layers)
