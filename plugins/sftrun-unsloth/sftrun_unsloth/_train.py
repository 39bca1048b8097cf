"""Trains with unsloth's model and trainer on prepared samples, whose ids and labels neither may touch."""

import json
import math
import os
import shutil
from pathlib import Path
from typing import Any

from sftrun_unsloth._first import FastLanguageModel  # isort: skip

import datasets
import torch
import transformers
from trl import SFTConfig

import sftrun
from sftrun_unsloth import _model
from sftrun_unsloth._best import Best
from sftrun_unsloth._trainer import Padded, Trainer

transformers.logging.set_verbosity_warning()
datasets.disable_progress_bars()

OPTIMIZERS = {"adamw": "adamw_torch_fused"}  # the others have the names that transformers gives them
SCHEDULERS = {"constant": "constant_with_warmup", "linear": "linear", "cosine": "cosine"}
FULL, ADAPTER = 1e-5, 2e-4  # learning rates where the recipe gives none


def train(recipe: sftrun.Recipe, path: Path, emit: sftrun.Emit) -> None:
    """Trains and leaves `model/`; raises UserError for a loss that is not finite, or not that of our labels."""
    run = sftrun.RunDir(path)
    _begin(run, emit)
    model = adapted(_model.load_base(recipe), recipe)
    os.environ["TENSORBOARD_LOGGING_DIR"] = str(run.tensorboard)
    if recipe.train.eval_strategy != "no" and not _file(run, "val").is_file():
        message = "there are no validation rows, so no validation loss is computed (train.eval_strategy)"
        emit({"event": "warning", "message": message})
    trainer = make_trainer(model, recipe, run, emit)
    trainer.train()
    trainer.best.restore(trainer.model)
    _save(trainer.model, recipe, run)
    count = {"trained": sum(p.numel() for p in trainer.model.parameters() if p.requires_grad)}
    count["all"] = sum(p.numel() for p in trainer.model.parameters())
    run.merge_json("lock.json", {"parameters": count, "unsloth": _versions()})


def _begin(run: sftrun.RunDir, emit: sftrun.Emit) -> None:
    """Clears away what an attempt before this one has left, and says so."""
    shutil.rmtree(run.checkpoints, ignore_errors=True)
    if any(event["event"] == "step" for event in run.events()):
        shutil.rmtree(run.tensorboard, ignore_errors=True)
        emit({"event": "resumed", "step": 0, "tokens": 0, "trained_tokens": 0})
        message = "the backend unsloth does not go on from checkpoints: it trains from the start"
        emit({"event": "warning", "message": message})


def adapted(model: Any, recipe: sftrun.Recipe) -> Any:
    """The base with a new adapter, or as it is in full tuning."""
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


def make_trainer(model: Any, recipe: sftrun.Recipe, run: sftrun.RunDir, emit: sftrun.Emit) -> Trainer:
    """The trainer of a run, ready to train."""
    rows = _dataset(run, "train")
    tokens = transformers.AutoTokenizer.from_pretrained(sftrun.load_tokenizer(recipe.model).folder)
    pad = tokens.pad_token_id if tokens.pad_token_id is not None else tokens.eos_token_id
    return Trainer(
        emit,
        Best(recipe, run, emit),
        model=model,
        args=arguments(recipe, run, len(rows)),
        data_collator=Padded(int(pad)),
        train_dataset=rows,
        eval_dataset=_dataset(run, "val") if _file(run, "val").is_file() else None,
        processing_class=tokens,
    )


def arguments(recipe: sftrun.Recipe, run: sftrun.RunDir, rows: int) -> SFTConfig:
    """Every setting of the trainer that a recipe decides, none left to its defaults."""
    t = recipe.train
    precision = _model.precision(recipe)
    steps = total_steps(recipe, rows)
    default = FULL if recipe.tuning.mode == "full" else ADAPTER
    made = SFTConfig(
        output_dir=str(run.checkpoints),
        num_train_epochs=t.epochs,
        max_steps=steps,
        learning_rate=default if t.learning_rate is None else t.learning_rate,
        lr_scheduler_type=SCHEDULERS[t.scheduler],
        warmup_steps=math.ceil(t.warmup * steps) if t.warmup < 1 else int(t.warmup),
        weight_decay=t.weight_decay,
        per_device_train_batch_size=t.micro_batch,
        per_device_eval_batch_size=t.eval_batch_size,
        gradient_accumulation_steps=t.grad_accum,
        train_sampling_strategy="group_by_length" if t.group_by_length else "random",
        max_grad_norm=t.max_grad_norm,
        gradient_checkpointing=t.gradient_checkpointing,
        bf16=precision == "bf16",
        fp16=precision == "fp16",
        optim=OPTIMIZERS.get(t.optimizer, t.optimizer),
        adam_beta1=t.adam_beta1,
        adam_beta2=t.adam_beta2,
        adam_epsilon=t.adam_epsilon,
        eval_strategy=t.eval_strategy if _file(run, "val").is_file() else "no",
        eval_steps=t.eval_steps,
        save_strategy=t.save_strategy,
        save_steps=t.save_steps or 500,
        save_total_limit=t.save_total_limit,
        logging_steps=t.logging_steps,
        logging_nan_inf_filter=False,  # a loss that is not finite must be seen, not replaced
        dataloader_num_workers=t.dataloader_workers,
        dataloader_prefetch_factor=t.dataloader_prefetch,
        seed=recipe.seed,
        data_seed=recipe.seed,
        report_to=["tensorboard"],
        disable_tqdm=True,
        use_cpu=not torch.cuda.is_available(),
        packing=False,
        padding_free=False,
        max_length=None,
        dataset_kwargs={"skip_prepare_dataset": True},
    )
    _check_kept(made, recipe, precision)
    return made


def _check_kept(made: SFTConfig, recipe: sftrun.Recipe, precision: str) -> None:
    """Raises UserError where unsloth has replaced a setting; on a CPU it does so silently."""
    if (made.bf16, made.fp16) != (precision == "bf16", precision == "fp16"):
        message = f"unsloth does not train in {precision} on this machine: it would silently use another precision"
        raise sftrun.UserError(sftrun.Problem(message, path=("train", "precision"), hint="use fp32"))
    wanted = OPTIMIZERS.get(recipe.train.optimizer, recipe.train.optimizer)
    if getattr(made.optim, "value", made.optim) != wanted:
        message = f"unsloth would silently use another optimizer than {recipe.train.optimizer}"
        raise sftrun.UserError(sftrun.Problem(message, path=("train", "optimizer"), hint="use adamw"))


def total_steps(recipe: sftrun.Recipe, rows: int) -> int:
    """Optimizer steps of a run: the epochs' worth, or max_steps where that is fewer."""
    t = recipe.train
    an_epoch = math.ceil(math.ceil(rows / t.micro_batch) / t.grad_accum)
    wanted = math.ceil(t.epochs * an_epoch)
    return wanted if t.max_steps is None else min(wanted, t.max_steps)


def _file(run: sftrun.RunDir, split: str) -> Path:
    return run.prepared / f"{split}.arrow"


def _dataset(run: sftrun.RunDir, split: str) -> datasets.Dataset:
    import pyarrow.compute as pc

    rows = datasets.Dataset.from_file(str(_file(run, split))).remove_columns("origin")
    # read by the sampler that puts rows of similar lengths together; the rows themselves stay in the file
    return rows.add_column("length", pc.list_value_length(rows.data.column("input_ids")).to_numpy())


def _versions() -> dict[str, str]:
    from importlib.metadata import version

    return {name: version(name) for name in ("unsloth", "unsloth_zoo")}


def _save(model: Any, recipe: sftrun.Recipe, run: sftrun.RunDir) -> None:
    """Writes `model/`: weights or adapter, tokenizer and template; whole or not at all."""
    making = run.path / ".model"
    shutil.rmtree(making, ignore_errors=True)
    model.generation_config.eos_token_id = _model.stop_ids(run, model) or None
    model.save_pretrained(making)
    sftrun.load_tokenizer(recipe.model).save(making)
    if (making / "adapter_config.json").is_file():
        base: dict[str, Any] = {"name": recipe.model.name, "revision": recipe.model.revision}
        base |= {
            "weights": _model.weights_hash(_model.base_location(recipe)),
            "quantisation": _model.quantisation(recipe),
        }
        (making / "base.json").write_text(json.dumps(base, indent=2) + "\n")
    shutil.rmtree(run.model, ignore_errors=True)
    making.rename(run.model)
