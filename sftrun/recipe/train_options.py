"""Options of the key `train` of a recipe, and the batch and step counts that follow from them."""

import math
from typing import Annotated, Literal

from sftrun.errors import UserError
from sftrun.options import Count, Meta, Options

Strategy = Literal["no", "steps", "epoch"]
ROUNDING = 1e-9  # steps; 0.29 × 100 is a little less than 29


class EarlyStopping(Options):
    """Early stopping on the validation loss."""

    patience: Annotated[
        Count, Meta(description="Stop after this many evaluations in a row without a lower validation loss.")
    ] = 3
    threshold: Annotated[
        float, Meta(ge=0, description="How far below the lowest loss so far a loss must be to count as lower.")
    ] = 0.0


class TrainOptions(Options):
    """Hyperparameters and settings of training."""

    epochs: Annotated[float, Meta(gt=0, description="Passes over the training split.")] = 3
    max_steps: Annotated[
        Count | None, Meta(description="Stop after this many optimizer steps, even if the epochs are not over.")
    ] = None
    learning_rate: Annotated[
        Annotated[float, Meta(gt=0)] | None,
        Meta(description="Peak learning rate; null for 2e-4 with an adapter, 1e-5 in full tuning."),
    ] = None
    scheduler: Annotated[
        Literal["constant", "linear", "cosine"], Meta(description="How the learning rate falls after the warm-up.")
    ] = "cosine"
    warmup: Annotated[
        float,
        Meta(
            ge=0,
            description="Length of the warm-up: below 1 a share of all steps, rounded down, so that a short training "
            "has none; else a number of steps.",
        ),
    ] = 0.03
    weight_decay: Annotated[float, Meta(ge=0, description="Weight decay of the optimizer.")] = 0.0
    batch_size: Annotated[
        Literal["auto"] | Count,
        Meta(
            description="The micro-batch: rows (with packing, sequences) in one forward pass of one process; see "
            "effective_batch_size for the optimizer step. auto measures the largest one that fits this machine's "
            "memory, and sets grad_accum to match effective_batch_size."
        ),
    ] = 4
    effective_batch_size: Annotated[
        Count | None,
        Meta(
            description="Rows in one optimizer step, over all processes. Required by batch_size auto; otherwise it "
            "must equal batch_size × grad_accum × processes."
        ),
    ] = None
    eval_batch_size: Annotated[Count, Meta(description="Rows in one forward pass of one process in an evaluation.")] = 8
    grad_accum: Annotated[
        Count, Meta(description="Gradient accumulation: micro-batches of each process in one optimizer step.")
    ] = 1
    group_by_length: Annotated[
        bool,
        Meta(
            description="Batch rows of similar length, to save padding; a short training learns a little less from "
            "such batches. No effect on packed rows."
        ),
    ] = False
    max_grad_norm: Annotated[float, Meta(ge=0, description="Clip gradients to this norm; 0 for no limit.")] = 1.0
    on_oom: Annotated[
        Literal["error", "shrink"],
        Meta(
            description="If training runs out of memory: error stops and says what to change; shrink continues from "
            "the last checkpoint with a smaller batch_size, and the same number of rows per optimizer step."
        ),
    ] = "error"
    gradient_checkpointing: Annotated[
        bool, Meta(description="Compute activations again in the backward pass: less memory, slower.")
    ] = False
    precision: Annotated[
        Literal["auto", "bf16", "fp16", "fp32"],
        Meta(description="Number format of the computation; auto is bf16 on a GPU that supports it, else fp32."),
    ] = "auto"
    attention: Annotated[
        Literal["auto", "eager", "sdpa", "flash-attn", "flex", "hub"],
        Meta(
            description="Implementation of attention; auto is flash-attn if it is installed and works, else sdpa. hub "
            "is native code from the Hub, kernels-community/flash-attn2, of attention_revision (package kernels)."
        ),
    ] = "auto"
    attention_revision: Annotated[
        str | None, Meta(description="With attention hub: the full commit of the kernel's repository, whose code runs.")
    ] = None
    cross_entropy: Annotated[
        Literal["torch", "liger", "cut-cross-entropy"],
        Meta(
            description="Implementation of the head and the loss, on trained positions only: torch works everywhere "
            "and for every model; the others are GPU kernels that never store the logits (packages liger-kernel, "
            "cut-cross-entropy)."
        ),
    ] = "torch"
    compile: Annotated[bool, Meta(description="Compile the layers with torch.compile: slow to start, then faster.")] = (
        False
    )
    activation_offload: Annotated[
        bool, Meta(description="Keep activations in CPU memory until the backward pass needs them; GPU only.")
    ] = False
    tf32: Annotated[
        bool, Meta(description="Multiply fp32 matrices in TF32 (10-bit mantissa): faster, on Ampere and newer GPUs.")
    ] = False
    optimizer: Annotated[
        Literal[
            "adamw",
            "adamw_8bit",
            "paged_adamw_32bit",
            "paged_adamw_8bit",
            "lion_8bit",
            "paged_lion_8bit",
            "adafactor",
            "sgd",
        ],
        Meta(
            description="The optimizer. adamw is torch's AdamW; 8bit and paged ones come from bitsandbytes: 8bit keeps "
            "the state in 8 bits, paged moves it to CPU memory if the GPU's runs short."
        ),
    ] = "adamw"
    adam_beta1: Annotated[float, Meta(ge=0, lt=1, description="AdamW: decay of the mean of gradients.")] = 0.9
    adam_beta2: Annotated[float, Meta(ge=0, lt=1, description="AdamW: decay of the mean of squared gradients.")] = 0.999
    adam_epsilon: Annotated[float, Meta(gt=0, description="AdamW: added to the denominator.")] = 1e-8
    eval_strategy: Annotated[Strategy, Meta(description="When to compute the validation loss.")] = "epoch"
    eval_steps: Annotated[
        Count | None, Meta(description="Optimizer steps between evaluations, for eval_strategy steps.")
    ] = None
    save_strategy: Annotated[Strategy, Meta(description="When to write a checkpoint.")] = "epoch"
    save_steps: Annotated[
        Count | None, Meta(description="Optimizer steps between checkpoints, for save_strategy steps.")
    ] = None
    save_total_limit: Annotated[
        Count | None,
        Meta(
            description="How many of the newest checkpoints to keep, besides the one with the lowest validation loss; "
            "null keeps all."
        ),
    ] = 2
    early_stopping: Annotated[
        EarlyStopping | None,
        Meta(
            description="Stop when the validation loss no longer falls, for example {patience: 3, threshold: 0}; null "
            "for never."
        ),
    ] = None
    keep_best: Annotated[
        bool | None,
        Meta(
            description="Use the checkpoint with the lowest validation loss as the trained model, instead of the last "
            "one; null for true with early_stopping, false without."
        ),
    ] = None
    logging_steps: Annotated[
        Count, Meta(description="Optimizer steps between two lines of the log, and two points of a curve.")
    ] = 10
    dataloader_workers: Annotated[
        int, Meta(ge=0, description="Extra processes that load batches; 0 loads them in the training process.")
    ] = 0
    dataloader_prefetch: Annotated[
        Count | None, Meta(description="Batches that each of these processes loads ahead; null for torch's default.")
    ] = None

    @property
    def keeps_best(self) -> bool:
        """True if the trained model is the best checkpoint: keep_best, or early_stopping if keep_best is null."""
        return self.early_stopping is not None if self.keep_best is None else self.keep_best

    @property
    def micro_batch(self) -> int:
        """Rows in one forward pass of one process; raises UserError while batch_size is still auto."""
        if self.batch_size == "auto":
            raise UserError("train.batch_size is still auto", hint="sftrun RECIPE chooses a number before training")
        return self.batch_size

    def warmup_steps(self, steps: int) -> int:
        """Returns the length of the warm-up in a training of `steps` optimizer steps."""
        return math.floor(self.warmup * steps + ROUNDING) if self.warmup < 1 else int(self.warmup)

    def step_rows(self, processes: int) -> int:
        """Returns the rows of one optimizer step, over all processes."""
        return self.effective_batch_size or self.micro_batch * self.grad_accum * processes

    def steps(self, rows: int, processes: int) -> int:
        """Returns the optimizer steps of a run: the steps of every epoch, or max_steps if that is smaller.

        With packing, `rows` counts sequences.
        """
        all_epochs = math.ceil(self.epochs * self.epoch_steps(rows, processes))
        return all_epochs if self.max_steps is None else min(all_epochs, self.max_steps)

    def epoch_steps(self, rows: int, processes: int) -> int:
        """Returns the optimizer steps of one epoch."""
        return math.ceil(math.ceil(rows / (self.micro_batch * processes)) / self.grad_accum)


def describe_warmup(warmup: int, steps: int) -> str:
    """Returns a phrase for a warm-up of so many of `steps` optimizer steps."""
    if warmup == 0:
        return "no warm-up"
    return f"a warm-up of {warmup:,}" + (", which never reaches the peak" if warmup >= steps else "")
