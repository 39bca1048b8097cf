"""The device and the number formats of a training."""

import torch

import sftrun

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}


def device() -> torch.device:
    """Returns the first GPU, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def precision(recipe: sftrun.Recipe) -> str:
    """Returns the number format of the computation; resolves `auto` for this machine."""
    wanted = recipe.train.precision
    gpu = torch.cuda.is_available()
    if wanted == "auto":
        return "bf16" if gpu and torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
    if wanted == "fp16" and not gpu:
        problem = sftrun.Problem(
            "fp16 needs a GPU, and there is none", path=("train", "precision"), hint="use fp32 or auto"
        )
        raise sftrun.UserError(problem)
    return wanted


def weights_dtype(recipe: sftrun.Recipe) -> torch.dtype:
    """Returns the dtype of the base's weights: fp32 in full tuning, else the dtype of the computation."""
    return torch.float32 if recipe.tuning.mode == "full" else DTYPES[precision(recipe)]
