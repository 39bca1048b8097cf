"""The typed recipe: the only place that gives a key its type, default and description."""

from collections.abc import Iterator
from typing import Annotated, Any, Literal

import msgspec

from sftrun.options import Count, Meta, NameOrPath, Options, Use, as_use, component, parse
from sftrun.recipe.train_options import TrainOptions

LONGEST_SEQUENCE = 10 * 1024 * 1024  # tokens; no model has more positions


class ModelOptions(Options):
    """The model to start from."""

    name: Annotated[
        NameOrPath,
        Meta(
            description="The base model: sftrun/tiny (comes with sftrun), a folder (./…, ../…, /…), or the id of a "
            "model on the Hub."
        ),
    ]
    revision: Annotated[
        str | None,
        Meta(
            description="Branch, tag or commit on the Hub; null for the default branch. A run looks up the commit "
            "once, writes it to lock.json and resolved.yaml, and keeps it."
        ),
    ] = None
    trust_remote_code: Annotated[
        bool,
        Meta(
            description="Run the Python code that comes with the model, for an architecture that transformers does "
            "not have. It can do anything on this machine: read it first. A model of the Hub needs its full commit as "
            "revision."
        ),
    ] = False
    max_seq_len: Annotated[
        int,
        Meta(
            ge=1,
            le=LONGEST_SEQUENCE,
            description="Longest sequence to train on, in tokens; see data.on_too_long for longer rows.",
        ),
    ] = 2048
    chat_template: Annotated[
        NameOrPath | None,
        Meta(
            description="chatml, a .jinja file, or the name of one of the tokenizer's templates; null for its default."
        ),
    ] = None
    eot_token: Annotated[
        str | None,
        Meta(description="Token that ends each answer after which the chat template writes none."),
    ] = None
    space_to_answer: Annotated[
        bool,
        Meta(
            description="Let answers begin with the spaces that end their prompt, as in `Assistant: `: many tokenizers "
            "join a space with the next word. Prompts for answers then end without them, also in the saved template."
        ),
    ] = False


class DataOptions(Options):
    """Treatment of rows that cannot be trained on as they are."""

    on_bad_row: Annotated[
        Literal["error", "skip"],
        Meta(
            description="If a row cannot be read or formatted: error stops, skip leaves the row out and records it in "
            "the ledger."
        ),
    ] = "error"
    on_too_long: Annotated[
        Literal["error", "drop", "truncate", "split"],
        Meta(
            description="If a row is longer than model.max_seq_len: error stops, drop leaves the row out, truncate "
            "cuts off its end, split cuts it into several samples."
        ),
    ] = "drop"
    split_reasoning: Annotated[
        bool,
        Meta(
            description="Move thoughts at the beginning of an answer's content, `<think>…</think>`, to its "
            "reasoning_content, for chat templates that write them from there."
        ),
    ] = False
    max_lost: Annotated[
        float,
        Meta(ge=0, le=1, description="Stop if a larger share of a split's rows is lost (left out or truncated)."),
    ] = 0.1
    crosscheck: Annotated[
        Literal["warn", "error"],
        Meta(
            description="If a second derivation of a row's mask differs: warn and record it in the mask proof, or "
            "stop before training."
        ),
    ] = "warn"


class PackingOptions(Options):
    """Packing of several rows into one sequence of model.max_seq_len tokens."""

    strategy: Annotated[
        Literal["none", "best-fit"],
        Meta(
            description="none pads each row; best-fit fills sequences with whole rows that do not attend to each other."
        ),
    ] = "none"


class LoraOptions(Options):
    """The adapter of tuning.mode lora and qlora."""

    r: Annotated[Count, Meta(description="Rank of the adapter.")] = 16
    alpha: Annotated[float, Meta(gt=0, description="Scale of the adapter: its update is multiplied by alpha / r.")] = 32
    dropout: Annotated[float, Meta(ge=0, lt=1, description="Dropout on the adapter's input.")] = 0.0
    target_modules: Annotated[
        Literal["all-linear", "auto"] | list[str],
        Meta(
            description="Modules that get an adapter: all-linear, every linear layer except the head; auto, peft's "
            "choice for the architecture (usually two attention projections); or a list of names."
        ),
    ] = "all-linear"
    modules_to_save: Annotated[
        list[str], Meta(description="Names of modules to train in full and to save with the adapter.")
    ] = []
    rslora: Annotated[
        bool, Meta(description="Rank-stabilised LoRA: scale by alpha / √r instead of alpha / r; suits high ranks.")
    ] = False
    dora: Annotated[bool, Meta(description="DoRA: train magnitude and direction separately; slower.")] = False
    init: Annotated[
        Literal["default", "gaussian", "pissa", "olora", "loftq"],
        Meta(
            description="Initial weights of the adapter. default, gaussian: no effect at first; pissa, olora: the main "
            "directions of the base's weights; loftq: the error of rounding the base to 4 bits."
        ),
    ] = "default"


class TuningOptions(Options):
    """The choice of weights to train."""

    mode: Annotated[
        Literal["full", "lora", "qlora"],
        Meta(
            description="full: train every weight; lora: train a small adapter on a frozen base; qlora: the same on a "
            "base in 4 bits (backend bnb)."
        ),
    ] = "lora"
    lora: Annotated[LoraOptions, Meta(description="The adapter, for modes lora and qlora.")] = LoraOptions()


class LaunchOptions(Options):
    """Training processes, machines, and how they share the model."""

    processes: Annotated[
        Literal["auto"] | Count,
        Meta(description="Training processes on each node; auto is one per GPU, or one on a node without a GPU."),
    ] = "auto"
    nodes: Annotated[
        Count,
        Meta(description="Machines that train together; each one runs the same command with its own --node-rank."),
    ] = 1
    strategy: Annotated[
        Literal["auto", "ddp", "fsdp", "deepspeed"],
        Meta(
            description="ddp keeps a full copy of the model in every process; fsdp (FSDP2) and deepspeed (ZeRO) shard "
            "weights, gradients and optimizer state; auto is ddp if there are several processes."
        ),
    ] = "auto"
    zero_stage: Annotated[
        Literal[2, 3],
        Meta(description="With deepspeed: 2 shards gradients and optimizer state, 3 shards the weights too."),
    ] = 3
    restarts: Annotated[
        int, Meta(ge=0, description="How often to restart all processes from the last checkpoint if one fails.")
    ] = 0


class Recipe(Options):
    """A supervised fine-tuning run, from rows to a trained, evaluated and exported model."""

    model: Annotated[ModelOptions, Meta(description="The model to start from.")]
    source: Annotated[Use, component("source"), Meta(description="Where to read the rows from.")]
    description: Annotated[str, Meta(description="What this recipe is for; the title of its report.")] = ""
    extends: Annotated[
        str | None,
        Meta(description="Another recipe to start from; mappings are merged with it, everything else is replaced."),
    ] = None
    transforms: Annotated[
        list[Use], component("transform"), Meta(description="Changes to the conversations, applied in order.")
    ] = []
    formatter: Annotated[Use, component("formatter"), Meta(description="How to turn a row into a conversation.")] = Use(
        use="chat"
    )
    masker: Annotated[Use, component("masker"), Meta(description="Which tokens carry loss.")] = Use(use="assistant")
    data: Annotated[DataOptions, Meta(description="What to do with rows that cannot be trained on as they are.")] = (
        DataOptions()
    )
    packing: Annotated[PackingOptions, Meta(description="Packing of several rows into one sequence.")] = (
        PackingOptions()
    )
    expect_mask: Annotated[
        str | None,
        Meta(description="The mask hash that sftrun prepare printed; the run stops if the mask is a different one."),
    ] = None
    tuning: Annotated[TuningOptions, Meta(description="Which weights to train.")] = TuningOptions()
    backend: Annotated[
        Use, component("backend"), Meta(description="The implementation that loads, trains and saves the model.")
    ] = Use(use="hf")
    train: Annotated[TrainOptions, Meta(description="How to train the weights.")] = TrainOptions()
    launch: Annotated[LaunchOptions, Meta(description="How many processes train, and on how many machines.")] = (
        LaunchOptions()
    )
    evaluators: Annotated[
        list[Use], component("evaluator"), Meta(description="How to score the base and the tuned model.")
    ] = []
    exporters: Annotated[
        list[Use], component("exporter"), Meta(description="What to make of the tuned model for deployment.")
    ] = []
    trackers: Annotated[
        list[Use],
        Meta(
            description="Which trackers follow the run. Nothing is sent to a service that is not named here.",
            extra_json_schema={"x-component": "tracker", "default": ["tensorboard"]},
        ),
    ] = msgspec.field(default_factory=lambda: [Use(use="tensorboard")])
    seed: Annotated[int, Meta(ge=0, le=2**32 - 1, description="Seed of all random choices.")] = 0

    def __post_init__(self) -> None:
        """Turns bare names of components into `Use`, for recipes that are built in Python."""
        for key in COMPONENT_KEYS:
            value = getattr(self, key)
            uses = [as_use(each) for each in value] if isinstance(value, list) else as_use(value)
            if uses != value:
                msgspec.structs.force_setattr(self, key, uses)


COMPONENT_KEYS = {  # in the order in which they work, with the kind of each
    "source": "source",
    "transforms": "transform",
    "formatter": "formatter",
    "masker": "masker",
    "backend": "backend",
    "evaluators": "evaluator",
    "exporters": "exporter",
    "trackers": "tracker",
}


def components(recipe: Recipe) -> Iterator[tuple[str, Use]]:
    """Yields every component that a recipe names, with its kind, in the order in which they run."""
    for key, kind in COMPONENT_KEYS.items():
        value = getattr(recipe, key)
        for use in value if isinstance(value, list) else [value]:
            yield kind, use


def typed_recipe(data: Any) -> Recipe:
    """Returns the typed recipe of plain data, in which a component may be a bare name.

    Raises UserError if the data do not fit.
    """
    if isinstance(data, dict):
        data = {**data, **{key: _long_form(data[key]) for key in COMPONENT_KEYS if key in data}}
    return parse(data, Recipe)


def _long_form(value: Any) -> Any:
    if isinstance(value, list):
        return [_long_form(each) for each in value]
    return {"use": value} if isinstance(value, str) else value
