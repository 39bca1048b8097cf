"""Backend `hf`: transformers and trl's SFTTrainer, with peft for adapters."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Literal

import sftrun

MODULES = ("torch", "transformers", "trl", "peft", "datasets", "accelerate", "tensorboard")


@sftrun.hookimpl
def register_backends(register: sftrun.Register) -> None:
    register("hf", Hf)


class Hf:
    """Full or LoRA tuning with transformers, trl and peft."""

    def check(self, recipe: sftrun.Recipe) -> Iterator[sftrun.Problem]:
        if recipe.train.dataloader_prefetch and not recipe.train.dataloader_workers:
            message = "dataloader_prefetch needs processes that load: set train.dataloader_workers too"
            yield sftrun.Problem(message, path=("train", "dataloader_prefetch"))
        modules = recipe.tuning.lora.target_modules
        if isinstance(modules, list) and ("lm_head" in modules or not modules):
            reason = "must name at least one module" if not modules else "cannot hold lm_head: trl would not train it"
            yield sftrun.Problem(f"target_modules {reason}", path=("tuning", "lora", "target_modules"))

    def ready(self, recipe: sftrun.Recipe) -> Iterable[sftrun.Problem]:
        return sftrun.missing(*MODULES, extra="train", path=("backend",), why="the backend hf")

    def train(self, recipe: sftrun.Recipe, run: Path, emit: sftrun.Emit) -> None:
        from sftrun.builtin.backends import _hf_train

        _hf_train.train(recipe, run, emit)

    def load(self, recipe: sftrun.Recipe, run: Path, which: Literal["base", "tuned"]) -> Any:
        from sftrun.builtin.backends import _hf_model

        return _hf_model.HfModel(recipe, run, which)
