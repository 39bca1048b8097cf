"""The nouns that pass between components, and the Protocols that components meet."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

import msgspec

from sftrun.errors import Problem, UserError

if TYPE_CHECKING:
    from sftrun.data.masks.skeleton import Skeleton
    from sftrun.recipe.model import Recipe

Message = dict[str, Any]
"""One message in the OpenAI chat shape: `role`, `content`, and what else the template reads.

`train`, true or false, says whether the message is to be trained on; it is for maskers, and no template sees it.
"""


class Row(msgspec.Struct, frozen=True):
    """One record of a source, as read, with its origin (`train.jsonl:12`)."""

    data: dict[str, Any]
    origin: str


class BadRow(msgspec.Struct, frozen=True):
    """A record that a source could not read, with the reason."""

    origin: str
    reason: str


class Conversation(msgspec.Struct, frozen=True):
    """Messages for a chat template, with what else that template is given.

    With `plain`, no template is used: the contents of the messages are joined as they are, between the
    tokenizer's BOS (where it adds one) and its EOS; the text of the last message, and EOS, are generated.
    """

    messages: list[Message]
    origin: str = ""
    tools: list[dict[str, Any]] | None = None
    template_kwargs: dict[str, Any] = {}
    plain: bool = False


Part = Literal["content", "reasoning", "tool_calls"]


class Span(msgspec.Struct, frozen=True):
    """A stretch `[start, end)` of a rendered text, in characters; the spans of a text tile it.

    `message` is the index of the message it comes from, -1 for the template's own text, whose role is
    `template`. `generated` is true for what the model has to emit at inference: the text of an assistant's
    answer and, as a span of its own with `end_of_turn` set, the token that ends it. `part` is the field of the
    message that the text of a generated span belongs to, with the marks that the template writes around it.
    `train` is what the message says of itself, None where it says nothing.
    """

    start: int
    end: int
    message: int
    role: str
    generated: bool = False
    end_of_turn: bool = False
    part: Part = "content"
    train: bool | None = None


class Rendered:
    """A conversation as the model reads it, with the spans that tile the text.

    Renders that share a `shape` object have equal spans except for `start` and `end`; None means unknown. `spans` may
    be a callable, called on first use, because the spans of most rows are never needed.
    """

    __slots__ = ("_spans", "shape", "text")

    def __init__(
        self, text: str, spans: list[Span] | Callable[[], list[Span]], shape: "Skeleton | None" = None
    ) -> None:
        self.text = text
        self.shape = shape
        self._spans = spans

    @property
    def spans(self) -> list[Span]:
        """The spans, in order."""
        if not isinstance(self._spans, list):
            self._spans = self._spans()
        return self._spans


class Sample(msgspec.Struct, frozen=True):
    """Token ids with, for each, whether it carries loss (1) or not (0)."""

    ids: list[int]
    trained: list[int]
    origin: str


class Prompt(msgspec.Struct, frozen=True):
    """A held-out conversation without its last answer: what the model is asked, and what was expected."""

    origin: str
    messages: list[Message]
    ids: list[int]
    reference: str


class Grade(msgspec.Struct, frozen=True):
    """What a judge says of one answer: a score from 0 to 1 and the reason for it."""

    score: float
    reason: str


class Scores(msgspec.Struct, frozen=True):
    """What an evaluator found: metrics by name, and the samples they were computed from."""

    metrics: dict[str, float]
    samples: list[dict[str, Any]] = []


Noted = Literal["dropped", "filtered", "changed", "added"]
"""What a transform did: lost a row, left it out on purpose, changed it, or made one more of it."""


class Note(Protocol):
    """Writes to the ledger what a transform did to a row."""

    def __call__(self, origin: str, action: Noted, reason: str, detail: str = "", /) -> None:
        """`reason` groups entries, so there are few of them; `detail` says what is particular to this row."""


def _no_tokenizer(text: str) -> int:
    raise UserError("tokens cannot be counted here: this context has no tokenizer")


class Context(msgspec.Struct, frozen=True):
    """What a transform works in: the split at hand, the recipe's seed, and a way to see the other splits.

    `conversations(split)` yields the conversations of another split as they reach this transform; `count(text)`
    is the number of tokens of a text under the recipe's tokenizer.
    """

    split: str
    splits: Sequence[str]
    seed: int
    note: Note
    conversations: Callable[[str], Iterator[Conversation]]
    count: Callable[[str], int] = _no_tokenizer


Emit = Callable[[dict[str, Any]], None]
"""Sends one event (a JSON object with the key `event`) to the parent process."""


class Source(Protocol):
    """Yields rows, split by split."""

    def splits(self) -> Sequence[str]:
        """Names of the splits there are, among `train`, `val` and `test`."""

    def rows(self, split: str) -> Iterator[Row | BadRow]:
        """The rows of one split, in a fixed order."""

    def fingerprint(self) -> str:
        """A hash that changes when any row does."""

    def locate(self, origin: str) -> str:
        """The origin as a place that a person can open."""


class Transform(Protocol):
    """Conversations in; fewer, more or changed ones out.

    One that reads files of its own has a second method, `fingerprint() -> str`: a hash that changes when they do.
    """

    def apply(self, conversations: Iterable[Conversation], context: Context) -> Iterator[Conversation]:
        """Yields what is kept, and notes every conversation that it leaves out or changes: `context.note(…)`."""


class Formatter(Protocol):
    """Turns one row into a conversation."""

    def format(self, row: Row) -> Conversation:
        """Raises RowError, with the reason, for a row that does not fit."""


class Masker(Protocol):
    """Says which spans are trained.

    It may have a second method, `narrow(text: str) -> Sequence[tuple[int, int]]`: given the text of a chosen
    span, the stretches `[start, end)` of it that are trained. Without it the whole span is. A third,
    `reads_train`, true where it acts on `Span.train`; without it, rows whose flags ask for something else than it
    chooses are refused.
    """

    def choose(self, spans: Sequence[Span]) -> Sequence[bool]:
        """One flag a span, in order.

        It may depend on anything but `start` and `end`: conversations of one shape are asked about once.
        """


class Model(Protocol):
    """A loaded model, as evaluators see it."""

    def generate(self, prompts: Sequence[Sequence[int]], max_new_tokens: int, batch_size: int) -> list[list[int]]:
        """Greedy continuations, one a prompt, without the end-of-turn token; `batch_size` prompts at a time."""

    def decode(self, ids: Sequence[int]) -> str:
        """The text of token ids, special tokens left out."""

    def losses(self, split: str) -> "LossSums | None":
        """Sums over the trained tokens of a prepared split; None where there is no such split."""


class LossSums(msgspec.Struct, frozen=True):
    """Sums over trained tokens: their number, their negative log-likelihood (nats), how many were argmax."""

    tokens: int
    loss: float
    correct: int


class Shape(msgspec.Struct, frozen=True):
    """What one forward pass is given: the lengths of its rows in tokens, and how many of these tokens are trained.

    Packed rows are laid end to end; others are padded to the longest.
    """

    lengths: list[int]
    trained: int
    packed: bool = False


class Footprint(msgspec.Struct, frozen=True):
    """What training takes: parameters, and bytes of memory by moment and part (`memory[moment][part]`).

    `device` is `cpu`, whose memory is that of the whole process, or `cuda`. `checkpoint` is its size on disk.
    `notes` say what a reader has to know of these numbers.
    """

    trained: int
    frozen: int
    device: str
    memory: dict[str, dict[str, int]]
    checkpoint: int
    notes: list[str] = []


class Backend(Protocol):
    """Loads, trains and saves a model. `train` and `load` run in a worker process.

    One that has an attribute `launches = True` minds `recipe.launch`, or refuses it in its `check`: its `train` is
    called in each of the processes at once, with the variables that torchrun sets (RANK, WORLD_SIZE, LOCAL_RANK,
    MASTER_ADDR, MASTER_PORT), and ends in all of them together. Any other trains in one process.
    """

    def train(self, recipe: "Recipe", run: Path, emit: Emit) -> None:
        """Trains on `run`/prepared and leaves weights, tokenizer and template in `run`/model.

        Goes on from what an attempt before has left in `run`/checkpoints, and emits `{"event": "resumed", "step": …}`
        before its first step, so that curves show each step once; or starts again. SIGTERM asks it to save and raise
        Interrupted; one that does not listen is ended. `{"event": "validating", "step": …}` before an evaluation tells
        which batch was too large where memory runs out.
        """

    def load(self, recipe: "Recipe", run: Path, which: Literal["base", "tuned"]) -> Model:
        """The model before or after training."""


class Evaluator(Protocol):
    """Scores a model."""

    def score(self, model: Model, prompts: Mapping[str, Sequence[Prompt]]) -> Scores:
        """`prompts` holds the held-out prompts of each split that has any.

        A sample has `origin`, `messages`, `reference` and `answer`, and what else the report should show. Asked
        twice, as for the base and the tuned model, it gives samples of the same prompts in the same order.
        """


class Judge(Protocol):
    """Grades one answer."""

    def grade(self, prompt: Prompt, answer: str) -> Grade:
        """A grade for the answer to a prompt."""


class Exporter(Protocol):
    """Turns the result of a run into something to deploy."""

    def export(self, recipe: "Recipe", run: Path, emit: Emit) -> dict[str, Any]:
        """Writes below `run`/export and returns facts for the report."""


class Plans(Protocol):
    """What a backend may offer for `sftrun plan` and `train.batch_size: auto`; it is called in a worker process."""

    def estimate(self, recipe: "Recipe", training: Shape, evaluation: Shape | None) -> Footprint:
        """What a recipe takes, without loading weights, when batches have these shapes; the largest ones count.

        It is asked about changed recipes too: smaller batches, checkpointing, adapters.
        """


class Checks(Protocol):
    """What any component may offer beside its work."""

    def check(self, recipe: "Recipe") -> Iterable[Problem]:
        """Problems seen from the recipe alone, said by `sftrun validate`."""

    def ready(self, recipe: "Recipe") -> Iterable[Problem]:
        """Problems on this machine (a file or a package that is missing), said before a run starts."""

    def prepared(self, recipe: "Recipe", run: Path) -> Iterable[Problem]:
        """Problems with the prepared data in `run`, said before anything is trained."""
