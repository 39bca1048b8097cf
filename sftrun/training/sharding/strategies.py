"""Recipe checks for strategies that share a model among processes; none of them imports torch."""

from collections.abc import Iterator

import sftrun

SHARDED_STRATEGIES = ("fsdp", "deepspeed")
STRATEGY_PATH = ("launch", "strategy")
STAGE_PATH = ("launch", "zero_stage")
FSDP_OPTIMIZERS = ("adamw", "sgd")  # from torch; bitsandbytes and transformers' adafactor do not support DTensor
WHOLE_WEIGHTS_STAGE = 2  # the ZeRO stage in which each process has all weights


def check_recipe(recipe: sftrun.Recipe) -> Iterator[sftrun.Problem]:
    """Yields combinations with other keys that fail, or that would have no effect."""
    launch = recipe.launch
    if launch.strategy != "deepspeed" and launch.zero_stage == WHOLE_WEIGHTS_STAGE:
        message = "zero_stage is an option of DeepSpeed and has no effect on other strategies"
        yield sftrun.Problem(message, path=STAGE_PATH, hint="write strategy: deepspeed, or leave it out")
    if launch.strategy not in SHARDED_STRATEGIES:
        return
    if launch.processes == 1 and launch.nodes == 1:
        message = single_process_message(launch.strategy)
        yield sftrun.Problem(message, path=STRATEGY_PATH, hint="use auto, or more processes")
    if recipe.train.precision == "fp16":
        message = f"fp16 does not work with {launch.strategy}: the loss is not scaled"
        yield sftrun.Problem(message, path=("train", "precision"), hint="use bf16, or auto")
    for name, wanted in (("cross_entropy", "torch"), ("compile", False), ("activation_offload", False)):
        if getattr(recipe.train, name) != wanted:
            message = f"train.{name} needs whole weights, and {launch.strategy} shares them among processes"
            yield sftrun.Problem(message, path=("train", name), hint="leave it out, or use strategy: ddp")
    yield from _optimizer(recipe)


def single_process_message(strategy: str) -> str:
    """Returns the message for a sharding strategy with a single process."""
    return f"{strategy} shares a model among processes, and there is only one"


def _optimizer(recipe: sftrun.Recipe) -> Iterator[sftrun.Problem]:
    name, strategy = recipe.train.optimizer, recipe.launch.strategy
    reason = None
    if strategy == "fsdp" and name not in FSDP_OPTIMIZERS:
        reason = f"{name} cannot compute with weights that fsdp has sharded"
    elif name == "adafactor":
        reason = "adafactor keeps means over rows and columns of a weight, and DeepSpeed flattens all weights"
    elif name.startswith("paged_"):
        reason = f"{name} moves its state to the CPU, and DeepSpeed manages that state itself"
    if reason:
        hint = "use adamw, whose state is shared among the processes"
        yield sftrun.Problem(reason, path=("train", "optimizer"), hint=hint)


def check_quantised(recipe: sftrun.Recipe, bits: int, storage: str) -> Iterator[sftrun.Problem]:
    """Yields combinations of a strategy and a quantised base that fail."""
    launch = recipe.launch
    if launch.strategy == "fsdp" and bits == 8:
        message = "a base in 8 bits loses its scales when fsdp shards it"
        yield sftrun.Problem(message, path=STRATEGY_PATH, hint="use tuning.mode qlora, whose base is in 4 bits, or ddp")
    elif launch.strategy == "fsdp" and storage in ("fp16", "fp32") and recipe.train.precision != "fp32":
        message = f"4-bit weights stored as {storage} are lost when fsdp casts weights to bf16"
        path = ("backend", "with", "storage_dtype")
        yield sftrun.Problem(message, path=path, hint="use uint8 or bf16, or train.precision: fp32")
    elif launch.strategy == "deepspeed":
        message = f"DeepSpeed casts all weights to the precision of the computation, which destroys {bits}-bit weights"
        yield sftrun.Problem(message, path=STRATEGY_PATH, hint="use backend: hf, or fsdp with tuning.mode qlora")


def sharing_processes(recipe: sftrun.Recipe) -> int:
    """Returns the number of processes that share the model; 1 if each process has the whole model."""
    launch = recipe.launch
    if launch.strategy not in SHARDED_STRATEGIES:
        return 1
    per_node = max(sftrun.gpu_count(), 1) if launch.processes == "auto" else launch.processes
    return per_node * launch.nodes


def estimate_note(recipe: sftrun.Recipe) -> str | None:
    """Returns the note on the strategy for readers of an estimate, if there is one."""
    strategy, count = recipe.launch.strategy, sharing_processes(recipe)
    if strategy not in SHARDED_STRATEGIES:
        return None
    if count == 1:
        message = single_process_message(strategy)
        return f"{message}: memory is for a process with the whole model; set launch.processes"
    return f"memory is for one of {count} processes, which share the model by {strategy}"


def missing_packages(recipe: sftrun.Recipe) -> Iterator[sftrun.Problem]:
    """Yields a problem if the strategy's package is not installed."""
    if recipe.launch.strategy == "deepspeed":
        yield from sftrun.missing_packages("deepspeed", extra="deepspeed", path=STRATEGY_PATH, why="strategy deepspeed")
