"""Backend `hf`: transformers and trl's SFTTrainer, with peft for adapters."""

from collections.abc import Iterable, Iterator
from importlib.util import find_spec

import sftrun
from sftrun.training import limits
from sftrun.training.sharding import strategies

KERNELS = {
    "liger": "liger_kernel",
    "cut-cross-entropy": "cut_cross_entropy",
    "flash-attn": "flash_attn",
    "hub": "kernels",
}


@sftrun.hookimpl
def register_backends(register: sftrun.Register) -> None:
    register("hf", Hf)


class Hf:
    """Full or LoRA tuning with transformers, trl and peft."""

    distributed = True
    honours = limits.TRAINER_KEYS | limits.MODEL_KEYS

    def check_recipe(self, recipe: sftrun.Recipe) -> Iterator[sftrun.Problem]:
        yield from check_trainer_recipe(recipe)
        if recipe.tuning.mode == "qlora":
            message = "tuning.mode qlora needs a base in 4 bits, and the backend hf keeps it as it is"
            yield sftrun.Problem(message, path=("tuning", "mode"), hint="write backend: bnb, or use tuning.mode lora")
        elif recipe.tuning.lora.init == "loftq":
            message = "init loftq starts from what 4 bits have lost, and the backend hf loses nothing"
            hint = "use pissa, or backend: bnb with tuning.mode qlora"
            yield sftrun.Problem(message, path=("tuning", "lora", "init"), hint=hint)

    def check_machine(self, recipe: sftrun.Recipe) -> Iterable[sftrun.Problem]:
        yield from sftrun.missing_packages(*limits.MODULES, extra="train", path=("backend",), why="the backend hf")
        name = recipe.train.optimizer
        if name.startswith("paged_") or name.endswith("_8bit"):
            yield from sftrun.missing_packages(
                "bitsandbytes", extra="bnb", path=("train", "optimizer"), why=f"optimizer {name}"
            )
        yield from missing_kernels(recipe)
        yield from strategies.missing_packages(recipe)

    def check_prepared(self, recipe: sftrun.Recipe, run: sftrun.RunDir) -> Iterable[sftrun.Problem]:
        return limits.check_prepared(recipe, run)

    def train(self, work: sftrun.kinds.Training) -> None:
        from sftrun.training import train

        train.train(work)

    def load(self, work: sftrun.kinds.Loading) -> sftrun.kinds.Model:
        from sftrun.training.model import load

        return load.load_model(work)

    def estimate(self, work: sftrun.kinds.Estimating) -> sftrun.types.Footprint:
        from sftrun.training.memory import estimate

        return estimate.estimate(work.recipe, work.training, work.evaluation)


def check_trainer_recipe(recipe: sftrun.Recipe) -> Iterator[sftrun.Problem]:
    """Yields problems of a recipe for any backend on transformers' trainer and peft."""
    yield from limits.check_recipe(recipe)
    yield from strategies.check_recipe(recipe)
    if recipe.tuning.mode != "full":
        yield from _check_adapter(recipe)


def missing_kernels(recipe: sftrun.Recipe) -> Iterator[sftrun.Problem]:
    """Yields a problem for each package of kernels that a recipe needs and that is not installed."""
    train = recipe.train
    wanted = {"cross_entropy": KERNELS.get(train.cross_entropy), "attention": KERNELS.get(train.attention)}
    for key, module in wanted.items():
        if module and find_spec(module) is None:
            package = module.replace("_", "-")
            message = f"{key} {getattr(train, key)} needs the package {package}, which is not installed"
            yield sftrun.Problem(message, path=("train", key), hint=f"pip install {package}, on a machine with a GPU")


def _check_adapter(recipe: sftrun.Recipe) -> Iterator[sftrun.Problem]:
    lora, path = recipe.tuning.lora, ("tuning", "lora")
    modules = lora.target_modules
    if isinstance(modules, list) and ("lm_head" in modules or not modules):
        reason = "must name at least one module" if not modules else "cannot hold lm_head: trl would not train it"
        yield sftrun.Problem(f"target_modules {reason}", path=(*path, "target_modules"))
    twice = sorted(set(modules) & set(lora.modules_to_save)) if isinstance(modules, list) else []
    if twice:
        message = f"{', '.join(twice)}: trained in full, so there is nothing for an adapter to do"
        yield sftrun.Problem(message, path=(*path, "modules_to_save"), hint="name each module once")
    if lora.dora and lora.init == "loftq":
        message = "dora measures the base's weights before loftq has added to them what 4 bits have lost"
        yield sftrun.Problem(message, path=(*path, "dora"), hint="use init: default, or leave out dora")
