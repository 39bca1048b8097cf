"""Events: the reports of a run while it works, one JSON object per line in `events.jsonl`.

A backend emits them (`work.emit(sftrun.events.Step(step=1, loss=2.3))`); the display, trackers, curves and the report
read them. Only the fields without a default are required. An event that is unknown, or that lacks a key, never ends a
run: it is counted, and shown once.
"""

import difflib
import json
from collections.abc import Mapping
from typing import Any, Literal

import msgspec

from sftrun.errors import Problem
from sftrun.options import dataclass_transform

__all__ = [
    "Answered",
    "BatchChosen",
    "BatchShrunk",
    "BatchTried",
    "Best",
    "Checkpoint",
    "Custom",
    "Estimated",
    "EstimatedBatches",
    "Eval",
    "Evaluating",
    "Event",
    "Exported",
    "Failure",
    "Joining",
    "Launched",
    "Malformed",
    "Prepare",
    "Prepared",
    "RehearsedStop",
    "Restarted",
    "Resumed",
    "StageChanged",
    "Step",
    "StoppedEarly",
    "Using",
    "Validating",
    "Warned",
    "decode",
    "encode",
]


@dataclass_transform(frozen_default=True, kw_only_default=True)
class Event(msgspec.Struct, frozen=True, kw_only=True, tag_field="event"):
    """Base of all events. `event["loss"]` and `event.get("loss")` read it like the JSON object that it becomes."""

    def __getitem__(self, key: str) -> Any:
        return encode(self)[key]

    def get(self, key: str, default: Any = None) -> Any:
        """Returns the value of a key of the JSON object, or the default if it has no such key."""
        return encode(self).get(key, default)


class StageChanged(Event, tag="stage"):
    """A stage starts, ends, or is kept because it was done before."""

    stage: str
    status: Literal["started", "done", "kept", "failed", "interrupted"]
    seconds: float | None = None


class Warned(Event, tag="warning"):
    """A warning for the user; `about` names the advice that it repeats, if the report gives it too."""

    message: str
    about: str | None = None


class Prepare(Event, tag="prepare"):
    """The prepared data come from the cache, or another process is preparing the same data."""

    cached: bool | None = None
    waiting: bool | None = None


class Prepared(Event, tag="prepared"):
    """A split is prepared; `rows` were read, and `left_out` counts those that are lost or filtered by reason."""

    split: str
    rows: int
    left_out: dict[str, int] = {}


class BatchTried(Event, tag="batch_tried"):
    """`train.batch_size: auto` has measured a batch; `peak` and `room` are bytes, None if memory ran out."""

    batch_size: int
    grad_accum: int
    fits: bool
    peak: int | None = None
    room: int | None = None
    processes: int | None = None


class BatchChosen(Event, tag="batch_chosen"):
    """`train.batch_size: auto` has chosen; `rows` are the rows per optimizer step, `margin` the share of memory that
    stays free.
    """

    batch_size: int
    grad_accum: int
    rows: int
    peak: int
    room: int
    margin: float


class BatchShrunk(Event, tag="batch_shrunk"):
    """Memory ran out, and the training continues with smaller batches (`train.on_oom: shrink`)."""

    batch_size: int
    grad_accum: int
    eval_batch_size: int
    during: Literal["training", "evaluation"]
    reason: str = ""


class Launched(Event, tag="launched"):
    """Several processes train together."""

    processes: int
    nodes: int
    strategy: str
    backend: str


class Joining(Event, tag="joining"):
    """A node other than the first waits for the prepared data, or trains."""

    status: Literal["waiting", "training"]
    node: int
    nodes: int


class Restarted(Event, tag="restarted"):
    """All ranks start again after a failure."""

    restart: int
    of: int
    reason: str


class Using(Event, tag="using"):
    """The settings of the training after `auto` is resolved."""

    attention: str
    precision: str
    optimizer: str
    cross_entropy: str | None = None
    compiled: str | None = None


class Resumed(Event, tag="resumed"):
    """Training continues after `step`; emitted before the first step of every attempt but the first."""

    step: int
    tokens: int | None = None
    trained_tokens: int | None = None


class Step(Event, tag="step"):
    """An optimizer step, or the mean over the steps since the last report.

    `loss` is in nats per trained token; `tokens` and `trained_tokens` count from the start of the run, over all ranks.
    """

    step: int
    loss: float | None = None
    steps: int | None = None
    epoch: float | None = None
    learning_rate: float | None = None
    grad_norm: float | None = None
    tokens: int | None = None
    trained_tokens: int | None = None
    tokens_per_s: float | None = None
    trained_tokens_per_s: float | None = None


class Validating(Event, tag="validating"):
    """An evaluation of the validation split starts: if memory runs out now, its batch was too large."""

    step: int


class Eval(Event, tag="eval"):
    """A validation loss, in nats per trained token."""

    step: int
    loss: float


class Checkpoint(Event, tag="checkpoint"):
    """A complete checkpoint is on disk; `path` is relative to the run directory."""

    step: int
    path: str | None = None


class StoppedEarly(Event, tag="stopped_early"):
    """`train.early_stopping` has ended the training."""

    step: int
    loss: float
    best_step: int
    best_loss: float


class Best(Event, tag="best"):
    """The model now has the weights of this step, whose validation loss was the lowest."""

    step: int
    loss: float


class Evaluating(Event, tag="evaluating"):
    """The base or the tuned model is loaded to be scored, or an evaluator starts to score it."""

    which: Literal["base", "tuned"]
    evaluator: str | None = None


class Answered(Event, tag="answered"):
    """The base or the tuned model has answered some of an evaluator's prompts."""

    which: Literal["base", "tuned"]
    done: int
    total: int


class Exported(Event, tag="exported"):
    """An exporter is done; `facts` is what it returned for the report."""

    exporter: str
    facts: dict[str, Any] = {}


class RehearsedStop(Event, tag="rehearsed_stop"):
    """A rehearsal has stopped the training on purpose, to resume it."""

    step: int


class Estimated(Event, tag="estimated"):
    """The memory that a backend estimates for a recipe, in bytes, and the changes that make it fit."""

    parameters: dict[str, int]
    device: dict[str, Any]
    memory: dict[str, dict[str, int]]
    peak: int
    checkpoint: int
    changes: list[dict[str, Any]]
    notes: list[str]


class EstimatedBatches(Event, tag="estimated_batches"):
    """Estimated peaks in bytes, `[micro-batch, peak]`, up to the first that does not fit into `free` bytes."""

    free: int
    peaks: list[tuple[int, int]]


class Custom(Event, tag="custom"):
    """A plugin's own event: kept in `events.jsonl` and given to trackers, without meaning for sftrun."""

    name: str
    data: dict[str, Any] = {}


class Failure(Event, tag="failure"):
    """The failure of a worker process, as its last event.

    `kind` is user, memory, disk, killed (not by the system for memory), lost (the connection to other ranks), gone
    (another node), bug, or ended (without a word). `rank` and `time` (of a monotonic clock, in seconds) order the
    failures of several ranks.
    """

    kind: Literal["user", "memory", "disk", "killed", "lost", "gone", "bug", "ended"]
    message: str = ""
    hint: str = ""
    problems: list[Problem] = []
    traceback: str = ""
    code: int = 0
    rank: int = 0
    time: float = 0.0


class Malformed(Event, tag="malformed"):
    """An event that could not be read: its name, the reason, and its data as they came."""

    kind: str
    reason: str
    data: dict[str, Any] = {}


EVENTS: dict[str, type[Event]] = {each.__struct_config__.tag: each for each in Event.__subclasses__()}  # type: ignore[misc]


def encode(event: Event | Mapping[str, Any]) -> dict[str, Any]:
    """Returns an event as a JSON object, without keys that are None."""
    if isinstance(event, Mapping):
        return dict(event)
    data: dict[str, Any] = msgspec.to_builtins(event, enc_hook=_number_or_text)
    return {key: value for key, value in data.items() if value is not None}


def to_json(event: Event | Mapping[str, Any]) -> str:
    """Returns an event as one line of JSON, without the line break; a scalar of numpy or torch becomes a number."""
    return json.dumps(encode(event), ensure_ascii=False, default=_number_or_text)


def _number_or_text(value: Any) -> float | str:
    """Returns a scalar of numpy or torch as a float, and anything else as text."""
    try:
        return float(value)
    except (TypeError, ValueError):
        return str(value)


def decode(data: Any) -> tuple[Event, Malformed | None]:
    """Returns the event of a JSON object, and the problem with it, None if there is none.

    An object that is no known event, or lacks a required key, is `Malformed` itself; unknown keys are left out.
    """
    if isinstance(data, Event):
        return data, None
    if not isinstance(data, Mapping):
        bad = Malformed(kind=type(data).__name__, reason="an event must be a JSON object with the key 'event'")
        return bad, bad
    data = {key: value for key, value in data.items() if key != "time" or data.get("event") == "failure"}
    kind = str(data.get("event"))
    event_type = EVENTS.get(kind)
    if event_type is None:
        bad = Malformed(kind=kind, reason=_unknown_event(data), data=data)
        return bad, bad
    try:
        event = msgspec.convert(data, event_type)
    except msgspec.ValidationError as error:
        bad = Malformed(kind=kind, reason=str(error), data=data)
        return bad, bad
    unknown = sorted(data.keys() - {"event", *event_type.__struct_fields__})
    if not unknown:
        return event, None
    return event, Malformed(kind=kind, reason=_unknown_keys(unknown, event_type), data=data)


def _unknown_event(data: Mapping[str, Any]) -> str:
    if "event" not in data:
        return "it has no key 'event'"
    close = difflib.get_close_matches(str(data["event"]), EVENTS, n=1)
    hint = f"did you mean '{close[0]}'?" if close else "emit sftrun.events.Custom for your own events"
    return f"there is no event of this name; {hint}"


def _unknown_keys(unknown: list[str], event_type: type[Event]) -> str:
    close = difflib.get_close_matches(unknown[0], event_type.__struct_fields__, n=1)
    hint = f"; did you mean '{close[0]}'?" if close else ""
    return f"unknown key{'s' if len(unknown) > 1 else ''} {', '.join(map(repr, unknown))}{hint}"
