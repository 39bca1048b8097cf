"""The key `train` of a recipe: every option, and what follows from them."""

import math
from typing import Annotated, Literal

from sftrun.errors import UserError
from sftrun.options import Count, Meta, Options

Strategy = Literal["no", "steps", "epoch"]


class EarlyStopping(Options):
    """When training ends before its last step."""

    patience: Annotated[
        Count, Meta(description="Stop after so many evaluations in a row without a lower validation loss.")
    ] = 3
    threshold: Annotated[
        float, Meta(ge=0, description="By how much the loss must be below the lowest one so far to count as lower.")
    ] = 0.0


class TrainOptions(Options):
    """How the weights are trained."""

    epochs: Annotated[float, Meta(gt=0, description="Passes over the training split.")] = 3
    max_steps: Annotated[
        Count | None, Meta(description="Stop after this many optimizer steps, if the epochs are not over before.")
    ] = None
    learning_rate: Annotated[
        Annotated[float, Meta(gt=0)] | None,
        Meta(description="Peak learning rate; null for 2e-4 with an adapter, 1e-5 in full tuning."),
    ] = None
    scheduler: Annotated[
        Literal["constant", "linear", "cosine"], Meta(description="How the learning rate falls after the warm-up.")
    ] = "cosine"
    warmup: Annotated[
        float, Meta(ge=0, description="Warm-up: a share of all steps when below 1, else a number of steps.")
    ] = 0.03
    weight_decay: Annotated[float, Meta(ge=0, description="Weight decay of the optimizer.")] = 0.0
    batch_size: Annotated[
        Literal["auto"] | Count,
        Meta(
            description="Rows in one forward pass; of packed rows, sequences. auto: as many as this machine's memory "
            "takes, which is measured; then grad_accum follows from effective_batch_size."
        ),
    ] = 4
    effective_batch_size: Annotated[
        Count | None,
        Meta(description="Rows in one optimizer step. For batch_size auto; else it has to be what the others give."),
    ] = None
    eval_batch_size: Annotated[Count, Meta(description="Rows in one forward pass of an evaluation.")] = 8
    grad_accum: Annotated[Count, Meta(description="Forward passes summed into one optimizer step.")] = 1
    group_by_length: Annotated[
        bool, Meta(description="Rows of similar lengths share a batch, to save padding; packed rows have none.")
    ] = True
    max_grad_norm: Annotated[float, Meta(ge=0, description="Largest norm of the gradient; 0 for no limit.")] = 1.0
    on_oom: Annotated[
        Literal["error", "shrink"],
        Meta(
            description="Where memory runs out in training: stop, and say what to change; or go on from the last "
            "checkpoint with fewer rows in a forward pass, and as many in a step."
        ),
    ] = "error"
    gradient_checkpointing: Annotated[
        bool, Meta(description="Compute activations twice to keep fewer of them in memory.")
    ] = False
    precision: Annotated[
        Literal["auto", "bf16", "fp16", "fp32"],
        Meta(description="Number format of the computation; auto is bf16 on a GPU that has it, else fp32."),
    ] = "auto"
    attention: Annotated[
        Literal["auto", "eager", "sdpa", "flash-attn", "flex"],
        Meta(
            description="What computes attention; auto is flash-attn where it is installed and works, else a kernel of "
            "the Hub where the package kernels is installed, else sdpa."
        ),
    ] = "auto"
    cross_entropy: Annotated[
        Literal["torch", "liger", "cut-cross-entropy"],
        Meta(
            description="What computes the head and the loss, on trained positions alone: torch, anywhere and for any "
            "model; or kernels that make no logits, on a GPU (packages liger-kernel, cut-cross-entropy)."
        ),
    ] = "torch"
    compile: Annotated[bool, Meta(description="Compile the layers with torch.compile: slow at first, then faster.")] = (
        False
    )
    activation_offload: Annotated[
        bool, Meta(description="Keep activations in the CPU's memory until they are needed; on a GPU.")
    ] = False
    tf32: Annotated[
        bool, Meta(description="Multiply fp32 matrices in TF32, of 10 bits: faster, on GPUs since Ampere.")
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
            description="The optimizer. adamw is torch's AdamW; those of bitsandbytes keep their state in 8 bits, or "
            "(paged) move it to the CPU's memory where the GPU's runs short."
        ),
    ] = "adamw"
    adam_beta1: Annotated[float, Meta(ge=0, lt=1, description="AdamW: decay of the mean of gradients.")] = 0.9
    adam_beta2: Annotated[float, Meta(ge=0, lt=1, description="AdamW: decay of the mean of squares.")] = 0.999
    adam_epsilon: Annotated[float, Meta(gt=0, description="AdamW: added to the denominator.")] = 1e-8
    eval_strategy: Annotated[Strategy, Meta(description="When the validation loss is computed.")] = "epoch"
    eval_steps: Annotated[Count | None, Meta(description="Steps between evaluations, for eval_strategy steps.")] = None
    save_strategy: Annotated[Strategy, Meta(description="When a checkpoint is written.")] = "epoch"
    save_steps: Annotated[Count | None, Meta(description="Steps between checkpoints, for save_strategy steps.")] = None
    save_total_limit: Annotated[
        Count | None,
        Meta(description="Checkpoints kept: so many of the newest, and the one with the lowest loss; null for all."),
    ] = 2
    early_stopping: Annotated[
        EarlyStopping | None,
        Meta(description="{patience: 3, threshold: 0}: stop when the validation loss no longer falls; null for never."),
    ] = None
    keep_best: Annotated[
        bool | None,
        Meta(
            description="The trained model is the checkpoint with the lowest validation loss, not the last one; "
            "null for yes with early_stopping and no without."
        ),
    ] = None
    logging_steps: Annotated[Count, Meta(description="Steps between two lines of the log and points of a curve.")] = 10
    dataloader_workers: Annotated[int, Meta(ge=0, description="Processes that load batches; 0 for none.")] = 0
    dataloader_prefetch: Annotated[
        Count | None, Meta(description="Batches that each of these processes loads ahead; null for torch's own choice.")
    ] = None

    @property
    def keeps_best(self) -> bool:
        """Whether the model is the checkpoint with the lowest validation loss: keep_best, with its null resolved."""
        return self.early_stopping is not None if self.keep_best is None else self.keep_best

    @property
    def micro_batch(self) -> int:
        """Rows in one forward pass: batch_size, which is a number once anything is trained."""
        if self.batch_size == "auto":
            raise UserError("train.batch_size auto is not chosen yet", hint="sftrun RECIPE chooses it before it trains")
        return self.batch_size

    def step_rows(self, processes: int) -> int:
        """Rows of an optimizer step, of so many processes together."""
        return self.effective_batch_size or self.micro_batch * self.grad_accum * processes

    def steps(self, rows: int, processes: int) -> int:
        """Optimizer steps of a run: the epochs' worth, or max_steps where that is fewer; all processes share a step.

        Of packed rows, `rows` counts the packs.
        """
        every = math.ceil(self.epochs * self.epoch_steps(rows, processes))
        return every if self.max_steps is None else min(every, self.max_steps)

    def epoch_steps(self, rows: int, processes: int) -> int:
        """Optimizer steps of a whole epoch."""
        return math.ceil(math.ceil(rows / (self.micro_batch * processes)) / self.grad_accum)
