"""Trains with trl's SFTTrainer on prepared samples; their ids and labels reach the model unchanged."""

import functools
from typing import Any

import datasets
import torch
import transformers
from trl import SFTConfig

import sftrun
from sftrun.training import compute, ranks, saved, settings
from sftrun.training.keeper import Keeper
from sftrun.training.model import fused, head, isolation, load, switches
from sftrun.training.model.adapter import Adapter, attach
from sftrun.training.rows import PackedRows, rows_of
from sftrun.training.sft_trainer import Trainer
from sftrun.training.sharding import apply
from sftrun.training.sharding.empty import loads_weights

transformers.logging.set_verbosity_warning()
datasets.disable_progress_bars()


def train(work: sftrun.kinds.Training, quantisation: dict[str, Any] | None = None) -> None:
    """Trains, from the last complete checkpoint if there is one, and writes `model/`.

    `quantisation` has the options for quantising the frozen base of an adapter. Raises UserError for a loss that is not
    finite, and Interrupted if a signal has asked for a checkpoint.
    """
    recipe, run, emit = work.recipe, work.run, work.emit
    switches.check_switches(recipe)
    ranks.init(recipe)
    keeper = Keeper(recipe, run, emit)
    rows = rows_of(recipe, run)
    transformers.set_seed(recipe.seed)
    strategy = apply.resolve_strategy(recipe)
    apply.check_resume(strategy, keeper.start)
    # on the CPU: a GPU that has room for a shard may have none for the whole model
    device = torch.device("cpu") if strategy and not quantisation else None
    empty = not loads_weights(strategy, recipe, quantisation)
    model = load.load_base(recipe, quantisation, device, empty)
    used = switches.apply_switches(model, recipe, emit)
    packed = isinstance(rows, PackedRows)
    if packed and not strategy:
        isolation.check_isolation(model, compute.precision(recipe))
    adapter = None if recipe.tuning.mode == "full" else attach(model, recipe, run, emit, empty)
    trainer = apply.trainer_class(strategy, Trainer)(
        keeper,
        rows,
        head.score,
        model=adapter.model if adapter else model,
        args=ranks.use_one_gpu(arguments(recipe, run, len(rows))),
    )
    if adapter:
        adapter.restore()
    head.patch_forward(trainer.model, fused.load_kernel(trainer.model, recipe), parts=strategy is None)
    if strategy:
        check = functools.partial(isolation.check_isolation, precision=compute.precision(recipe)) if packed else None
        trainer.add_callback(apply.StartChecks(trainer, check))
    keeper.train(trainer, functools.partial(_save, trainer, adapter, work, quantisation))
    if ranks.is_first():
        run.add_facts("train", used=used, parameters=saved.count(trainer.model))
    ranks.finish()


def _save(
    trainer: Any,
    adapter: Adapter | None,
    work: sftrun.kinds.Training,
    quantisation: dict[str, Any] | None,
) -> None:
    weights = apply.gather_weights(trainer)
    if ranks.is_first():
        write = adapter.save if adapter else functools.partial(saved.write_in_base_dtype, trainer.model, work)
        saved.save(trainer.model, functools.partial(write, state_dict=weights), work.recipe, work.run, quantisation)


def arguments(recipe: sftrun.Recipe, run: sftrun.RunDir, rows: int) -> SFTConfig:
    """Returns the settings of the trainer; every setting that a recipe decides is explicit."""
    t = recipe.train
    return SFTConfig(
        **settings.trainer_settings(recipe, run, rows),
        activation_offloading=t.activation_offload,
        # copy a batch to the GPU while it still computes the previous one
        accelerator_config={"non_blocking": torch.cuda.is_available()},
        tf32=t.tf32 or None,  # None keeps torch's default; False would also stop parts of torch from enabling it
        deepspeed=apply.deepspeed_config(recipe, compute.precision(recipe)),
        # needed for experts that no token chose; else DDP would also change the order of its sums after the first step,
        # and a resumed run of three or more processes would have other weights. It costs a walk of the graph each step.
        ddp_find_unused_parameters=True,
        average_tokens_across_devices=True,  # else a step would depend on the split of rows among ranks
    )
