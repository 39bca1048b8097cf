"""The data line: rows of a source to samples, one split at a time."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from typing import Any

import msgspec

from sftrun.data import encode, tokenizer
from sftrun.data.ledger import Entry
from sftrun.data.render import Renderer
from sftrun.errors import Place, Problem, RowError, UserError
from sftrun.options import as_use
from sftrun.recipe.model import Recipe
from sftrun.registry import Registry
from sftrun.types import BadRow, Context, Conversation, Rendered, Sample

BATCH = 512


class Item(msgspec.Struct, frozen=True):
    """One sample, with what it was made from."""

    sample: Sample
    counts: encode.Counts
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
        self.source = registry.create("source", as_use(recipe.source))
        self.transforms = [registry.create("transform", as_use(use)) for use in recipe.transforms]
        self.formatter = registry.create("formatter", as_use(recipe.formatter))
        self.masker = registry.create("masker", as_use(recipe.masker))
        self.tokenizer = tokenizer.load_tokenizer(recipe.model)
        self.renderer = Renderer(self.tokenizer.template, eot_token=recipe.model.eot_token)
        refused = self.renderer.check()
        if any(problem.severity == "error" for problem in refused):
            raise UserError(refused)
        self.warnings = refused

    def samples(self, split: str) -> Iterator[Item]:
        """Every sample of a split that can be trained on; what cannot is in the ledger or in `problems`."""
        conversations = self._transformed(split, len(self.transforms), self.add)
        yield from self._encoded(self._rendered(conversations, split), split)

    def _transformed(self, split: str, count: int, add: Callable[[Entry], None]) -> Iterable[Conversation]:
        """The conversations of a split after the first `count` transforms."""
        conversations: Iterable[Conversation] = self._conversations(split)
        for index in range(count):
            use = as_use(self.recipe.transforms[index])
            conversations = _applied(use.use, self.transforms[index], conversations, self._context(split, index, add))
        return conversations

    def _context(self, split: str, index: int, add: Callable[[Entry], None]) -> Context:
        def note(origin: str, action: Any, reason: str) -> None:
            add(Entry(split, origin, action, reason))

        def others(other: str) -> Iterator[Conversation]:
            return iter(self._transformed(other, index, lambda entry: None))

        return Context(split, self.source.splits(), self.recipe.seed, note, others)

    def _conversations(self, split: str) -> Iterator[Conversation]:
        self.rows_in[split] = 0
        for row in self.source.rows(split):
            self.rows_in[split] += 1
            if isinstance(row, BadRow):
                self._bad(split, row.origin, row.reason)
                continue
            try:
                yield self.formatter.format(row)
            except RowError as error:
                self._bad(split, row.origin, str(error))

    def _rendered(self, conversations: Iterable[Conversation], split: str) -> Iterator[tuple[Conversation, Rendered]]:
        for conversation in conversations:
            try:
                yield conversation, self.renderer.render(conversation)
            except RowError as error:
                self._bad(split, conversation.origin, str(error))

    def _encoded(self, pairs: Iterator[tuple[Conversation, Rendered]], split: str) -> Iterator[Item]:
        while batch := list(islice(pairs, BATCH)):
            encodings = self.tokenizer.encode([rendered.text for _, rendered in batch])
            for (conversation, rendered), encoding in zip(batch, encodings, strict=True):
                chosen = encode.stretches(self.masker, rendered)
                item = self._fitted(conversation, rendered, chosen, encoding, split)
                if item:
                    yield item

    def _fitted(
        self, talk: Conversation, rendered: Rendered, chosen: Sequence[encode.Stretch], encoding: Any, split: str
    ) -> Item | None:
        """One item, cut where the recipe says so; None where the row is dropped."""
        item = _item(talk, rendered, chosen, encoding)
        limit, size, trained = self.recipe.model.max_seq_len, len(item.sample.ids), sum(item.sample.trained)
        if not trained:
            self._drop(split, item.sample, "nothing trained", "the masker chose no token")
            return None
        if size <= limit:
            return item
        if self.recipe.data.on_too_long == "error":
            self._fatal(talk.origin, f"has {size} tokens, more than model.max_seq_len={limit}")
            return None
        if self.recipe.data.on_too_long == "drop":
            self._drop(split, item.sample, "too long", f"{size} tokens")
            return None
        encoding.truncate(limit)
        short = _item(talk, rendered, chosen, encoding)
        if not any(short.sample.trained):
            reason = "nothing trained after truncation"
            self._drop(split, item.sample, reason, f"{size} tokens, and the prompt fills {limit}")
            return None
        lost = trained - sum(short.sample.trained)
        self.add(Entry(split, talk.origin, "truncated", "too long", f"{size} tokens", size - limit, lost))
        return short

    def _drop(self, split: str, sample: Sample, reason: str, detail: str) -> None:
        self.add(Entry(split, sample.origin, "dropped", reason, detail, len(sample.ids), sum(sample.trained)))

    def _bad(self, split: str, origin: str, reason: str) -> None:
        if self.recipe.data.on_bad_row == "error":
            self._fatal(origin, reason)
        else:
            self.add(Entry(split, origin, "dropped", "bad row", reason))

    def _fatal(self, origin: str, message: str) -> None:
        self.problems.append(Problem(message, Place(self.source.locate(origin))))


def _applied(name: str, transform: Any, talks: Iterable[Conversation], context: Context) -> Iterator[Conversation]:
    try:
        yield from transform.apply(talks, context)
    except RowError as error:  # it has stopped, so no row after this one would be seen
        raise UserError(f"the transform {name} stopped: {error}") from error


def _item(talk: Conversation, rendered: Rendered, chosen: Sequence[encode.Stretch], encoding: Any) -> Item:
    sample, counts = encode.to_sample(rendered, chosen, encoding, talk.origin)
    return Item(sample, counts, talk, rendered, encode.pieces(rendered.text, encoding.offsets, sample.trained))
