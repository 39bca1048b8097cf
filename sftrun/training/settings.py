"""What a recipe gives to transformers' trainer: the settings that every backend on it has in common."""

import math
from collections.abc import Iterator
from typing import Any

import torch

import sftrun
from sftrun.training import compute, ranks

OPTIMIZERS = {"adamw": "adamw_torch_fused"}  # the others have the names that transformers gives them
SCHEDULERS = {"constant": "constant_with_warmup", "linear": "linear", "cosine": "cosine"}
LEARNING_RATES = {"full": 1e-5, "lora": 2e-4, "qlora": 2e-4}


def of_recipe(recipe: sftrun.Recipe, run: sftrun.RunDir, rows: int) -> dict[str, Any]:
    """Settings of trl's SFTConfig for so many rows, or packs; what a recipe decides is not left to its defaults."""
    t = recipe.train
    steps = t.steps(rows, ranks.world_size())
    precision = compute.precision(recipe)
    return {
        "output_dir": str(run.checkpoints),
        "num_train_epochs": t.epochs,
        "max_steps": steps,
        "learning_rate": LEARNING_RATES[recipe.tuning.mode] if t.learning_rate is None else t.learning_rate,
        "lr_scheduler_type": SCHEDULERS[t.scheduler],
        "warmup_steps": math.ceil(t.warmup * steps) if t.warmup < 1 else int(t.warmup),
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
        "logging_nan_inf_filter": False,  # a loss that is not finite must be seen, not replaced
        "dataloader_num_workers": t.dataloader_workers,
        "dataloader_prefetch_factor": t.dataloader_prefetch,
        "seed": recipe.seed,
        "data_seed": recipe.seed,
        "report_to": [],  # TensorBoard's callback comes from the keeper
        "disable_tqdm": True,
        "use_cpu": not torch.cuda.is_available(),
        "packing": False,
        "max_length": None,
        "dataset_kwargs": {"skip_prepare_dataset": True},
    }


def optimizer(recipe: sftrun.Recipe) -> str:
    """The recipe's optimizer, as transformers names it."""
    return OPTIMIZERS.get(recipe.train.optimizer, recipe.train.optimizer)


def without_effect(recipe: sftrun.Recipe, run: sftrun.RunDir, rows: int) -> Iterator[str]:
    """What the recipe asks for, and these data or this machine cannot have."""
    t = recipe.train
    if t.eval_strategy != "no" and not _validates(run):
        yield "there are no validation rows, so no validation loss is computed (train.eval_strategy)"
    elif t.early_stopping:
        yield from _never_stops(t.early_stopping.patience, _evaluations(recipe, rows))
    computes = compute.precision(recipe)
    if t.tf32 and computes != "fp32":
        yield f"tf32 is for matrices in fp32, and almost all of them are in {computes} (train.precision)"
    if t.precision == "auto" and computes == "fp32" and torch.cuda.is_available():
        yield "this GPU has no bf16, so precision auto is fp32; fp16 takes half the memory, and is faster"
    if t.optimizer.startswith("paged_") and not torch.cuda.is_available():
        yield f"without a GPU there are no pages to move: {t.optimizer} works as if it were not paged"


def _never_stops(patience: int, evaluations: int) -> Iterator[str]:
    if evaluations <= patience:
        yield (
            f"train.early_stopping cannot stop anything: there are {evaluations} evaluations, and with patience "
            f"{patience} the first one that could is number {patience + 1}; evaluate more often (train.eval_steps)"
        )


def _evaluations(recipe: sftrun.Recipe, rows: int) -> int:
    t, processes = recipe.train, ranks.world_size()
    return math.ceil(t.steps(rows, processes) / (t.eval_steps or t.epoch_steps(rows, processes)))


def _validates(run: sftrun.RunDir) -> bool:
    return (run.prepared / "val.arrow").is_file()
