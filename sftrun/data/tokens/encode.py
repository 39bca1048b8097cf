"""Encoding: finds the token ids that carry loss, for a batch of rendered texts at once."""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from sftrun.data.masks.skeleton import Skeleton
from sftrun.data.tokens import anchors, offsets
from sftrun.data.tokens.offsets import Counts, TokenizedText
from sftrun.data.tokens.sections import Sections
from sftrun.data.tokens.tokenizer import Tokenizer
from sftrun.errors import UserError
from sftrun.kinds import Masker
from sftrun.types import Rendered, Span

MAX_PLANS = 4096  # shapes of conversation remembered, so that memory is bounded


class Encoded(NamedTuple):
    """A batch of texts: ids and trained flags of the fast rows end to end, `starts` [rows + 1], and the other rows.

    `fast` [rows] marks the rows that anchors placed; `counts` is about these rows. Each other row is in `others`.
    """

    ids: Any
    trained: Any
    starts: Any
    fast: Any
    counts: Counts
    others: dict[int, TokenizedText]


class ShapePlan(NamedTuple):
    """A shape of conversation with its spans, the trained flag of each, and the reason if the shape is refused."""

    shape: Skeleton | None
    spans: list[Span]
    flags: list[bool]
    refusal: str | None


class _BatchTokens:
    """The special tokens of a batch, and a cached selection of them for each set of anchors."""

    def __init__(self, ids: Any, starts: Any, tokenizer: Tokenizer) -> None:
        self._batch = (ids, starts)
        self._all = anchors.find_special_tokens(ids, starts, tokenizer)
        self._own: dict[frozenset[str], anchors.SpecialTokens] = {}

    def select(self, known: anchors.Anchors) -> anchors.SpecialTokens:
        """Returns the special tokens that the template itself writes in a shape."""
        if known.texts not in self._own:
            self._own[known.texts] = anchors.select_tokens(self._all, *self._batch, known.specials)
        return self._own[known.texts]


class Encoder:
    """An encoder of the rendered rows of one recipe."""

    def __init__(self, tokenizer: Tokenizer, masker: Masker, limit: int) -> None:
        self.tokenizer = tokenizer
        self.masker = masker
        self.limit = limit
        self.narrow = getattr(masker, "narrow", None)
        self.tokenize = Sections(tokenizer).tokenize
        self._plans: dict[int, ShapePlan] = {}
        self._anchors: dict[int, anchors.Anchors | None] = {}

    def encode(self, rows: Sequence[Rendered], tokenized: tuple[Any, Any]) -> Encoded:
        """Finds the trained tokens of rows whose ids are known."""
        ids, starts = tokenized
        delta = np.zeros(len(ids) + 1, dtype=np.int8)
        fast = np.zeros(len(rows), dtype=np.bool_)
        counts = Counts()
        batch_tokens = _BatchTokens(ids, starts, self.tokenizer)
        short = np.diff(starts) <= self.limit
        for plan, known, members in self._group_by_shape(rows):
            own = batch_tokens.select(known)
            group, shifts = self._find_shifts(known, rows, members[short[members]], own)
            fits, cuts = anchors.find_borders(known, (ids, starts, own), group, shifts)
            trains = (np.diff(cuts, axis=1)[:, plan.flags] > 0).any(axis=1)
            _mark_trained(delta, plan, cuts[trains], counts)
            fast[group[fits][trains]] = True
        trained = np.cumsum(delta[:-1], dtype=np.int8).view(np.bool_)
        return Encoded(
            ids, trained, starts, fast, counts, self._encode_by_offsets(rows, np.flatnonzero(~fast).tolist())
        )

    def _encode_by_offsets(self, rows: Sequence[Rendered], chosen: Sequence[int]) -> dict[int, TokenizedText]:
        encodings = self.tokenizer.encode([rows[row].text for row in chosen])
        return {
            row: offsets.mark_tokens(
                rows[row], offsets.choose_stretches(self.masker, rows[row]), encoding, self.tokenizer
            )[0]
            for row, encoding in zip(chosen, encodings, strict=True)
        }

    def _find_shifts(self, known: anchors.Anchors, rows: Sequence[Rendered], group: Any, own: Any) -> tuple[Any, Any]:
        """Returns the rows that may fit, and how many tokens later the template's special tokens come in them."""
        size = len(known.specials)
        same = own.count[group] == size
        shifts, shifted_rows = [], []
        for row in group[own.count[group] > size].tolist():
            more = anchors.find_shifts(known, rows[row], self.tokenizer.added_pattern, int(own.count[row]))
            if more is not None:
                shifts.append(more)
                shifted_rows.append(row)
        all_shifts = np.zeros((int(same.sum()) + len(shifted_rows), size), dtype=np.int64)
        if shifted_rows:
            all_shifts[int(same.sum()) :] = shifts
        return np.concatenate([group[same], np.array(shifted_rows, dtype=np.int64)]), all_shifts

    def find_refusal(self, row: Rendered) -> str | None:
        """Returns why a row is refused: a message's `train` contradicts the masker. None if it does not."""
        return self._get_plan(row).refusal

    def find_trained_answers(self, row: Rendered) -> set[int]:
        """Returns the messages of a row whose generated text, or its end of turn, is trained."""
        flags = self._get_plan(row).flags
        return {span.message for span, flag in zip(row.spans, flags, strict=True) if flag and span.generated}

    def _get_plan(self, row: Rendered) -> ShapePlan:
        plan = self._plans.get(id(row.shape)) if row.shape is not None else None
        if plan is None:
            flags = [bool(flag) for flag in self.masker.choose(row.spans)]
            plan = ShapePlan(
                row.shape,
                row.spans,
                flags,
                _find_refusal(row.spans, flags, getattr(self.masker, "honours_flags", False)),
            )
            if row.shape is not None:
                self._remember(plan)
        return plan

    def _remember(self, plan: ShapePlan) -> None:
        if len(self._plans) >= MAX_PLANS:
            self._plans.clear()
            self._anchors.clear()
        self._plans[id(plan.shape)] = plan  # the plan keeps the shape alive, so that its id stays unique

    def _group_by_shape(self, rows: Sequence[Rendered]) -> Iterator[tuple[ShapePlan, anchors.Anchors, Any]]:
        """Yields the rows of each shape with anchors, without the rows that are trained in parts of spans."""
        groups: dict[int, list[int]] = {}
        for index, row in enumerate(rows):
            if row.shape is not None:
                groups.setdefault(id(row.shape), []).append(index)
        for members in groups.values():
            plan = self._get_plan(rows[members[0]])
            self._check_masker(plan, rows[members[-1]])
            found = self._get_anchors(plan, len(members))
            if found is not None and any(plan.flags):
                fully_trained = [index for index in members if self._is_fully_trained(plan, rows[index])]
                yield plan, found, np.array(fully_trained, dtype=np.int64)

    def _get_anchors(self, plan: ShapePlan, rows: int) -> anchors.Anchors | None:
        number = id(plan.shape)
        if number not in self._anchors:
            if rows == 1 or plan.shape is None:
                return None  # learning the anchors takes longer than encoding one row by offsets
            self._anchors[number] = anchors.learn_anchors(plan.shape, self.tokenizer)
        return self._anchors[number]

    def _check_masker(self, plan: ShapePlan, row: Rendered) -> None:
        if [bool(flag) for flag in self.masker.choose(row.spans)] != plan.flags:
            name = type(self.masker).__name__
            raise UserError(
                f"the masker {name} chooses by the position of spans, which differs between rows of one shape",
                hint="let choose() decide by role, message and part, and return stretches of a text from narrow()",
            )

    def _is_fully_trained(self, plan: ShapePlan, row: Rendered) -> bool:
        """Returns True if every chosen span of a row is trained from end to end."""
        if self.narrow is None:
            return True
        chosen = [span for span, flag in zip(row.spans, plan.flags, strict=True) if flag and not span.end_of_turn]
        texts = [row.text[span.start : span.end] for span in chosen]
        return all([*self.narrow(text)] == [(0, len(text))] for text in texts)


def _find_refusal(spans: Sequence[Span], flags: Sequence[bool], honours_flags: bool) -> str | None:
    """Returns the contradiction between the `train` of a message and the masker's choice, if any."""
    chosen = {span.message for span, flag in zip(spans, flags, strict=True) if flag}
    answers = {span.message for span in spans if span.generated}
    for span in spans:
        asked, who = span.train, f"message {span.message} ({span.role})"
        if asked and span.message not in answers | chosen:
            return f"{who} has train: true, but that key only works on answers; use masker: roles"
        if asked is not None and asked != (span.message in chosen) and not honours_flags:
            does = "does not train it" if asked else "trains it"
            return f"{who} has train: {str(asked).lower()}, but this masker {does}; use masker: flagged"
    return None


def _mark_trained(delta: Any, plan: ShapePlan, cuts: Any, counts: Counts) -> None:
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
