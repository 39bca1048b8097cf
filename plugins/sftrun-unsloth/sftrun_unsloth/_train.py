"""Trains with unsloth's model and trainer on prepared samples, whose ids and labels neither may touch."""

from importlib.metadata import version
from typing import Any

from sftrun_unsloth._first import FastLanguageModel  # isort: skip

import datasets
import transformers
from trl import SFTConfig

import sftrun
from sftrun.training import compute, saved, settings, weights
from sftrun.training.keeper import Keeper
from sftrun.training.rows import rows_of
from sftrun_unsloth import _model
from sftrun_unsloth._trainer import Trainer

transformers.logging.set_verbosity_warning()
datasets.disable_progress_bars()


def train(work: sftrun.kinds.Training) -> None:
    """Trains, from the last complete checkpoint if there is one, and writes `model/`.

    Raises UserError for a loss that is not finite, or not the loss of the prepared labels, and Interrupted if a signal
    has asked for a checkpoint.
    """
    recipe, run = work.recipe, work.run
    model = adapted(_model.load_base(recipe), recipe)
    trainer = make_trainer(model, work)
    write, quantisation = trainer.model.save_pretrained, _model.quantisation(recipe)
    trainer.keeper.train(trainer, lambda: saved.save(trainer.model, write, recipe, run, quantisation))
    run.add_facts("train", parameters=saved.count(trainer.model), unsloth=_versions())


def adapted(model: Any, recipe: sftrun.Recipe) -> Any:
    """Returns the base with a new adapter, or as it is in full tuning."""
    transformers.set_seed(recipe.seed)
    if recipe.tuning.mode == "full":
        return model
    lora = recipe.tuning.lora
    try:
        return FastLanguageModel.get_peft_model(
            model,
            r=lora.r,
            lora_alpha=lora.alpha,
            lora_dropout=lora.dropout,
            target_modules=lora.target_modules,
            use_rslora=lora.rslora,
            init_lora_weights="gaussian" if lora.init == "gaussian" else True,
            use_gradient_checkpointing=_model.checkpointing(recipe),
            random_state=recipe.seed,
            max_seq_length=recipe.model.max_seq_len,
            **({"use_dora": True} if lora.dora else {}),
        )
    except (ValueError, TypeError) as error:
        message = f"unsloth cannot make this adapter: {str(error).splitlines()[0]}"
        raise sftrun.UserError(sftrun.Problem(message, path=("tuning", "lora"))) from error


def make_trainer(model: Any, work: sftrun.kinds.Training) -> Trainer:
    """Returns the trainer of a run, for its keeper to start."""
    recipe, run = work.recipe, work.run
    rows = rows_of(recipe, run)
    adapter = {} if recipe.tuning.mode == "full" else weights.copy_trained(model)
    keeper = Keeper(recipe, run, work.emit)
    trainer = Trainer(keeper, rows, _model.score, model=model, args=arguments(recipe, run, len(rows)))
    weights.restore(trainer.model, adapter)
    return trainer


def arguments(recipe: sftrun.Recipe, run: sftrun.RunDir, rows: int) -> SFTConfig:
    """Returns every setting of the trainer that a recipe decides, none left to its defaults.

    Raises UserError if unsloth has replaced one; on a CPU it does so silently.
    """
    precision = compute.precision(recipe)
    config = SFTConfig(**settings.trainer_settings(recipe, run, rows), padding_free=False)
    if (config.bf16, config.fp16) != (precision == "bf16", precision == "fp16"):
        message = f"unsloth does not train in {precision} on this machine: it would silently use another precision"
        raise sftrun.UserError(sftrun.Problem(message, path=("train", "precision"), hint="use fp32"))
    if getattr(config.optim, "value", config.optim) != settings.optimizer(recipe):
        message = f"unsloth would silently use another optimizer than {recipe.train.optimizer}"
        raise sftrun.UserError(sftrun.Problem(message, path=("train", "optimizer"), hint="use adamw"))
    return config


def _versions() -> dict[str, str]:
    return {name: version(name) for name in ("unsloth", "unsloth_zoo")}
