"""Translates a recipe to settings of transformers' trainer, for every backend that is built on it."""

import math
from collections.abc import Iterator
from typing import Any

import torch

import sftrun
from sftrun.training import compute, ranks

OPTIMIZERS = {"adamw": "adamw_torch_fused"}  # other optimizers have the same names in transformers
SCHEDULERS = {"constant": "constant_with_warmup", "linear": "linear", "cosine": "cosine"}
LEARNING_RATES = {"full": 1e-5, "lora": 2e-4, "qlora": 2e-4}


def trainer_settings(recipe: sftrun.Recipe, run: sftrun.RunDir, rows: int) -> dict[str, Any]:
    """Returns settings of trl's SFTConfig for a number of rows, or packs; no recipe key is left to trl's defaults."""
    t = recipe.train
    steps = t.steps(rows, ranks.world_size())
    precision = compute.precision(recipe)
    return {
        "output_dir": str(run.checkpoints),
        "num_train_epochs": t.epochs,
        "max_steps": steps,
        "learning_rate": LEARNING_RATES[recipe.tuning.mode] if t.learning_rate is None else t.learning_rate,
        "lr_scheduler_type": SCHEDULERS[t.scheduler],
        "warmup_steps": t.warmup_steps(steps),
        "weight_decay": t.weight_decay,
        "per_device_train_batch_size": t.micro_batch,
        "per_device_eval_batch_size": t.eval_batch_size,
        "gradient_accumulation_steps": t.grad_accum,
        "max_grad_norm": t.max_grad_norm,
        "gradient_checkpointing": t.gradient_checkpointing,
        "bf16": precision == "bf16",
        "fp16": precision == "fp16",
        "optim": optimizer(recipe),
        "adam_beta1": t.adam_beta1,
        "adam_beta2": t.adam_beta2,
        "adam_epsilon": t.adam_epsilon,
        "eval_strategy": t.eval_strategy if _validates(run) else "no",
        "eval_steps": t.eval_steps,
        "save_strategy": t.save_strategy,
        "save_steps": t.save_steps or 500,
        "save_total_limit": t.save_total_limit,
        "logging_steps": t.logging_steps,
        "logging_nan_inf_filter": False,  # show a loss that is not finite instead of replacing it
        "dataloader_num_workers": t.dataloader_workers,
        "dataloader_prefetch_factor": t.dataloader_prefetch,
        "seed": recipe.seed,
        "data_seed": recipe.seed,
        "report_to": [],  # sftrun has its own trackers
        "disable_tqdm": True,
        "use_cpu": not torch.cuda.is_available(),
        "packing": False,
        "max_length": None,
        "dataset_kwargs": {"skip_prepare_dataset": True},
    }


def optimizer(recipe: sftrun.Recipe) -> str:
    """Returns transformers' name of the recipe's optimizer."""
    return OPTIMIZERS.get(recipe.train.optimizer, recipe.train.optimizer)


def ineffective_options(recipe: sftrun.Recipe, run: sftrun.RunDir, rows: int) -> Iterator[str]:
    """Yields messages about keys that have no effect with these data or on this machine."""
    t = recipe.train
    if t.eval_strategy != "no" and not _validates(run):
        yield "there are no validation rows, so no validation loss is computed (train.eval_strategy)"
    elif t.early_stopping:
        yield from _never_stops(t.early_stopping.patience, _evaluations(recipe, rows))
    yield from _no_peak(recipe, t.steps(rows, ranks.world_size()))
    computes = compute.precision(recipe)
    if t.tf32 and computes != "fp32":
        yield f"tf32 is for fp32 matrices, and almost all matrices are in {computes} (train.precision)"
    if t.precision == "auto" and computes == "fp32" and torch.cuda.is_available():
        yield "this GPU has no bf16, so precision auto is fp32; fp16 takes half the memory and is faster"
    other = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    if other is not None and other.type != "cuda":
        yield f"sftrun trains on the CPU here: it does not use this machine's {other.type} device"
    if t.optimizer.startswith("paged_") and not torch.cuda.is_available():
        yield f"{t.optimizer} is not paged without a GPU"


def _no_peak(recipe: sftrun.Recipe, steps: int) -> Iterator[str]:
    """Yields a message if the warm-up that the recipe asks for is all of the training, or none of it."""
    train = recipe.train
    warmup = train.warmup_steps(steps)
    if warmup >= steps:
        yield (
            f"the learning rate never reaches its peak: train.warmup is {warmup} steps, and training has {steps}; use "
            "a share, for example 0.03"
        )
    elif not warmup and train.warmup not in (0, type(train)().warmup):
        yield (
            f"there is no warm-up: train.warmup is a share of {train.warmup:g}, which is less than one of {steps} steps"
        )


def _never_stops(patience: int, evaluations: int) -> Iterator[str]:
    if evaluations <= patience:
        yield (
            f"train.early_stopping never stops this training: it has {evaluations} evaluations, and with patience "
            f"{patience} it can stop after evaluation {patience + 1}; evaluate more often (train.eval_steps)"
        )


def _evaluations(recipe: sftrun.Recipe, rows: int) -> int:
    t, processes = recipe.train, ranks.world_size()
    return math.ceil(t.steps(rows, processes) / (t.eval_steps or t.epoch_steps(rows, processes)))


def _validates(run: sftrun.RunDir) -> bool:
    return (run.prepared / "val.arrow").is_file()
