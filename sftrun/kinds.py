"""The kinds of component: a Protocol for each, and the contexts that their methods get.

A context is the only argument of a method, so a new field in it breaks no plugin. Methods that a
Protocol lists in `OPTIONAL` may be left out; a misspelled one is an error when the component is registered.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, Protocol

import msgspec

from sftrun.errors import Problem, UserError
from sftrun.events import Event
from sftrun.types import (
    BadRow,
    BatchShape,
    Conversation,
    Decoding,
    Grade,
    Likelihood,
    LossSums,
    Message,
    NoteAction,
    Prompt,
    Row,
    Scores,
    Span,
)

if TYPE_CHECKING:
    from sftrun.recipe.model import Recipe
    from sftrun.runs.directory import RunDir

Emit = Callable[[Event], None]
"""Reports one event to the run: to `events.jsonl`, the display and the trackers."""

CHECKS = ("check_recipe", "check_machine", "check_prepared")
OPTIONAL = {  # methods and attributes that a component of each kind may have
    "source": CHECKS,
    "transform": (*CHECKS, "fingerprint"),
    "formatter": CHECKS,
    "masker": (*CHECKS, "narrow", "honours_flags"),
    "backend": (*CHECKS, "estimate", "distributed", "honours"),
    "evaluator": CHECKS,
    "judge": CHECKS,
    "exporter": CHECKS,
    "metric": (*CHECKS, "higher_is_better", "range", "per_row"),
    "tracker": CHECKS,
}


class Checks(Protocol):
    """Optional methods of a component of any kind; each yields problems, and `sftrun` prints them."""

    def check_recipe(self, recipe: "Recipe") -> Iterable[Problem]:
        """Yields problems that the recipe alone shows; `sftrun validate` calls it."""

    def check_machine(self, recipe: "Recipe") -> Iterable[Problem]:
        """Yields problems of this machine, a missing file or package; called before a run starts."""

    def check_prepared(self, recipe: "Recipe", run: "RunDir") -> Iterable[Problem]:
        """Yields problems with the prepared data of a run; called before anything is trained."""


class Source(Protocol):
    """Yields rows, split by split."""

    def splits(self) -> Sequence[str]:
        """Returns the names of the splits that exist, out of `train`, `val` and `test`."""

    def rows(self, split: str) -> Iterator[Row | BadRow]:
        """Yields the rows of one split, in a fixed order."""

    def fingerprint(self) -> str:
        """Returns a hash that changes when any row changes."""

    def locate(self, origin: str) -> str:
        """Returns a place that a person can open, such as file and line, for an origin."""


class Note(Protocol):
    """Writes to the ledger what a transform did to a conversation."""

    def __call__(self, origin: str, action: NoteAction, reason: str, detail: str = "", /) -> None:
        """Writes an entry; entries are grouped by `reason`, so use few different ones. `detail` is about this row."""


def _no_tokenizer(text: str) -> int:
    raise UserError("tokens cannot be counted here: this context has no tokenizer")


class Context(msgspec.Struct, frozen=True):
    """The context of a transform: its split, the recipe's seed, and access to the other splits.

    `conversations(split)` yields the conversations of another split as they reach this transform; `count(text)`
    returns the number of tokens of a text under the recipe's tokenizer.
    """

    split: str
    splits: Sequence[str]
    seed: int
    note: Note
    conversations: Callable[[str], Iterator[Conversation]]
    count: Callable[[str], int] = _no_tokenizer


class Transform(Protocol):
    """Turns conversations into fewer, more or changed ones.

    Optional: `fingerprint() -> str`, for a transform that reads its own files: a hash that changes when they do.
    """

    def apply(self, conversations: Iterable[Conversation], context: Context) -> Iterator[Conversation]:
        """Yields the conversations that are kept, and notes every one that it leaves out or changes."""


class Formatter(Protocol):
    """Turns one row into a conversation."""

    def format(self, row: Row) -> Conversation:
        """Returns the conversation of a row; raises RowError, with the reason, for a row that does not fit."""


class Masker(Protocol):
    """Chooses the spans that are trained.

    Optional: `narrow(text: str) -> Sequence[tuple[int, int]]` returns the stretches `[start, end)` of a chosen span's
    text that are trained (without it, the whole span is). `honours_flags = True` promises that the masker acts on
    `Span.train`; without it, rows whose flags ask for something else than the masker chooses are refused.
    """

    def choose(self, spans: Sequence[Span]) -> Sequence[bool]:
        """Returns one flag per span, in order.

        The choice may depend on anything but `start` and `end`: conversations of one shape share one call.
        """


class Model(Protocol):
    """A loaded model, as evaluators see it."""

    def encode(self, source: "str | Sequence[Message]") -> list[int]:
        """Returns the token ids of a text as it is, or of messages with the generation prompt after them."""

    def decode(self, ids: Sequence[int]) -> str:
        """Returns the text of token ids, without special tokens."""

    def generate(self, prompts: Sequence[Sequence[int]], decoding: Decoding) -> list[list[int]]:
        """Returns one continuation per prompt (lists of token ids), without the stop token.

        The model's own generation config has no effect, except for its stop tokens: greedy means greedy.
        """

    def loglikelihood(
        self, pairs: Sequence[tuple[Sequence[int], Sequence[int]]], batch_size: int = 16
    ) -> list[Likelihood]:
        """Returns the log-likelihood (nats) of each continuation given its context; a pair is two lists of token
        ids.
        """

    def losses(self, split: str) -> LossSums | None:
        """Returns the sums over the trained tokens of a prepared split; None if there is no such split."""


class Training(msgspec.Struct, frozen=True, kw_only=True):
    """The context of a training: the recipe, its run directory with the prepared data, and `emit` for events."""

    recipe: "Recipe"
    run: "RunDir"
    emit: Emit

    @property
    def seed(self) -> int:
        """The recipe's seed."""
        return self.recipe.seed


class Loading(msgspec.Struct, frozen=True, kw_only=True):
    """The context of loading: `which` is the model before (base) or after training (tuned)."""

    recipe: "Recipe"
    run: "RunDir"
    which: Literal["base", "tuned"]


class Estimating(msgspec.Struct, frozen=True, kw_only=True):
    """A recipe, and the largest batches that it makes of its rows; `evaluation` is None if it evaluates nothing."""

    recipe: "Recipe"
    training: BatchShape
    evaluation: BatchShape | None


class Backend(Protocol):
    """Loads, trains and saves a model. `train` and `load` run in a worker process.

    `honours` names the recipe keys (`train.epochs`, `tuning.lora.r`, …) that the backend acts on; a recipe that sets
    any other key below `train`, `tuning`, `launch` and `packing` is refused with its file and line.

    Optional: `estimate(work: Estimating) -> Footprint`, for `sftrun plan` and `train.batch_size: auto`; it loads no
    weights, and is asked about changed recipes too (smaller batches, checkpointing, adapters). `distributed = True`
    promises that `train` works as one of several ranks: it is then called once per rank, with torchrun's variables
    set (RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR, MASTER_PORT). Any other backend trains in one process.
    """

    honours: frozenset[str]

    def train(self, work: Training) -> None:
        """Trains on `work.run.prepared` and leaves weights, tokenizer and template in `work.run.model`.

        Continues from what an earlier attempt left in `work.run.checkpoints`, and emits `Resumed` before its first
        step, so that curves show each step once; or starts again. SIGTERM asks it to save and raise Interrupted; a
        backend that does not listen is killed. `Validating`, emitted before an evaluation, tells which batch was too
        large if memory runs out.
        """

    def load(self, work: Loading) -> Model:
        """Returns the model before or after training."""


class Scoring(msgspec.Struct, frozen=True, kw_only=True):
    """The context of an evaluator: a model, and the held-out prompts by split."""

    model: Model
    prompts: Mapping[str, Sequence[Prompt]]
    recipe: "Recipe"
    run: "RunDir"
    emit: Emit
    which: Literal["base", "tuned"] = "tuned"

    @property
    def seed(self) -> int:
        """The recipe's seed."""
        return self.recipe.seed


class Evaluator(Protocol):
    """Scores a model."""

    def score(self, work: Scoring) -> Scores:
        """Returns metrics, and the samples they were computed from.

        A sample has `origin`, `messages`, `reference` and `answer`, and anything else for the report. For the
        base and the tuned model, the samples must be of the same prompts in the same order.
        """


class Grading(msgspec.Struct, frozen=True, kw_only=True):
    """One answer to grade, with its prompt."""

    prompt: Prompt
    answer: str
    seed: int = 0


class Judge(Protocol):
    """Grades one answer."""

    def grade(self, work: Grading) -> Grade:
        """Returns the grade of an answer."""


class Measuring(msgspec.Struct, frozen=True, kw_only=True):
    """Answers to compare with their references, one each per prompt."""

    answers: Sequence[str]
    references: Sequence[str]
    prompts: Sequence[Prompt] = ()


class Metric(Protocol):
    """Scores answers against references.

    Optional attributes: `higher_is_better` (default True); `range`, the lowest and the highest value (default 0 to 1;
    None for no bound); `per_row` (default True): the metric is the mean over rows; False: it is computed on the corpus.
    """

    def measure(self, work: Measuring) -> Sequence[float] | float:
        """Returns one value per answer if `per_row`, else one for the whole corpus."""


class Exporting(msgspec.Struct, frozen=True, kw_only=True):
    """The context of an exporter: the run with its tuned model, and `emit` for events."""

    recipe: "Recipe"
    run: "RunDir"
    emit: Emit


class Exporter(Protocol):
    """Turns the result of a run into something to deploy."""

    def export(self, work: Exporting) -> dict[str, Any]:
        """Writes below `work.run.export`, and returns facts for the report (`path` among them)."""


class Tracking(msgspec.Struct, frozen=True, kw_only=True):
    """The context of a tracker. `resumed` is True if the run has been started before."""

    recipe: "Recipe"
    run: "RunDir"
    resumed: bool = False


class Tracker(Protocol):
    """Follows a run in the parent process: it gets every event, typed.

    An exception of a tracker never ends a run: it is shown once, and the tracker gets no more events.
    """

    def start(self, work: Tracking) -> None:
        """Starts tracking; called before the first stage."""

    def track(self, event: Event) -> None:
        """Takes one event; called with each event, in order."""

    def finish(self, status: Literal["done", "failed", "interrupted"]) -> None:
        """Ends tracking; called at the end."""


PROTOCOLS: dict[str, type] = {
    "source": Source,
    "transform": Transform,
    "formatter": Formatter,
    "masker": Masker,
    "backend": Backend,
    "evaluator": Evaluator,
    "judge": Judge,
    "exporter": Exporter,
    "metric": Metric,
    "tracker": Tracker,
}
