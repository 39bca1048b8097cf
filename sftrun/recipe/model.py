"""The typed recipe: every key, its type, its default and its description, once."""

from collections.abc import Iterator
from typing import Annotated, Any, Literal

import msgspec

from sftrun.options import Count, Meta, NameOrPath, Options, Use, as_use, component, parse
from sftrun.recipe.train_options import TrainOptions


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
    source: Annotated[Use, component("source"), Meta(description="Where the rows are.")]
    description: Annotated[str, Meta(description="What this recipe is for.")] = ""
    extends: Annotated[
        str | None, Meta(description="Another recipe that this one changes: deep-merged, lists replaced.")
    ] = None
    transforms: Annotated[
        list[Use], component("transform"), Meta(description="What is done to the conversations, in order.")
    ] = []
    formatter: Annotated[Use, component("formatter"), Meta(description="How a row becomes a conversation.")] = Use(
        use="chat"
    )
    masker: Annotated[Use, component("masker"), Meta(description="Which tokens carry loss.")] = Use(use="assistant")
    data: Annotated[DataOptions, Meta(description="What happens to rows that do not fit.")] = DataOptions()
    packing: Annotated[PackingOptions, Meta(description="Whether several rows share one sequence.")] = PackingOptions()
    expect_mask: Annotated[
        str | None,
        Meta(
            description="The mask hash that sftrun prepare printed; another one now, from whatever cause, is an error."
        ),
    ] = None
    tuning: Annotated[TuningOptions, Meta(description="Which weights are trained.")] = TuningOptions()
    backend: Annotated[Use, component("backend"), Meta(description="What loads, trains and saves.")] = Use(use="hf")
    train: Annotated[TrainOptions, Meta(description="How the weights are trained.")] = TrainOptions()
    launch: Annotated[LaunchOptions, Meta(description="How many processes train, and where.")] = LaunchOptions()
    evaluators: Annotated[
        list[Use], component("evaluator"), Meta(description="What scores the base and the tuned model.")
    ] = []
    exporters: Annotated[
        list[Use], component("exporter"), Meta(description="What is made of the result for deployment.")
    ] = []
    trackers: Annotated[
        list[Use],
        Meta(
            description="What follows the run, TensorBoard first. Nothing is sent anywhere that is not named here.",
            extra_json_schema={"x-component": "tracker", "default": ["tensorboard"]},
        ),
    ] = msgspec.field(default_factory=lambda: [Use(use="tensorboard")])
    seed: Annotated[int, Meta(ge=0, le=2**32 - 1, description="Seed of everything that is random.")] = 0

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
    """Yields every component that a recipe names, with its kind, in the order in which they work."""
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
