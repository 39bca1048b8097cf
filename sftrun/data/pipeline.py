"""The data line: rows of a source to samples, one split at a time, a batch at a time."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple

import msgspec
import numpy as np

from sftrun.data.ledger import Entry
from sftrun.data.length import Fit, Kept
from sftrun.data.masks.crosscheck import CrossCheck
from sftrun.data.masks.render import Renderer
from sftrun.data.tokens import encode, offsets, tokenizer
from sftrun.errors import Place, Problem, RowError, UserError
from sftrun.kinds import Context
from sftrun.recipe.model import Recipe
from sftrun.registry import Registry
from sftrun.types import BadRow, Conversation, NoteAction, Rendered, Sample

BATCH = 1024  # rows at most; two batches are in memory at once
CHARACTERS = 1 << 19  # of a batch; while they are encoded, each takes some 30 bytes

Pair = tuple[Conversation, Rendered]
Read = tuple[list[Pair], "Future[tuple[Any, Any]]"]


class Batch(NamedTuple):
    """Samples of a batch of conversations: ids and trained flags end to end, and how long each sample is.

    `of` has for each sample the index of its conversation in `pairs`, and the token of that at which it begins.
    """

    ids: Any
    trained: Any
    lengths: Any
    of: list[tuple[int, int]]
    origins: list[str]
    pairs: list[Pair]
    counts: offsets.Counts


class Item(msgspec.Struct, frozen=True):
    """One sample, with what it was made from."""

    sample: Sample
    conversation: Conversation
    rendered: Rendered
    pieces: list[tuple[str, bool]]


class Line:
    """The components of a recipe's data line. `problems` collects what is fatal, `add` takes ledger entries."""

    def __init__(self, recipe: Recipe, registry: Registry, add: Callable[[Entry], None] = lambda entry: None) -> None:
        self.recipe = recipe
        self.add = add
        self.problems: list[Problem] = []
        self.rows_in: dict[str, int] = {}
        self.source = registry.create("source", recipe.source)
        self.transforms = [registry.create("transform", use) for use in recipe.transforms]
        self.formatter = registry.create("formatter", recipe.formatter)
        self.masker = registry.create("masker", recipe.masker)
        self.tokenizer = tokenizer.load_tokenizer(recipe.model)
        self.renderer = Renderer(
            self.tokenizer.template, eot_token=recipe.model.eot_token, adds_bos=self.tokenizer.adds_bos
        )
        self.crosscheck = CrossCheck(self.renderer)
        refused = self.renderer.check()
        if any(problem.severity == "error" for problem in refused):
            raise UserError(refused)
        self.warnings = refused
        self.encoder = encode.Encoder(self.tokenizer, self.masker, recipe.model.max_seq_len)

    def items(self, split: str) -> Iterator[Item]:
        """Every sample of a split, one at a time, with its text cut where training starts and stops."""
        for batch in self.batches(split):
            yield from self.taken(batch, range(len(batch.origins)))

    def taken(self, batch: Batch, chosen: Sequence[int]) -> Iterator[Item]:
        """Some samples of a batch."""
        ends = np.cumsum(batch.lengths)
        texts = [batch.pairs[batch.of[index][0]][1].text for index in chosen]
        for index, text, encoding in zip(chosen, texts, self.tokenizer.encode(texts), strict=True):
            (row, first), end, size = batch.of[index], int(ends[index]), int(batch.lengths[index])
            ids, trained = batch.ids[end - size : end], batch.trained[end - size : end]
            starts, stops = self.tokenizer.bounds(encoding, text)
            bounds = (starts[first : first + size], stops[first : first + size])
            sample = Sample(ids.tolist(), trained.astype(int).tolist(), batch.origins[index])
            yield Item(sample, *batch.pairs[row], offsets.pieces(text, bounds, trained))

    def batches(self, split: str) -> Iterator[Batch]:
        """Every sample of a split that can be trained on; what cannot is in the ledger or in `problems`.

        One batch is read by the tokenizer, in threads of its own, while the rows of the next are rendered.
        """
        self.rows_in[split] = 0
        pairs = self._rendered(self._transformed(split, len(self.transforms), self._bad, self.add, self.rows_in), split)
        waiting: Read | None = None
        with ThreadPoolExecutor(1) as pool:
            for batch in _batched(pairs):
                reading = (batch, pool.submit(self.encoder.read, [rendered.text for _, rendered in batch]))
                if waiting:
                    yield self._fitted(waiting, split)
                waiting = reading
            if waiting:
                yield self._fitted(waiting, split)

    def _fitted(self, waiting: Read, split: str) -> Batch:
        pairs, reading = waiting
        rows = [rendered for _, rendered in pairs]
        encoded = self.encoder.encode(rows, reading.result())
        fit = Fit(self.recipe, split, self.add, self._fatal)
        counts = encoded.counts
        kept: dict[int, list[Kept]] = {}
        for row, tokens in encoded.others.items():
            kept[row] = fit.row(pairs[row][0].origin, tokens)
            for each in kept[row]:
                counts.merge(each.counts)
        return _assembled(pairs, encoded, kept)

    def _transformed(
        self,
        split: str,
        count: int,
        bad: Callable[[str, str, str], None],
        add: Callable[[Entry], None],
        rows_in: dict[str, int],
    ) -> Iterable[Conversation]:
        """The conversations of a split after the first `count` transforms."""
        conversations: Iterable[Conversation] = self._conversations(split, bad, rows_in)
        for index in range(count):
            use = self.recipe.transforms[index]
            conversations = _applied(use.use, self.transforms[index], conversations, self._context(split, index, add))
        return conversations

    def _context(self, split: str, index: int, add: Callable[[Entry], None]) -> Context:
        def note(origin: str, action: NoteAction, reason: str, detail: str = "", /) -> None:
            add(Entry(split, origin, action, reason, detail))

        def others(other: str) -> Iterator[Conversation]:
            # what is wrong with those rows is said when their own turn comes
            return iter(self._transformed(other, index, lambda *bad: None, lambda entry: None, {}))

        return Context(split, self.source.splits(), self.recipe.seed, note, others, self.tokenizer.count)

    def _conversations(
        self, split: str, bad: Callable[[str, str, str], None], rows_in: dict[str, int]
    ) -> Iterator[Conversation]:
        for number, row in enumerate(self.source.rows(split), 1):
            rows_in[split] = number
            if isinstance(row, BadRow):
                bad(split, row.origin, row.reason)
                continue
            try:
                yield self.formatter.format(row)
            except RowError as error:
                bad(split, row.origin, str(error))

    def _rendered(self, conversations: Iterable[Conversation], split: str) -> Iterator[Pair]:
        for conversation in conversations:
            try:
                rendered = self.renderer.render(conversation)
                if refusal := self.encoder.refusal(rendered):
                    raise RowError(refusal)
                self.crosscheck.see(conversation, rendered)
                yield conversation, rendered
            except RowError as error:
                self._bad(split, conversation.origin, str(error))

    def _bad(self, split: str, origin: str, reason: str) -> None:
        if self.recipe.data.on_bad_row == "error":
            self._fatal(origin, reason)
        else:
            self.add(Entry(split, origin, "dropped", "bad row", reason))

    def _fatal(self, origin: str, message: str) -> None:
        self.problems.append(Problem(message, Place(self.source.locate(origin))))


def _batched(pairs: Iterable[Pair]) -> Iterator[list[Pair]]:
    batch: list[Pair] = []
    size = 0
    for pair in pairs:
        batch.append(pair)
        size += len(pair[1].text)
        if len(batch) == BATCH or size >= CHARACTERS:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _applied(name: str, transform: Any, talks: Iterable[Conversation], context: Context) -> Iterator[Conversation]:
    try:
        yield from transform.apply(talks, context)
    except RowError as error:  # it has stopped, so no row after this one would be seen
        raise UserError(f"the transform {name} stopped: {error}") from error


def _assembled(pairs: list[Pair], encoded: encode.Encoded, kept: dict[int, list[Kept]]) -> Batch:
    """The samples of a batch in the order of its rows."""
    starts = encoded.starts
    if encoded.plain.all():
        origins = [conversation.origin for conversation, _ in pairs]
        of = [(row, 0) for row in range(len(pairs))]
        return Batch(encoded.ids, encoded.trained, np.diff(starts), of, origins, pairs, encoded.counts)
    samples: list[tuple[Any, Any, tuple[int, int], str]] = []
    for row, (conversation, _) in enumerate(pairs):
        if encoded.plain[row]:
            part = slice(starts[row], starts[row + 1])
            samples.append((encoded.ids[part], encoded.trained[part], (row, 0), conversation.origin))
        else:
            samples += [(each.ids, each.trained, (row, each.first), each.origin) for each in kept[row]]
    ids = np.concatenate([encoded.ids[:0], *(sample[0] for sample in samples)])
    trained = np.concatenate([encoded.trained[:0], *(sample[1] for sample in samples)])
    lengths = np.array([len(sample[0]) for sample in samples], dtype=np.int64)
    of, origins = [sample[2] for sample in samples], [sample[3] for sample in samples]
    return Batch(ids, trained, lengths, of, origins, pairs, encoded.counts)
