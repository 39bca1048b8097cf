"""DeepSpeed's ZeRO: processes share optimizer state and gradients (stage 2), and weights too (stage 3)."""

from pathlib import Path
from typing import Any

import deepspeed
import torch
from deepspeed.utils import safe_get_full_fp32_param
from transformers.integrations.deepspeed import deepspeed_load_checkpoint

import sftrun
from sftrun.training import ranks
from sftrun.training.sharding import empty

SHARED, HELD = "ds_tensor", "_hp_mapping"  # what DeepSpeed adds to a weight that it shares, or whose fp32 copy it does
# an operator for processes of one machine without a GPU, which DeepSpeed would compile before the first step
deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False


class DeepSpeed:
    """What a trainer does otherwise where its model is in the hands of DeepSpeed's engine."""

    args: Any
    model: Any
    model_wrapped: Any

    def create_optimizer(self, *args: Any) -> Any:
        """Stage 3 shares the weights first, one by one: a whole model may not fit where its parts do."""
        settings = self.args.hf_deepspeed_config.config
        if settings["zero_optimization"]["stage"] == 3 and not _has(self.model, SHARED):
            share(self.model, settings)
        return super().create_optimizer(*args)  # type: ignore[misc]

    def check_shards(self) -> None:
        """Raises UserError where the engine does not share what the recipe says among all processes."""
        check(self.model_wrapped, self.args.hf_deepspeed_config.config["zero_optimization"]["stage"])

    def whole_weights(self) -> dict[str, torch.Tensor] | None:
        """The trained weights in the memory of the first process; all processes call it together."""
        return whole(self.model)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Into a checkpoint, for the end of training; the engine writes what it goes on from."""
        weights = self.whole_weights()
        if self.args.should_save:
            given = weights or {name: each for name, each in self.model.named_parameters() if each.requires_grad}
            file = _file(output_dir)
            file.parent.mkdir(parents=True, exist_ok=True)
            torch.save(given, file)

    def _load_from_checkpoint(self, folder: str, model: Any = None) -> None:
        if self.model_wrapped is self.model:  # there is no engine where training had ended
            self.model.load_state_dict(torch.load(_file(folder), weights_only=True), strict=False)
        else:
            deepspeed_load_checkpoint(self.model_wrapped, folder, load_module_strict=False)


def config(recipe: sftrun.Recipe, processes: int, precision: str) -> dict[str, Any]:
    """DeepSpeed's configuration of a recipe, with nothing left to be filled in from elsewhere.

    Optimizer and schedule are those of the trainer, as in every other strategy.
    """
    t = recipe.train
    return {
        "train_micro_batch_size_per_gpu": t.micro_batch,
        "gradient_accumulation_steps": t.grad_accum,
        "train_batch_size": t.micro_batch * t.grad_accum * processes,
        "gradient_clipping": t.max_grad_norm,
        "bf16": {"enabled": precision == "bf16"},
        "fp16": {"enabled": False},
        "zero_optimization": {"stage": recipe.launch.zero_stage},
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "steps_per_print": 2**31,
    }


def share(model: Any, settings: dict[str, Any]) -> None:
    """Parts the first process's model among all, weight by weight."""
    empty.agree(model)
    if settings["bf16"]["enabled"]:
        for weight in model.parameters():  # the optimizer's own weights are in fp32
            half = torch.empty_like(weight, dtype=torch.bfloat16)
            weight.data = half.copy_(weight.data) if ranks.first() else half
    deepspeed.init_distributed(auto_mpi_discovery=False)
    deepspeed.zero.Init(module=model, config_dict_or_path=settings)


def check(engine: Any, stage: int) -> None:
    """Raises UserError where the engine does not share what was asked among all processes."""
    if not isinstance(engine, deepspeed.DeepSpeedEngine):
        raise _refusal(f"it is trained by {type(engine).__name__}")
    if engine.zero_optimization_stage() != stage:
        raise _refusal(f"ZeRO is at stage {engine.zero_optimization_stage()}, not {stage}")
    processes = torch.distributed.get_world_size()
    if engine.dp_world_size != processes:
        raise _refusal(f"it is shared among {engine.dp_world_size} of {processes} processes")
    if stage == 3 and not all(hasattr(weight, SHARED) for weight in engine.module.parameters()):
        raise _refusal("there are weights that each process holds whole")


def _refusal(what: str) -> sftrun.UserError:
    message = f"the model is not sharded as launch.strategy deepspeed asks: {what}"
    return sftrun.UserError(sftrun.Problem(message, path=("launch", "strategy")))


def whole(model: Any) -> dict[str, torch.Tensor] | None:
    """The weights that are trained, whole, in the first process; None in others, and where nothing is sharded."""
    if not _has(model, SHARED, HELD):
        return None
    gathered = {}
    twice = hasattr(model, "peft_config")  # peft asks for a tied weight under both names, transformers under one
    for name, weight in model.named_parameters(remove_duplicate=not twice):
        if weight.requires_grad:
            full = safe_get_full_fp32_param(weight)
            if torch.distributed.get_rank() == 0:
                gathered[name] = full.detach().cpu().clone()
    return gathered or None


def _has(model: Any, *marks: str) -> bool:
    return any(hasattr(weight, mark) for weight in model.parameters() for mark in marks)


def _file(checkpoint: str | None) -> Path:
    return Path(checkpoint or ".") / "weights.pt"
