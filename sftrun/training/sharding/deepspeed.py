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

SHARDED_MARK = "ds_tensor"  # the attribute of a weight that DeepSpeed shards
FP32_MARK = "_hp_mapping"  # the attribute of a weight whose fp32 copy DeepSpeed shards
# an operator for CPU processes of one machine; DeepSpeed would compile it before the first step
deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False


class DeepSpeed:
    """A mix-in for trainers whose model is trained by DeepSpeed's engine."""

    args: Any
    model: Any
    model_wrapped: Any

    def create_optimizer(self, *args: Any) -> Any:
        """Shards the weights first in stage 3, one by one: a GPU may be too small for the whole model."""
        settings = self.args.hf_deepspeed_config.config
        if settings["zero_optimization"]["stage"] == 3 and not _has_mark(self.model, SHARDED_MARK):
            shard(self.model, settings)
        return super().create_optimizer(*args)  # type: ignore[misc]

    def check_shards(self) -> None:
        """Raises UserError if the engine does not shard the model as the recipe says."""
        check_sharding(self.model_wrapped, self.args.hf_deepspeed_config.config["zero_optimization"]["stage"])

    def gather_weights(self) -> dict[str, torch.Tensor] | None:
        """Returns the trained weights on rank 0; every rank must call it."""
        return gather_weights(self.model)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Writes the weights of a checkpoint, for the end of training; the engine writes the state to resume from."""
        weights = self.gather_weights()
        if self.args.should_save:
            trained = weights or {name: each for name, each in self.model.named_parameters() if each.requires_grad}
            file = _file(output_dir)
            file.parent.mkdir(parents=True, exist_ok=True)
            torch.save(trained, file)

    def _load_from_checkpoint(self, folder: str, model: Any = None) -> None:
        if self.model_wrapped is self.model:  # no engine is created once training has ended
            self.model.load_state_dict(torch.load(_file(folder), weights_only=True), strict=False)
        else:
            deepspeed_load_checkpoint(self.model_wrapped, folder, load_module_strict=False)


def config(recipe: sftrun.Recipe, processes: int, precision: str) -> dict[str, Any]:
    """Returns DeepSpeed's complete configuration; optimizer and schedule stay with the trainer."""
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


def shard(model: Any, settings: dict[str, Any]) -> None:
    """Shards rank 0's model over all processes, weight by weight."""
    empty.broadcast_dtypes(model)
    if settings["bf16"]["enabled"]:
        for weight in model.parameters():  # the optimizer has its own fp32 weights
            half = torch.empty_like(weight, dtype=torch.bfloat16)
            weight.data = half.copy_(weight.data) if ranks.is_first() else half
    deepspeed.init_distributed(auto_mpi_discovery=False)
    deepspeed.zero.Init(module=model, config_dict_or_path=settings)


def check_sharding(engine: Any, stage: int) -> None:
    """Raises UserError if the engine does not shard the model over all processes at this stage."""
    if not isinstance(engine, deepspeed.DeepSpeedEngine):
        raise _sharding_error(f"it is trained by {type(engine).__name__}")
    if engine.zero_optimization_stage() != stage:
        raise _sharding_error(f"ZeRO is at stage {engine.zero_optimization_stage()}, not {stage}")
    processes = torch.distributed.get_world_size()
    if engine.dp_world_size != processes:
        raise _sharding_error(f"it is shared among {engine.dp_world_size} of {processes} processes")
    if stage == 3 and not all(hasattr(weight, SHARDED_MARK) for weight in engine.module.parameters()):
        raise _sharding_error("each process holds some weights whole")


def _sharding_error(what: str) -> sftrun.UserError:
    message = f"launch.strategy deepspeed did not shard the model: {what}"
    return sftrun.UserError(sftrun.Problem(message, path=("launch", "strategy")))


def gather_weights(model: Any) -> dict[str, torch.Tensor] | None:
    """Returns the whole trained weights on rank 0; None on other ranks, and if the model is not sharded."""
    if not _has_mark(model, SHARDED_MARK, FP32_MARK):
        return None
    gathered = {}
    twice = hasattr(model, "peft_config")  # peft asks for a tied weight under both names, transformers under one
    for name, weight in model.named_parameters(remove_duplicate=not twice):
        if weight.requires_grad:
            full = safe_get_full_fp32_param(weight)
            if torch.distributed.get_rank() == 0:
                gathered[name] = full.detach().cpu().clone()
    return gathered or None


def _has_mark(model: Any, *marks: str) -> bool:
    return any(hasattr(weight, mark) for weight in model.parameters() for mark in marks)


def _file(checkpoint: str | None) -> Path:
    return Path(checkpoint or ".") / "weights.pt"
