"""Backend `bnb`: like the backend hf, with the frozen base of an adapter in 4 or 8 bits (bitsandbytes)."""

from collections.abc import Iterable, Iterator
from typing import Annotated, Any, Literal

import sftrun
from sftrun.builtin.backends import hf
from sftrun.training import limits
from sftrun.training.sharding import strategies

PATH = ("backend", "with")


class BnbOptions(sftrun.Options):
    """Quantisation of the base. `bits: 8` has none of the other options."""

    bits: Annotated[
        Literal[4, 8] | None,
        sftrun.Meta(description="Bits per weight; null for 4 in tuning.mode qlora, 8 in tuning.mode lora."),
    ] = None
    type: Annotated[
        Literal["nf4", "fp4"],
        sftrun.Meta(
            description="Format of 4-bit weights: nf4 for weights with a normal distribution, fp4 for 4-bit floats."
        ),
    ] = "nf4"
    double_quant: Annotated[
        bool, sftrun.Meta(description="Quantise the scales of 4-bit weights too; saves 0.4 bits per weight.")
    ] = True
    compute_dtype: Annotated[
        Literal["auto", "bf16", "fp16", "fp32"],
        sftrun.Meta(description="Number format that 4-bit weights are multiplied in; auto is train.precision."),
    ] = "auto"
    storage_dtype: Annotated[
        Literal["uint8", "bf16", "fp16", "fp32"],
        sftrun.Meta(
            description="Number format that 4-bit weights are stored in; FSDP can only shard them in the format of the "
            "other weights."
        ),
    ] = "uint8"


@sftrun.hookimpl
def register_backends(register: sftrun.Register) -> None:
    register("bnb", Bnb, options=BnbOptions)


class Bnb:
    """QLoRA, and LoRA on an 8-bit base, quantised by bitsandbytes; otherwise like the backend hf."""

    distributed = True
    honours = limits.TRAINER_KEYS | limits.MODEL_KEYS

    def __init__(self, options: BnbOptions) -> None:
        self.options = options

    def check_recipe(self, recipe: sftrun.Recipe) -> Iterator[sftrun.Problem]:
        yield from hf.check_trainer_recipe(recipe)
        yield from strategies.check_quantised(recipe, self.bits(recipe), self.options.storage_dtype)
        yield from self._check_mode(recipe)
        yield from self._check_unused_options(recipe)
        if recipe.tuning.lora.init in ("pissa", "olora"):
            message = f"init {recipe.tuning.lora.init} changes the weights of the base, which the backend bnb rounds"
            hint = "use loftq, which starts from what rounding has lost, or the backend hf"
            yield sftrun.Problem(message, path=("tuning", "lora", "init"), hint=hint)
        if recipe.tuning.lora.init == "loftq" and (self.bits(recipe), self.options.type) != (4, "nf4"):
            message = "init loftq is for a base in 4 bits of type nf4"
            yield sftrun.Problem(message, path=("tuning", "lora", "init"))

    def _check_mode(self, recipe: sftrun.Recipe) -> Iterator[sftrun.Problem]:
        if recipe.tuning.mode == "full":
            message = "the backend bnb holds the base in few bits, so its weights cannot be trained in full"
            hint = "use tuning.mode qlora, or the backend hf, which has the 8-bit optimizers too"
            yield sftrun.Problem(message, path=("tuning", "mode"), hint=hint)
        if recipe.tuning.mode == "lora" and self.options.bits == 4:
            message = "LoRA on a base in 4 bits is tuning.mode qlora"
            yield sftrun.Problem(message, path=("tuning", "mode"), hint="write mode: qlora, or bits: 8")

    def _check_unused_options(self, recipe: sftrun.Recipe) -> Iterator[sftrun.Problem]:
        if self.bits(recipe) == 4:
            return
        usual = BnbOptions()
        for name in ("type", "double_quant", "compute_dtype", "storage_dtype"):
            if getattr(self.options, name) != getattr(usual, name):
                message = f"{name} is an option of 4 bits, without effect on 8"
                yield sftrun.Problem(message, path=(*PATH, name), hint="leave it out, or use tuning.mode qlora")

    def check_machine(self, recipe: sftrun.Recipe) -> Iterable[sftrun.Problem]:
        yield from sftrun.missing_packages(*limits.MODULES, extra="train", path=("backend",), why="the backend bnb")
        yield from sftrun.missing_packages("bitsandbytes", extra="bnb", path=("backend",), why="the backend bnb")
        if recipe.tuning.lora.dora and self.bits(recipe) == 8 and not sftrun.gpu_count():
            # peft 0.21 moves the weights to the CPU again for their norms, and bitsandbytes then has no scales
            message = "dora on a base in 8 bits needs a GPU, and there is none"
            yield sftrun.Problem(message, path=("tuning", "lora", "dora"), hint="use tuning.mode qlora: 4 bits")
        yield from hf.missing_kernels(recipe)
        yield from strategies.missing_packages(recipe)

    def check_prepared(self, recipe: sftrun.Recipe, run: sftrun.RunDir) -> Iterable[sftrun.Problem]:
        return limits.check_prepared(recipe, run)

    def train(self, work: sftrun.kinds.Training) -> None:
        from sftrun.training import train

        train.train(work, self.quantisation(work.recipe))

    def load(self, work: sftrun.kinds.Loading) -> sftrun.kinds.Model:
        from sftrun.training.model import load

        return load.load_model(work, self.quantisation(work.recipe))

    def estimate(self, work: sftrun.kinds.Estimating) -> sftrun.types.Footprint:
        from sftrun.training.memory import estimate

        return estimate.estimate(work.recipe, work.training, work.evaluation, self.quantisation(work.recipe))

    def bits(self, recipe: sftrun.Recipe) -> int:
        """Returns the bits per weight of the base."""
        return self.options.bits or (4 if recipe.tuning.mode == "qlora" else 8)

    def quantisation(self, recipe: sftrun.Recipe) -> dict[str, Any]:
        """Returns the quantisation of the base, as `model/base.json` records it."""
        if self.bits(recipe) == 8:
            return {"bits": 8}
        names = ("type", "double_quant", "compute_dtype", "storage_dtype")
        return {"bits": 4, **{name: getattr(self.options, name) for name in names}}
