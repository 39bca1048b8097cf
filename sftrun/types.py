"""The data types that pass between components."""

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Literal

import msgspec

if TYPE_CHECKING:
    from sftrun.data.masks.skeleton import Skeleton

Message = dict[str, Any]
"""One message in the OpenAI chat shape: `role`, `content`, and any other key that the template reads.

`train` is true if the message is to be trained on, false if not. Maskers read it; no template sees it.
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
    """Messages for a chat template, with its tools and other arguments.

    With `plain`, no template is used: the contents of the messages are joined as they are, between the
    tokenizer's BOS (if it adds one) and its EOS; the text of the last message, and EOS, are generated.
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
    answer and, as a separate span with `end_of_turn` set, the token that ends it. `part` is the field of the
    message that the text of a generated span belongs to, with the marks that the template writes around it.
    `train` is the flag `train` of the message, None if it has none.
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
    """Token ids, and a flag for each: 1 if the token is trained, else 0."""

    ids: list[int]
    trained: list[int]
    origin: str


class Prompt(msgspec.Struct, frozen=True):
    """A held-out conversation without its last answer, which is the reference."""

    origin: str
    messages: list[Message]
    ids: list[int]
    reference: str


class Grade(msgspec.Struct, frozen=True):
    """The grade of one answer: a score from 0 to 1, and the reason for it."""

    score: float
    reason: str


class Measure(msgspec.Struct, frozen=True):
    """The value of a metric, with its direction.

    `range` has the lowest and the highest value, None for no bound. `per_row` is False for a metric that is computed
    on the corpus and not averaged over rows; `rows` counts the rows that it was computed from.
    """

    value: float
    higher_is_better: bool = True
    range: tuple[float | None, float | None] = (0.0, 1.0)
    per_row: bool = True
    rows: int | None = None


class Scores(msgspec.Struct, frozen=True):
    """The result of an evaluator: metrics by name, and the samples they were computed from.

    A metric that is a bare number has no direction: the report shows it, but does not call it better or worse.
    """

    metrics: Mapping[str, float | Measure]
    samples: list[dict[str, Any]] = []


NoteAction = Literal["dropped", "filtered", "changed", "added"]
"""The action of a transform on a row: it dropped, filtered (on purpose) or changed it, or added one from it."""


class LossSums(msgspec.Struct, frozen=True):
    """Sums over trained tokens: their number, their negative log-likelihood (nats), and how many were the argmax."""

    tokens: int
    loss: float
    correct: int


class BatchShape(msgspec.Struct, frozen=True):
    """The batch of one forward pass: the lengths of its rows in tokens, and the number of trained tokens.

    Packed rows are laid end to end; others are padded to the longest.
    """

    lengths: list[int]
    trained: int
    packed: bool = False


class Footprint(msgspec.Struct, frozen=True):
    """The needs of a training: parameters, and bytes of memory by moment and part (`memory[moment][part]`).

    `device` is `cuda`, or `cpu`, for which memory is the memory of the whole process. `checkpoint` is the size of a
    checkpoint on disk. `notes` explain the numbers to the reader.
    """

    trained: int
    frozen: int
    device: str
    memory: dict[str, dict[str, int]]
    checkpoint: int
    notes: list[str] = []


class Decoding(msgspec.Struct, frozen=True, kw_only=True):
    """How answers are generated: greedily at temperature 0, else sampled from `top_k` tokens or `top_p` of the
    probability.

    `stop` are texts that end an answer, and are not part of it. `batch_size` prompts are answered at a time; except for
    rounding it does not change greedy answers. `seed` makes sampling repeatable.
    """

    max_new_tokens: int = 256
    batch_size: int = 16
    temperature: float = 0.0
    top_p: float | None = None
    top_k: int | None = None
    stop: tuple[str, ...] = ()
    seed: int = 0


class Likelihood(msgspec.Struct, frozen=True):
    """The log-likelihood of a continuation in nats, as a sum and by token; `greedy` is True if greedy decoding gives
    the continuation.
    """

    sum: float
    tokens: list[float]
    greedy: bool
