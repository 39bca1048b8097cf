"""Selects the sharding strategy of a recipe, and checks that the trainer really shards the model."""

from collections.abc import Callable
from typing import Any

import torch
import transformers

import sftrun
from sftrun.training import ranks
from sftrun.training.sharding import strategies


def resolve_strategy(recipe: sftrun.Recipe) -> str | None:
    """Returns `fsdp` or `deepspeed`; None if each process has the whole model.

    Raises UserError if there is only one process.
    """
    wanted = recipe.launch.strategy
    if wanted not in strategies.SHARDED_STRATEGIES:
        return None
    if ranks.world_size() == 1:
        message, hint = strategies.single_process_message(wanted), "use auto, or more processes"
        raise sftrun.UserError(sftrun.Problem(message, path=strategies.STRATEGY_PATH, hint=hint))
    return wanted


def check_resume(strategy: str | None, start: Any) -> None:
    """Raises UserError if this number of processes cannot resume from a checkpoint."""
    if strategy != "deepspeed" or start is None or start.finished:
        return
    before = sum(name.startswith("rng_state_") for name in start.files)
    if before != ranks.world_size():
        message = f"{start.folder} was written by {before} processes, and there are {ranks.world_size()}"
        hint = f"DeepSpeed resumes with the same number only: launch.processes × launch.nodes = {before}"
        raise sftrun.UserError(sftrun.Problem(message, path=("launch", "processes"), hint=hint))


def trainer_class(strategy: str | None, base: type) -> Any:
    """Returns the trainer class for a strategy."""
    if strategy == "fsdp":
        from sftrun.training.sharding.fsdp import Fsdp

        return type("FsdpTrainer", (Fsdp, base), {})
    if strategy == "deepspeed":
        from sftrun.training.sharding.deepspeed import DeepSpeed

        return type("DeepSpeedTrainer", (DeepSpeed, base), {})
    return base


def deepspeed_config(recipe: sftrun.Recipe, precision: str) -> dict[str, Any] | None:
    """Returns DeepSpeed's configuration; None for other strategies."""
    if recipe.launch.strategy != "deepspeed":
        return None
    from sftrun.training.sharding import deepspeed

    return deepspeed.config(recipe, ranks.world_size(), precision)


def gather_weights(trainer: Any) -> dict[str, torch.Tensor] | None:
    """Returns the whole trained weights on rank 0; None if the model is not sharded."""
    return trainer.gather_weights() if hasattr(trainer, "gather_weights") else None


class StartChecks(transformers.TrainerCallback):  # type: ignore[misc]
    """A callback that checks the sharding before the first step, and runs one more check on the sharded model."""

    def __init__(self, trainer: Any, check: Callable[[Any], None] | None) -> None:
        self.trainer = trainer
        self.check = check

    def on_train_begin(self, args: Any, state: Any, control: Any, **more: Any) -> None:
        self.trainer.check_shards()
        if self.check:
            self.check(self.trainer.model)
