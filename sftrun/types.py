"""The nouns that pass between components."""

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Literal

import msgspec

if TYPE_CHECKING:
    from sftrun.data.masks.skeleton import Skeleton

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
    """What an evaluator found: metrics by name, and the samples they were computed from.

    A metric that is a bare number has no direction: the report shows it, and calls it neither better nor worse.
    """

    metrics: Mapping[str, float | Measure]
    samples: list[dict[str, Any]] = []


NoteAction = Literal["dropped", "filtered", "changed", "added"]
"""What a transform did: lost a row, left it out on purpose, changed it, or made one more of it."""


class LossSums(msgspec.Struct, frozen=True):
    """Sums over trained tokens: their number, their negative log-likelihood (nats), how many were argmax."""

    tokens: int
    loss: float
    correct: int


class BatchShape(msgspec.Struct, frozen=True):
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


class Decoding(msgspec.Struct, frozen=True, kw_only=True):
    """How answers are generated: greedily at temperature 0, else sampled from `top_k` tokens or `top_p` of the
    probability.

    `stop` are texts that end an answer, and are not part of it. `batch_size` prompts are answered at a time; it changes
    no greedy answer but for rounding. `seed` makes sampling repeatable.
    """

    max_new_tokens: int = 256
    batch_size: int = 16
    temperature: float = 0.0
    top_p: float | None = None
    top_k: int | None = None
    stop: tuple[str, ...] = ()
    seed: int = 0


class Likelihood(msgspec.Struct, frozen=True):
    """The log-likelihood of a continuation in nats: the sum, that of each token, and whether greedy decoding gives
    it.
    """

    sum: float
    tokens: list[float]
    greedy: bool
