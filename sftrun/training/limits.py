"""Recipe checks shared by all backends built on transformers' Trainer; none of them imports torch."""

from collections.abc import Iterator

import sftrun

# Recipe keys that `settings`, `RunTrainer`, `Keeper` and `rows_of` act on.
TRAINER_KEYS = frozenset(
    {
        *("train.epochs", "train.max_steps", "train.learning_rate", "train.scheduler", "train.warmup"),
        *("train.weight_decay", "train.eval_batch_size", "train.grad_accum", "train.group_by_length"),
        *("train.max_grad_norm", "train.gradient_checkpointing", "train.precision", "train.optimizer"),
        *("train.adam_beta1", "train.adam_beta2", "train.adam_epsilon", "train.eval_strategy", "train.eval_steps"),
        *("train.save_strategy", "train.save_steps", "train.save_total_limit", "train.early_stopping"),
        *("train.keep_best", "train.logging_steps", "train.dataloader_workers", "train.dataloader_prefetch"),
        "tuning.mode",
    }
)
# Recipe keys that `training.model`, `training.train` and `training.sharding` act on.
MODEL_KEYS = frozenset(
    {
        *("tuning.lora.r", "tuning.lora.alpha", "tuning.lora.dropout", "tuning.lora.target_modules"),
        *("tuning.lora.modules_to_save", "tuning.lora.rslora", "tuning.lora.dora", "tuning.lora.init"),
        *(
            "train.attention",
            "train.attention_revision",
            "train.cross_entropy",
            "train.compile",
            "train.activation_offload",
            "train.tf32",
        ),
        *("launch.strategy", "launch.zero_stage", "packing.strategy"),
    }
)
FEW_ROWS = 10  # validation rows; the mean loss of fewer says little
MODULES = ("torch", "transformers", "trl", "peft", "datasets", "accelerate", "tensorboard")


def check_recipe(recipe: sftrun.Recipe) -> Iterator[sftrun.Problem]:
    """Yields problems for settings that would have no effect, or another effect than they say."""
    if recipe.train.warmup > 1 and not float(recipe.train.warmup).is_integer():
        message = f"warmup {recipe.train.warmup:g} is neither a share of all steps nor a whole number of steps"
        yield sftrun.Problem(message, path=("train", "warmup"), hint="use a share below 1, or a whole number")
    if recipe.train.dataloader_prefetch and not recipe.train.dataloader_workers:
        message = "dataloader_prefetch needs loader processes: set train.dataloader_workers too"
        yield sftrun.Problem(message, path=("train", "dataloader_prefetch"))


def check_prepared(recipe: sftrun.Recipe, run: sftrun.RunDir) -> Iterator[sftrun.Problem]:
    """Yields problems of prepared data: few validation rows, or rows longer than the model has positions for."""
    from sftrun.training import positions

    yield from check_data(recipe, run)
    yield from positions.check_positions(recipe, run)


def check_data(recipe: sftrun.Recipe, run: sftrun.RunDir) -> Iterator[sftrun.Problem]:
    """Yields problems for options that need a validation loss, if the prepared data have no validation rows."""
    wanted = {"early_stopping": recipe.train.early_stopping, "keep_best": recipe.train.keep_best}
    for name in [name for name, value in wanted.items() if value]:
        if not (run.prepared / "val.arrow").is_file():
            message = f"train.{name} needs a validation loss, and the data have no validation rows"
            yield sftrun.Problem(message, path=("train", name), hint="give the source a val split, or a val_share")
        elif (rows := run.read_json("prepared/stats.json")["val"]["rows"]) < FEW_ROWS:
            message = (
                f"train.{name} goes by the loss of {rows} validation row{'s'[: rows != 1]}, which is mostly chance"
            )
            hint = "give the source more val rows, or a larger val_share"
            yield sftrun.Problem(message, path=("train", name), hint=hint, severity="warning")
