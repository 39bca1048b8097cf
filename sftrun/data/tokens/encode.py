"""Rendered text and chosen spans to samples: which token ids carry loss, for a whole batch at once."""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from sftrun.data.tokens import anchors, offsets
from sftrun.data.tokens.offsets import Counts, Tokens
from sftrun.data.tokens.sections import Sections
from sftrun.data.tokens.tokenizer import Tokenizer
from sftrun.errors import UserError
from sftrun.kinds import Masker
from sftrun.types import Rendered, Span

MAX_PLANS = 4096


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
            row: offsets.tokens(rows[row], offsets.stretches(self.masker, rows[row]), encoding, self.tokenizer)[0]
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
                row.shape, row.spans, flags, _refusal(row.spans, flags, getattr(self.masker, "honours_flags", False))
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


def _refusal(spans: Sequence[Span], flags: Sequence[bool], honours_flags: bool) -> str | None:
    """Where the `train` of a message and what the masker chose are at odds."""
    chosen = {span.message for span, flag in zip(spans, flags, strict=True) if flag}
    answers = {span.message for span in spans if span.generated}
    for span in spans:
        asked, who = span.train, f"message {span.message} ({span.role})"
        if asked and span.message not in answers | chosen:
            return f"{who} says train: true, but only answers are trained by it; use masker: roles"
        if asked is not None and asked != (span.message in chosen) and not honours_flags:
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
