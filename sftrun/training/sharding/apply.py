"""Strategies that share a model among processes: which one a recipe asks for, and that it is what was had."""

from collections.abc import Callable
from typing import Any

import torch
import transformers

import sftrun
from sftrun.training import ranks
from sftrun.training.sharding import strategies


def strategy(recipe: sftrun.Recipe) -> str | None:
    """`fsdp` or `deepspeed`; None where each process has the whole model.

    Raises UserError where there is one process only.
    """
    wanted = recipe.launch.strategy
    if wanted not in strategies.SHARING:
        return None
    if ranks.size() == 1:
        message, hint = strategies.alone(wanted), "use auto, or more processes"
        raise sftrun.UserError(sftrun.Problem(message, path=strategies.STRATEGY, hint=hint))
    return wanted


def check_start(strategy: str | None, start: Any) -> None:
    """Raises UserError for a checkpoint that these processes cannot go on from."""
    if strategy != "deepspeed" or start is None or start.finished:
        return
    before = sum(name.startswith("rng_state_") for name in start.files)
    if before != ranks.size():
        message = f"the parts of {start.folder} are of {before} processes, and there are {ranks.size()}"
        hint = f"DeepSpeed goes on with as many as before: launch.processes × launch.nodes = {before}"
        raise sftrun.UserError(sftrun.Problem(message, path=("launch", "processes"), hint=hint))


def trainer(strategy: str | None, kind: type) -> Any:
    """A kind of trainer, for this strategy."""
    if strategy == "fsdp":
        from sftrun.training.sharding.fsdp import Fsdp

        return type("FsdpTrainer", (Fsdp, kind), {})
    if strategy == "deepspeed":
        from sftrun.training.sharding.deepspeed import DeepSpeed

        return type("DeepSpeedTrainer", (DeepSpeed, kind), {})
    return kind


def deepspeed_config(recipe: sftrun.Recipe, precision: str) -> dict[str, Any] | None:
    """DeepSpeed's settings; None for other strategies."""
    if recipe.launch.strategy != "deepspeed":
        return None
    from sftrun.training.sharding import deepspeed

    return deepspeed.config(recipe, ranks.size(), precision)


def whole_weights(trainer: Any) -> dict[str, torch.Tensor] | None:
    """The trained weights, gathered in the first process; None where they are whole as they are."""
    return trainer.whole_weights() if hasattr(trainer, "whole_weights") else None


class Checks(transformers.TrainerCallback):  # type: ignore[misc]
    """Before the first step: that the model is sharded as was asked, and what else is to be shown on it."""

    def __init__(self, trainer: Any, check: Callable[[Any], None] | None) -> None:
        self.trainer, self.check = trainer, check

    def on_train_begin(self, args: Any, state: Any, control: Any, **more: Any) -> None:
        self.trainer.check_shards()
        if self.check:
            self.check(self.trainer.model)
