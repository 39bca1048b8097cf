"""The typed recipe: every key, its type, its default and its description, once."""

import math
from collections.abc import Iterator
from typing import Annotated, Literal

from sftrun.errors import UserError
from sftrun.options import Meta, NameOrPath, Options, Use, as_use, component

Strategy = Literal["no", "steps", "epoch"]
Count = Annotated[int, Meta(ge=1)]


class ModelOptions(Options):
    """The model to start from."""

    name: Annotated[
        NameOrPath,
        Meta(description="sftrun/tiny (embedded), a folder (./…, ../…, /…), or the id of a model on the Hub."),
    ]
    revision: Annotated[str | None, Meta(description="Branch, tag or commit on the Hub.")] = None
    max_seq_len: Annotated[Count, Meta(description="Longest sequence that is trained, in tokens.")] = 2048
    chat_template: Annotated[
        NameOrPath | None,
        Meta(description="A built-in name (chatml) or a .jinja file; null for the tokenizer's own."),
    ] = None
    eot_token: Annotated[
        str | None,
        Meta(description="Token that ends an answer, for a template that gives none."),
    ] = None


class DataOptions(Options):
    """What happens to rows that cannot be trained on as they are."""

    on_bad_row: Annotated[
        Literal["error", "skip"],
        Meta(description="A row that cannot be read or formatted: stop, or leave it out and say so in the ledger."),
    ] = "error"
    on_too_long: Annotated[
        Literal["error", "drop", "truncate", "split"],
        Meta(description="A row longer than model.max_seq_len: stop, leave it out, cut its end off, or cut it up."),
    ] = "drop"
    max_lost: Annotated[
        float,
        Meta(ge=0, le=1, description="Largest share of a split's rows that may be lost (left out or cut)."),
    ] = 0.1


class PackingOptions(Options):
    """Whether several rows share one sequence of model.max_seq_len tokens."""

    strategy: Annotated[
        Literal["none", "best-fit"],
        Meta(description="none pads each row; best-fit fills sequences with whole rows that do not see each other."),
    ] = "none"


class LoraOptions(Options):
    """The adapter of tuning.mode lora and qlora."""

    r: Annotated[Count, Meta(description="Rank of the adapter.")] = 16
    alpha: Annotated[float, Meta(gt=0, description="Scale of the adapter: its update is times alpha / r.")] = 32
    dropout: Annotated[float, Meta(ge=0, lt=1, description="Dropout on the adapter's input.")] = 0.0
    target_modules: Annotated[
        Literal["all-linear", "auto"] | list[str],
        Meta(
            description="Modules that get an adapter: every linear one but the head; auto, peft's choice for the "
            "architecture (mostly two of the attention); or a list of names."
        ),
    ] = "all-linear"
    modules_to_save: Annotated[
        list[str], Meta(description="Names of modules that are trained in full, and saved with the adapter.")
    ] = []
    rslora: Annotated[bool, Meta(description="Scale by alpha / √r, which suits high ranks, instead of alpha / r.")] = (
        False
    )
    dora: Annotated[
        bool, Meta(description="Train the length of each weight vector apart from its direction; slower.")
    ] = False
    init: Annotated[
        Literal["default", "gaussian", "pissa", "olora", "loftq"],
        Meta(
            description="What the adapter starts from: nothing (default, gaussian), the main directions of the base's "
            "weights (pissa, olora), or what 4 bits have lost of them (loftq)."
        ),
    ] = "default"


class TuningOptions(Options):
    """Which weights are trained."""

    mode: Annotated[
        Literal["full", "lora", "qlora"],
        Meta(
            description="full trains every weight; lora trains a small adapter on a frozen base; qlora on one that is "
            "held in 4 bits (backend bnb)."
        ),
    ] = "lora"
    lora: Annotated[LoraOptions, Meta(description="The adapter, for modes lora and qlora.")] = LoraOptions()


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
        an_epoch = math.ceil(math.ceil(rows / (self.micro_batch * processes)) / self.grad_accum)
        every = math.ceil(self.epochs * an_epoch)
        return every if self.max_steps is None else min(every, self.max_steps)


class LaunchOptions(Options):
    """How many processes train, on how many machines, and how they share the model."""

    processes: Annotated[
        Literal["auto"] | Count, Meta(description="Training processes on each node; auto is one a GPU, or one without.")
    ] = "auto"
    nodes: Annotated[
        Count, Meta(description="Machines that train together; each runs the same command with its own --node-rank.")
    ] = 1
    strategy: Annotated[
        Literal["auto", "ddp", "fsdp", "deepspeed"],
        Meta(
            description="ddp keeps the whole model in every process; fsdp (FSDP2) and deepspeed (ZeRO) share weights, "
            "gradients and optimizer state among them; auto is ddp where there are several processes."
        ),
    ] = "auto"
    zero_stage: Annotated[
        Literal[2, 3],
        Meta(description="deepspeed: 2 shares gradients and optimizer state among processes, 3 the weights too."),
    ] = 3
    restarts: Annotated[
        int, Meta(ge=0, description="How often all processes start again from the last checkpoint when one fails.")
    ] = 0


class Recipe(Options):
    """A supervised fine-tuning run, from rows to a trained, evaluated and exported model."""

    model: Annotated[ModelOptions, Meta(description="The model to start from.")]
    source: Annotated[str | Use, component("source"), Meta(description="Where the rows are.")]
    description: Annotated[str, Meta(description="What this recipe is for.")] = ""
    extends: Annotated[
        str | None, Meta(description="Another recipe that this one changes: deep-merged, lists replaced.")
    ] = None
    transforms: Annotated[
        list[str | Use], component("transform"), Meta(description="What is done to the conversations, in order.")
    ] = []
    formatter: Annotated[str | Use, component("formatter"), Meta(description="How a row becomes a conversation.")] = (
        "chat"
    )
    masker: Annotated[str | Use, component("masker"), Meta(description="Which tokens carry loss.")] = "assistant"
    data: Annotated[DataOptions, Meta(description="What happens to rows that do not fit.")] = DataOptions()
    packing: Annotated[PackingOptions, Meta(description="Whether several rows share one sequence.")] = PackingOptions()
    expect_mask: Annotated[
        str | None,
        Meta(
            description="The mask hash that sftrun prepare printed; another one now, from whatever cause, is an error."
        ),
    ] = None
    tuning: Annotated[TuningOptions, Meta(description="Which weights are trained.")] = TuningOptions()
    backend: Annotated[str | Use, component("backend"), Meta(description="What loads, trains and saves.")] = "hf"
    train: Annotated[TrainOptions, Meta(description="How the weights are trained.")] = TrainOptions()
    launch: Annotated[LaunchOptions, Meta(description="How many processes train, and where.")] = LaunchOptions()
    evaluators: Annotated[
        list[str | Use], component("evaluator"), Meta(description="What scores the base and the tuned model.")
    ] = []
    exporters: Annotated[
        list[str | Use], component("exporter"), Meta(description="What is made of the result for deployment.")
    ] = []
    seed: Annotated[int, Meta(ge=0, le=2**32 - 1, description="Seed of everything that is random.")] = 0


def components(recipe: Recipe) -> Iterator[tuple[str, Use]]:
    """Every component that a recipe names, with its kind, in the order in which they work."""
    kinds = ("source", "transforms", "formatter", "masker", "backend", "evaluators", "exporters")
    for key in kinds:
        value = getattr(recipe, key)
        for named in value if isinstance(value, list) else [value]:
            yield key.removesuffix("s"), as_use(named)
