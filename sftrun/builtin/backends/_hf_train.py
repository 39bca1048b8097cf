"""Trains with trl's SFTTrainer on prepared samples, whose ids and labels it must not touch."""

import functools
import json
import math
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import datasets
import torch
import transformers
from trl import SFTConfig

import sftrun
from sftrun.builtin.backends import (
    _adapter,
    _batches,
    _checkpoints,
    _fused,
    _head,
    _hf_model,
    _isolation,
    _ranks,
    _rows,
    _sharding,
    _switches,
)
from sftrun.builtin.backends._hf_trainer import Trainer
from sftrun.builtin.backends._keeper import Keeper

transformers.logging.set_verbosity_warning()
datasets.disable_progress_bars()

OPTIMIZERS = {"adamw": "adamw_torch_fused"}  # the others have the names that transformers gives them
SCHEDULERS = {"constant": "constant_with_warmup", "linear": "linear", "cosine": "cosine"}
LEARNING_RATES = {"full": 1e-5, "lora": 2e-4, "qlora": 2e-4}


def train(recipe: sftrun.Recipe, path: Path, emit: sftrun.Emit, quantisation: dict[str, Any] | None = None) -> None:
    """Trains, on from the last whole checkpoint if there is one, and leaves `model/`.

    `quantisation` says how the frozen base of an adapter is held.
    Raises UserError for a loss that is not finite, and Interrupted where a signal has asked for a checkpoint.
    """
    run = sftrun.RunDir(path)
    _switches.check(recipe)
    _ranks.join(recipe)
    keeper = Keeper(recipe, run, emit)
    samples = {split: _dataset(run, split) for split in ("train", "val") if _file(run, split).is_file()}
    rows = _rows.of(recipe, run)
    transformers.set_seed(recipe.seed)
    strategy = _sharding.strategy(recipe)
    _sharding.check_start(strategy, keeper.start)
    # a model that is to be shared may not fit where its parts do
    where = torch.device("cpu") if strategy and not quantisation else None
    model = _hf_model.load_base(recipe, quantisation, where)
    used = _switches.give(model, recipe, emit)
    packed = isinstance(rows, _rows.PackedRows)
    if packed and not strategy:
        _isolation.check(model, _hf_model.precision(recipe))
    tokens = transformers.AutoTokenizer.from_pretrained(sftrun.load_tokenizer(recipe.model).folder)
    _check_tokenizer(tokens, run, emit)
    for message in _without_effect(recipe, "val" in samples):
        emit({"event": "warning", "message": message})
    adapter = None if recipe.tuning.mode == "full" else _adapter.attach(model, recipe, run, emit)
    trainer = _sharding.trainer(strategy, Trainer)(
        emit,
        rows,
        keeper,
        sort=recipe.train.group_by_length,
        callbacks=keeper.callbacks(),
        model=adapter.model if adapter else model,
        args=_ranks.one_gpu(arguments(recipe, run, len(rows))),
        data_collator=_batches.collator(rows, _pad_id(tokens)),
        train_dataset=samples["train"],
        eval_dataset=samples.get("val"),
        processing_class=tokens,
    )
    if adapter:
        adapter.restore()
    _head.add(trainer.model, _fused.kernel(trainer.model, recipe), parts=strategy is None)
    if strategy:
        check = functools.partial(_isolation.check, precision=_hf_model.precision(recipe)) if packed else None
        trainer.add_callback(_sharding.Checks(trainer, check))
    keeper.train(trainer)
    weights = _sharding.whole_weights(trainer)
    if _ranks.first():
        with _checkpoints.room_for("the model", run.checkpoints):
            write = functools.partial(adapter.save if adapter else trainer.model.save_pretrained, state_dict=weights)
            _save(trainer.model, write, recipe, run, quantisation)
        run.merge_json("lock.json", {"used": used, "parameters": _sharding.count(trainer.model)})
    _ranks.leave()


def arguments(recipe: sftrun.Recipe, run: sftrun.RunDir, rows: int) -> SFTConfig:
    """Every setting of the trainer that a recipe decides, none left to its defaults."""
    t = recipe.train
    precision = _hf_model.precision(recipe)
    steps = total_steps(recipe, rows)
    evaluates = (run.prepared / "val.arrow").is_file()
    return SFTConfig(
        output_dir=str(run.checkpoints),
        num_train_epochs=t.epochs,
        max_steps=steps,
        learning_rate=LEARNING_RATES[recipe.tuning.mode] if t.learning_rate is None else t.learning_rate,
        lr_scheduler_type=SCHEDULERS[t.scheduler],
        warmup_steps=math.ceil(t.warmup * steps) if t.warmup < 1 else int(t.warmup),
        weight_decay=t.weight_decay,
        per_device_train_batch_size=t.micro_batch,
        per_device_eval_batch_size=t.eval_batch_size,
        gradient_accumulation_steps=t.grad_accum,
        max_grad_norm=t.max_grad_norm,
        gradient_checkpointing=t.gradient_checkpointing,
        activation_offloading=t.activation_offload,
        tf32=t.tf32 or None,  # off as torch has it: set to off, parts of torch can no longer ask for it
        bf16=precision == "bf16",
        fp16=precision == "fp16",
        optim=OPTIMIZERS.get(t.optimizer, t.optimizer),
        adam_beta1=t.adam_beta1,
        adam_beta2=t.adam_beta2,
        adam_epsilon=t.adam_epsilon,
        eval_strategy=t.eval_strategy if evaluates else "no",
        eval_steps=t.eval_steps,
        save_strategy=t.save_strategy,
        save_steps=t.save_steps or 500,
        save_total_limit=t.save_total_limit,
        logging_steps=t.logging_steps,
        logging_nan_inf_filter=False,  # a loss that is not finite must be seen, not replaced
        dataloader_num_workers=t.dataloader_workers,
        dataloader_prefetch_factor=t.dataloader_prefetch,
        # a batch goes to the GPU while that still works on the one before
        accelerator_config={"non_blocking": torch.cuda.is_available()},
        seed=recipe.seed,
        data_seed=recipe.seed,
        report_to=[],  # TensorBoard's callback comes from the keeper
        disable_tqdm=True,
        use_cpu=not torch.cuda.is_available(),
        deepspeed=_sharding.deepspeed_config(recipe, precision),
        packing=False,
        max_length=None,
        # for experts that no token has chosen; and gradients are added in the same order after a resume
        ddp_find_unused_parameters=True,
        average_tokens_across_devices=True,  # else a step would depend on which process has which rows
        dataset_kwargs={"skip_prepare_dataset": True},
    )


def total_steps(recipe: sftrun.Recipe, rows: int) -> int:
    """Optimizer steps of a run: the epochs' worth, or max_steps where that is fewer."""
    t = recipe.train
    an_epoch = math.ceil(math.ceil(rows / (t.micro_batch * _ranks.size())) / t.grad_accum)
    return min(math.ceil(t.epochs * an_epoch), t.max_steps or math.inf)  # type: ignore[return-value]


def _without_effect(recipe: sftrun.Recipe, validates: bool) -> Iterator[str]:
    """What the recipe asks for, and these data or this machine cannot have."""
    if recipe.train.eval_strategy != "no" and not validates:
        yield "there are no validation rows, so no validation loss is computed (train.eval_strategy)"
    computes = _hf_model.precision(recipe)
    if recipe.train.tf32 and computes != "fp32":
        yield f"tf32 is for matrices in fp32, and almost all of them are in {computes} (train.precision)"
    if recipe.train.precision == "auto" and computes == "fp32" and torch.cuda.is_available():
        yield "this GPU has no bf16, so precision auto is fp32; fp16 takes half the memory, and is faster"
    if recipe.train.optimizer.startswith("paged_") and not torch.cuda.is_available():
        yield f"without a GPU there are no pages to move: {recipe.train.optimizer} works as if it were not paged"


def _file(run: sftrun.RunDir, split: str) -> Path:
    return run.prepared / f"{split}.arrow"


def _dataset(run: sftrun.RunDir, split: str) -> datasets.Dataset:
    return datasets.Dataset.from_file(str(_file(run, split))).remove_columns("origin")


def _pad_id(tokens: Any) -> int:
    return int(tokens.pad_token_id if tokens.pad_token_id is not None else tokens.eos_token_id)


def _check_tokenizer(tokens: Any, run: sftrun.RunDir, emit: sftrun.Emit) -> None:
    """Warns when transformers reads these rows as other ids than the tokenizer.json that prepared them."""
    examples = run.read_json("prepared/proof.json")["splits"]["train"]["examples"]
    for example, sample in zip(examples, sftrun.read_samples(run.prepared / "train.arrow"), strict=False):
        text = "".join(piece for piece, _ in example["pieces"])
        if tokens(text, add_special_tokens=False)["input_ids"] != sample.ids:
            message = f"transformers' tokenizer reads {example['origin']} as other ids than tokenizer.json does"
            emit({"event": "warning", "message": message})
            return


def _save(
    model: Any,
    write: Callable[[Path], None],
    recipe: sftrun.Recipe,
    run: sftrun.RunDir,
    quantisation: dict[str, Any] | None,
) -> None:
    """Writes `model/`: weights or adapter, tokenizer and template; whole or not at all."""
    making = run.path / ".model"
    shutil.rmtree(making, ignore_errors=True)
    model.generation_config.eos_token_id = _hf_model.stop_ids(run, model) or None
    write(making)
    sftrun.load_tokenizer(recipe.model).save(making)
    if (making / "adapter_config.json").is_file():
        location = _hf_model.base_location(recipe)
        base: dict[str, Any] = {"name": recipe.model.name, "revision": recipe.model.revision}
        base |= {"weights": _hf_model.weights_hash(location), "quantisation": quantisation}
        (making / "base.json").write_text(json.dumps(base, indent=2) + "\n")
    shutil.rmtree(run.model, ignore_errors=True)
    making.rename(run.model)
