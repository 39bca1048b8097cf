"""What strategies that share a model among processes cannot do, as far as a recipe alone shows it."""

from collections.abc import Iterator

import sftrun

SHARING = ("fsdp", "deepspeed")
STRATEGY, STAGE = ("launch", "strategy"), ("launch", "zero_stage")
FSDP_OPTIMIZERS = ("adamw", "sgd")  # those of torch; bitsandbytes and transformers' adafactor know no DTensor
WHOLE_STAGE = 2  # of ZeRO: each process has all weights


def limits(recipe: sftrun.Recipe) -> Iterator[sftrun.Problem]:
    """Combinations with the rest of the recipe that do not work, or would be without effect."""
    launch = recipe.launch
    if launch.strategy != "deepspeed" and launch.zero_stage == WHOLE_STAGE:
        message = "zero_stage is an option of DeepSpeed, without effect on other strategies"
        yield sftrun.Problem(message, path=STAGE, hint="write strategy: deepspeed, or leave it out")
    if launch.strategy not in SHARING:
        return
    if launch.processes == 1 and launch.nodes == 1:
        yield sftrun.Problem(alone(launch.strategy), path=STRATEGY, hint="use auto, or more processes")
    if recipe.train.precision == "fp16":
        message = f"fp16 does not go with {launch.strategy} here: its loss is not scaled"
        yield sftrun.Problem(message, path=("train", "precision"), hint="use bf16, or auto")
    for name, wanted in (("cross_entropy", "torch"), ("compile", False), ("activation_offload", False)):
        if getattr(recipe.train, name) != wanted:
            message = f"train.{name} works on whole weights, and {launch.strategy} shares them among processes"
            yield sftrun.Problem(message, path=("train", name), hint="leave it out, or use strategy: ddp")
    yield from _optimizer(recipe)


def alone(strategy: str) -> str:
    """The problem of one process that shares with none."""
    return f"{strategy} shares a model among processes, and there is only one"


def _optimizer(recipe: sftrun.Recipe) -> Iterator[sftrun.Problem]:
    name, strategy = recipe.train.optimizer, recipe.launch.strategy
    reason = None
    if strategy == "fsdp" and name not in FSDP_OPTIMIZERS:
        reason = f"{name} cannot compute with weights that fsdp has sharded"
    elif name == "adafactor":
        reason = "adafactor keeps means over rows and columns of a weight, and DeepSpeed lays all weights end to end"
    elif name.startswith("paged_"):
        reason = f"{name} moves to the CPU a state that DeepSpeed keeps and shares itself"
    if reason:
        hint = "use adamw, whose state is shared among the processes"
        yield sftrun.Problem(reason, path=("train", "optimizer"), hint=hint)


def quantised(recipe: sftrun.Recipe, bits: int, storage: str) -> Iterator[sftrun.Problem]:
    """What they cannot do with a base that bitsandbytes holds."""
    launch = recipe.launch
    if launch.strategy == "fsdp" and bits == 8:
        message = "a base in 8 bits loses its scales when fsdp shards it"
        yield sftrun.Problem(message, path=STRATEGY, hint="use tuning.mode qlora, whose base is in 4 bits, or ddp")
    elif launch.strategy == "fsdp" and storage in ("fp16", "fp32") and recipe.train.precision != "fp32":
        message = f"4-bit weights that lie in memory as {storage} are lost where fsdp casts weights to bf16"
        path = ("backend", "with", "storage_dtype")
        yield sftrun.Problem(message, path=path, hint="use uint8 or bf16, or train.precision: fp32")
    elif launch.strategy == "deepspeed":
        message = f"DeepSpeed casts all weights to the precision of the computation, which {bits} bits do not survive"
        yield sftrun.Problem(message, path=STRATEGY, hint="use backend: hf, or fsdp with tuning.mode qlora")


def sharing(recipe: sftrun.Recipe) -> int:
    """Processes that share the model: all of them, or 1 where each has it whole."""
    launch = recipe.launch
    if launch.strategy not in SHARING:
        return 1
    here = max(sftrun.gpu_count(), 1) if launch.processes == "auto" else launch.processes
    return here * launch.nodes


def note(recipe: sftrun.Recipe) -> str | None:
    """What a reader of an estimate has to know of the strategy."""
    strategy, count = recipe.launch.strategy, sharing(recipe)
    if strategy not in SHARING:
        return None
    if count == 1:
        return f"{alone(strategy)}: memory is that of a process with the whole model; set launch.processes"
    return f"memory is that of one of {count} processes, which share the model by {strategy}"


def ready(recipe: sftrun.Recipe) -> Iterator[sftrun.Problem]:
    """What is missing on this machine."""
    if recipe.launch.strategy == "deepspeed":
        yield from sftrun.missing_packages("deepspeed", extra="deepspeed", path=STRATEGY, why="strategy deepspeed")
