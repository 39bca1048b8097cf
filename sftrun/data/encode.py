"""Rendered text and chosen spans to samples: which token ids carry loss, for a whole batch at once."""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec
import numpy as np

from sftrun.data import anchors
from sftrun.data.sections import Sections
from sftrun.data.tokenizer import Tokenizer
from sftrun.errors import UserError
from sftrun.types import Masker, Rendered, Span

if TYPE_CHECKING:
    from tokenizers import Encoding

MAX_PLANS = 4096

Stretch = tuple[int, int]


class Counts(msgspec.Struct):
    """What samples hold: tokens and trained tokens per role, and what became of turn ends and borders.

    Of `turns` trained turns, `ended` have their end-of-turn trained and `cut` lost it to truncation; `straddling`
    tokens lie partly in a trained span.
    """

    tokens: dict[str, int] = {}
    trained: dict[str, int] = {}
    turns: int = 0
    ended: int = 0
    cut: int = 0
    straddling: int = 0

    def add(self, role: str, tokens: int, trained: int) -> None:
        """Adds tokens of one role."""
        self.tokens[role] = self.tokens.get(role, 0) + tokens
        self.trained[role] = self.trained.get(role, 0) + trained

    def merge(self, other: "Counts") -> None:
        """Adds all that another one counted."""
        for role, tokens in other.tokens.items():
            self.add(role, tokens, other.trained[role])
        for name in ("turns", "ended", "cut", "straddling"):
            setattr(self, name, getattr(self, name) + getattr(other, name))


class Tokens(NamedTuple):
    """One text as tokens: ids, whether each is trained and the index of the span that it begins in; [tokens].

    `ends` [spans] says which spans are the ends of trained turns.
    """

    ids: Any
    trained: Any
    span: Any
    spans: list[Span]
    ends: list[bool]
    straddling: int


class Encoded(NamedTuple):
    """A batch of texts: ids and trained of the plain rows end to end, `starts` [rows + 1], and all other rows.

    `plain` [rows] says which rows the columns hold; `counts` is about those; each other row is in `others`.
    """

    ids: Any
    trained: Any
    starts: Any
    plain: Any
    counts: Counts
    others: dict[int, Tokens]


class Plan(NamedTuple):
    """What is known of one shape: its spans, which of them are trained, and why it is refused, if so."""

    shape: Any
    spans: list[Span]
    flags: list[bool]
    refusal: str | None


class _Found:
    """The special tokens of a batch, and for each set of them where those are."""

    def __init__(self, ids: Any, starts: Any, tokenizer: Tokenizer) -> None:
        self._batch = (ids, starts)
        self._all = anchors.places(ids, starts, tokenizer)
        self._own: dict[frozenset[str], anchors.Places] = {}

    def own(self, known: anchors.Anchors) -> anchors.Places:
        """Only the tokens that the template itself writes in a shape."""
        if known.texts not in self._own:
            self._own[known.texts] = anchors.only(self._all, *self._batch, known.specials)
        return self._own[known.texts]


class Encoder:
    """Encodes the rendered rows of one recipe."""

    def __init__(self, tokenizer: Tokenizer, masker: Masker, limit: int) -> None:
        self.tokenizer = tokenizer
        self.masker = masker
        self.limit = limit
        self.narrow = getattr(masker, "narrow", None)
        self.read = Sections(tokenizer).read
        self._plans: dict[int, Plan] = {}
        self._anchors: dict[int, anchors.Anchors | None] = {}

    def encode(self, rows: Sequence[Rendered], read: tuple[Any, Any]) -> Encoded:
        """Finds what is trained in rows whose ids were read."""
        ids, starts = read
        delta = np.zeros(len(ids) + 1, dtype=np.int8)
        plain = np.zeros(len(rows), dtype=np.bool_)
        counts = Counts()
        found = _Found(ids, starts, self.tokenizer)
        short = np.diff(starts) <= self.limit
        for plan, known, members in self._groups(rows):
            own = found.own(known)
            group, shifts = self._shifted(known, rows, members[short[members]], own)
            fits, cuts = anchors.borders(known, (ids, starts, own), group, shifts)
            trains = (np.diff(cuts, axis=1)[:, plan.flags] > 0).any(axis=1)
            _mark(delta, plan, cuts[trains], counts)
            plain[group[fits][trains]] = True
        trained = np.cumsum(delta[:-1], dtype=np.int8).view(np.bool_)
        return Encoded(ids, trained, starts, plain, counts, self._by_offsets(rows, np.flatnonzero(~plain).tolist()))

    def _by_offsets(self, rows: Sequence[Rendered], chosen: Sequence[int]) -> dict[int, Tokens]:
        encodings = self.tokenizer.encode([rows[row].text for row in chosen])
        return {
            row: tokens(rows[row], stretches(self.masker, rows[row]), encoding, self.tokenizer)[0]
            for row, encoding in zip(chosen, encodings, strict=True)
        }

    def _shifted(self, known: anchors.Anchors, rows: Sequence[Rendered], group: Any, own: Any) -> tuple[Any, Any]:
        """The rows that may fit, and how much later in them the template's special tokens come."""
        size = len(known.specials)
        same = own.count[group] == size
        shifts, told = [], []
        for row in group[own.count[group] > size].tolist():
            more = anchors.shift(known, rows[row], self.tokenizer.added_pattern, int(own.count[row]))
            if more is not None:
                shifts.append(more)
                told.append(row)
        all_shifts = np.zeros((int(same.sum()) + len(told), size), dtype=np.int64)
        if told:
            all_shifts[int(same.sum()) :] = shifts
        return np.concatenate([group[same], np.array(told, dtype=np.int64)]), all_shifts

    def refusal(self, row: Rendered) -> str | None:
        """Why a row cannot be trained on: what its messages say of themselves is not what the masker does."""
        return self._plan(row).refusal

    def _plan(self, row: Rendered) -> Plan:
        plan = self._plans.get(id(row.shape)) if row.shape is not None else None
        if plan is None:
            flags = [bool(flag) for flag in self.masker.choose(row.spans)]
            plan = Plan(
                row.shape, row.spans, flags, _refusal(row.spans, flags, getattr(self.masker, "reads_train", False))
            )
            if row.shape is not None:
                self._keep(plan)
        return plan

    def _keep(self, plan: Plan) -> None:
        if len(self._plans) >= MAX_PLANS:
            self._plans.clear()
            self._anchors.clear()
        self._plans[id(plan.shape)] = plan  # which holds the shape, so that no other can have its number

    def _groups(self, rows: Sequence[Rendered]) -> Iterator[tuple[Plan, anchors.Anchors, Any]]:
        """The rows of each shape that has anchors; rows that are trained in parts of spans are left out."""
        groups: dict[int, list[int]] = {}
        for index, row in enumerate(rows):
            if row.shape is not None:
                groups.setdefault(id(row.shape), []).append(index)
        for members in groups.values():
            plan = self._plan(rows[members[0]])
            self._check(plan, rows[members[-1]])
            found = self._find(plan, len(members))
            if found is not None and any(plan.flags):
                whole = [index for index in members if self._is_whole(plan, rows[index])]
                yield plan, found, np.array(whole, dtype=np.int64)

    def _find(self, plan: Plan, rows: int) -> anchors.Anchors | None:
        number = id(plan.shape)
        if number not in self._anchors:
            if rows == 1:
                return None  # to learn its anchors takes longer than the one row
            self._anchors[number] = anchors.learn(plan.shape, self.tokenizer)
        return self._anchors[number]

    def _check(self, plan: Plan, row: Rendered) -> None:
        if [bool(flag) for flag in self.masker.choose(row.spans)] != plan.flags:
            name = type(self.masker).__name__
            raise UserError(
                f"the masker {name} chooses by the position of spans, which differs within a shape",
                hint="choose by role, message and part alone, and give stretches of a text in narrow()",
            )

    def _is_whole(self, plan: Plan, row: Rendered) -> bool:
        """Whether every chosen span of a row is trained from end to end."""
        if self.narrow is None:
            return True
        chosen = [span for span, flag in zip(row.spans, plan.flags, strict=True) if flag and not span.end_of_turn]
        texts = [row.text[span.start : span.end] for span in chosen]
        return all([*self.narrow(text)] == [(0, len(text))] for text in texts)


def _refusal(spans: Sequence[Span], flags: Sequence[bool], reads_train: bool) -> str | None:
    """Where the `train` of a message and what the masker chose are at odds."""
    chosen = {span.message for span, flag in zip(spans, flags, strict=True) if flag}
    answers = {span.message for span in spans if span.generated}
    for span in spans:
        asked, who = span.train, f"message {span.message} ({span.role})"
        if asked and span.message not in answers | chosen:
            return f"{who} says train: true, but only answers are trained by it; use masker: roles"
        if asked is not None and asked != (span.message in chosen) and not reads_train:
            does = "does not train it" if asked else "trains it"
            return f"{who} says train: {str(asked).lower()}, but this masker {does}; use masker: flagged"
    return None


def _mark(delta: Any, plan: Plan, cuts: Any, counts: Counts) -> None:
    """Marks in `delta` where training starts and stops in rows of one shape, and counts their tokens."""
    sizes = np.diff(cuts, axis=1)
    sums = sizes.sum(axis=0)
    for index, (span, flag) in enumerate(zip(plan.spans, plan.flags, strict=True)):
        counts.add(span.role, int(sums[index]), int(sums[index]) if flag else 0)
        if flag:
            full = sizes[:, index] > 0
            delta[cuts[full, index]] += 1
            delta[cuts[full, index + 1]] -= 1
            if span.end_of_turn:
                counts.turns += len(full)
                counts.ended += int(full.sum())


def stretches(masker: Masker, rendered: Rendered) -> list[Stretch]:
    """The stretches `[start, end)` of a rendered text that a masker has trained, in order.

    A turn of whose text nothing is left by `narrow` has no trained end either.
    """
    narrow = getattr(masker, "narrow", None)
    chosen = [span for span, flag in zip(rendered.spans, masker.choose(rendered.spans), strict=True) if flag]
    if narrow is None:
        return [(span.start, span.end) for span in chosen]
    texts = [span for span in chosen if not span.end_of_turn and span.end > span.start]
    inner = {span: [*narrow(rendered.text[span.start : span.end])] for span in texts}
    empty = {span.message for span in texts} - {span.message for span, found in inner.items() if found}
    kept: list[Stretch] = []
    for span in chosen:
        if span in inner:
            kept += [(span.start + start, span.start + end) for start, end in inner[span]]
        elif span.message not in empty:
            kept.append((span.start, span.end))
    return kept


def tokens(
    rendered: Rendered, chosen: Sequence[Stretch], encoding: "Encoding", tokenizer: Tokenizer
) -> tuple[Tokens, tuple[Any, Any]]:
    """One text by the offsets of its tokens, trained where `chosen` says, and these offsets.

    A token is trained when every character of it lies in a chosen stretch. One that straddles the start of an
    answer is not: its first characters belong to the generation prompt, so the model never emits it.
    """
    starts, ends = tokenizer.bounds(encoding, rendered.text)
    marked = np.zeros(len(rendered.text) + 1, dtype=np.int64)
    for start, end in chosen:
        marked[start + 1 : end + 1] = 1
    inside = np.cumsum(marked)
    covered = inside[ends] - inside[starts]
    trained = (covered == ends - starts) & (ends > starts)
    span = np.searchsorted([span.end for span in rendered.spans], starts, side="right")
    span = np.minimum(span, len(rendered.spans) - 1)
    straddling = int(((covered > 0) & ~trained).sum())
    ids = np.asarray(encoding.ids, dtype=np.int32)
    turns = [
        each.end_of_turn and int(inside[each.end] - inside[each.start]) == each.end - each.start
        for each in rendered.spans
    ]
    return Tokens(ids, trained, span, rendered.spans, turns, straddling), (starts, ends)


def counted(row: Tokens, first: int, last: int) -> Counts:
    """What the tokens `[first, last)` of a row hold."""
    counts = Counts({}, {}, straddling=row.straddling)
    size = len(row.spans)
    span, trained = row.span[first:last], row.trained[first:last]
    here = np.bincount(span, minlength=size)
    learned = np.bincount(span, weights=trained, minlength=size).astype(int)
    whole = np.bincount(row.span, minlength=size)
    for index, each in enumerate(row.spans):
        counts.add(each.role, int(here[index]), int(learned[index]))
        if row.ends[index]:
            counts.turns += 1
            counts.ended += int(learned[index] == whole[index] > 0)
            counts.cut += int(here[index] < whole[index])
    return counts


def pieces(text: str, bounds: tuple[Any, Any], trained: Any) -> list[tuple[str, bool]]:
    """The text of tokens cut where training starts and stops, each piece with whether it is trained."""
    starts, ends = bounds
    cuts: list[tuple[str, bool]] = []
    if not len(starts):
        return cuts
    changes = np.flatnonzero(np.diff(trained)) + 1
    edges = [int(starts[0]), *(int(starts[index]) for index in changes), int(ends[-1])]
    flags = [bool(trained[0]), *(bool(trained[index]) for index in changes)]
    for start, end, flag in zip(edges, edges[1:], flags, strict=False):
        if end > start:
            cuts.append((text[start:end], flag))
    return cuts
