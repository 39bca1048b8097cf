"""The data pipeline: turns the rows of a source into samples, split by split and batch by batch."""

import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import numpy as np

from sftrun.data import answers
from sftrun.data.ledger import Entry
from sftrun.data.length import LengthPolicy, Piece
from sftrun.data.masks.crosscheck import CrossCheck
from sftrun.data.masks.dates import DateCheck
from sftrun.data.masks.render import Renderer
from sftrun.data.masks.template import Template
from sftrun.data.masks.tools import ToolCheck
from sftrun.data.reasoning import split_reasoning
from sftrun.data.tokens import encode, offsets, tokenizer
from sftrun.data.tokens.borders import Borders, Joined
from sftrun.errors import Place, Problem, RowError, UserError
from sftrun.kinds import Context, Source
from sftrun.recipe.model import ModelOptions, Recipe
from sftrun.registry import Registry
from sftrun.types import BadRow, Conversation, NoteAction, Rendered, Sample

BATCH = 1024  # rows in a batch, at most; two batches are in memory at once
CHARACTERS = 1 << 19  # characters in a batch, at most; encoding takes some 30 bytes for each

Pair = tuple[Conversation, Rendered]
ReportBadRow = Callable[[str, str, RowError], None]
PendingBatch = tuple[list[Pair], "Future[tuple[Any, Any]]"]


class Batch(NamedTuple):
    """Samples of a batch of conversations: ids and trained flags end to end, and the length of each sample.

    `cut_from[i] = (row, first)`: sample i is cut from `pairs[row]`, from token `first` on.
    """

    ids: Any
    trained: Any
    lengths: Any
    cut_from: list[tuple[int, int]]
    origins: list[str]
    pairs: list[Pair]
    counts: offsets.Counts


class InspectedSample(msgspec.Struct, frozen=True):
    """One sample with the conversation and the render that it was cut from, for `sftrun inspect` and the mask proof."""

    sample: Sample
    conversation: Conversation
    rendered: Rendered
    pieces: list[tuple[str, bool]]


class RowTemplate(NamedTuple):
    """A template of rows: its renderer and its checks."""

    renderer: Renderer
    crosscheck: CrossCheck
    tools: ToolCheck
    date: DateCheck


class Pipeline:
    """The data components of a recipe. `problems` collects fatal row errors; `add` takes ledger entries."""

    def __init__(self, recipe: Recipe, registry: Registry, add: Callable[[Entry], None] = lambda entry: None) -> None:
        self.recipe = recipe
        self.add = add
        self.problems: list[Problem] = []
        self.rows_in: dict[str, int] = {}
        self.rows_by_file: dict[str, Counter[str]] = {}  # by the origins without the number of the row; by split
        self.unread: dict[str, str] = {}  # template variables without effect, and the origin of a row with each
        self.source = registry.create("source", recipe.source)
        self.transforms = [registry.create("transform", use) for use in recipe.transforms]
        self.formatter = registry.create("formatter", recipe.formatter)
        self.masker = registry.create("masker", recipe.masker)
        self.tokenizer = tokenizer.load_tokenizer(recipe.model)
        self._templates = self._make_templates(recipe.model)
        self.borders = Borders()
        refused = self.renderer.check_template()
        if any(problem.severity == "error" for problem in refused):
            raise UserError(refused)
        self.warnings = refused
        self._ends = self._find_ends()
        self.encoder = encode.Encoder(self.tokenizer, self.masker, recipe.model.max_seq_len)

    def _make_templates(self, model: ModelOptions) -> list["RowTemplate"]:
        """Makes the template of rows without tools, and the one of rows with tools, which is often the same."""
        usual, with_tools = (
            Renderer(
                template,
                eot_token=model.eot_token,
                adds_bos=self.tokenizer.adds_bos,
                space_to_answer=model.space_to_answer,
            )
            for template in (self.tokenizer.template, self.tokenizer.tool_template)
        )
        crosscheck = CrossCheck(usual)
        first = _make_row_template(usual, crosscheck)
        if with_tools.template is usual.template:
            return [first, first]
        return [first, _make_row_template(with_tools, crosscheck.for_renderer(with_tools))]

    def _find_ends(self) -> tuple[str, ...]:
        """Returns the special tokens that end an answer, which the template or plain text adds itself."""
        texts: set[str | None] = {self.recipe.model.eot_token, self.tokenizer.special.get("eos_token")}
        texts.update(ending.strip() for each in self._templates for ending in each.renderer.endings)
        return tuple(sorted({*self.tokenizer.added.values()} & texts))

    @property
    def renderer(self) -> Renderer:
        """The renderer of rows without tools."""
        return self._templates[0].renderer

    @property
    def crosscheck(self) -> CrossCheck:
        """The cross-check, whose counts are of all rows."""
        return self._templates[0].crosscheck

    @property
    def date(self) -> str | None:
        """The date that a template has written into a row, because it is today's; None if none has."""
        return next((each.date.found for each in self._templates if each.date.found), None)

    @property
    def date_advice(self) -> str:
        """How to fix the date that a template writes."""
        return self._templates[0].date.advice

    def choose_template(self, conversation: Conversation) -> "RowTemplate":
        """Returns the template of a row."""
        return self._templates[bool(conversation.tools)]

    def inspect(self, split: str) -> Iterator[InspectedSample]:
        """Yields every sample of a split, with its text cut where training starts and stops."""
        for batch in self.make_batches(split):
            yield from self.inspect_chosen(batch, range(len(batch.origins)))

    def inspect_chosen(self, batch: Batch, chosen: Sequence[int]) -> Iterator[InspectedSample]:
        """Yields the samples of a batch with the given indices."""
        ends = np.cumsum(batch.lengths)
        texts = [batch.pairs[batch.cut_from[index][0]][1].text for index in chosen]
        for index, text, encoding in zip(chosen, texts, self.tokenizer.encode(texts), strict=True):
            (row, first), end, size = batch.cut_from[index], int(ends[index]), int(batch.lengths[index])
            ids, trained = batch.ids[end - size : end], batch.trained[end - size : end]
            starts, stops = self.tokenizer.find_bounds(encoding, text)
            bounds = (starts[first : first + size], stops[first : first + size])
            sample = Sample(ids.tolist(), trained.astype(int).tolist(), batch.origins[index])
            yield InspectedSample(sample, *batch.pairs[row], offsets.cut_text(text, bounds, trained))

    def make_batches(self, split: str) -> Iterator[Batch]:
        """Yields every trainable sample of a split; the other rows go into the ledger or `problems`.

        The tokenizer reads one batch in its own threads while the rows of the next are rendered.
        """
        self.rows_in[split] = 0
        pairs = self._render_all(
            self._apply_transforms(split, len(self.transforms), self._report_bad_row, self.add, self.rows_in), split
        )
        pending: PendingBatch | None = None
        with ThreadPoolExecutor(1) as pool:
            for batch in _group_into_batches(pairs):
                reading = (batch, pool.submit(self.encoder.tokenize, [rendered.text for _, rendered in batch]))
                if pending:
                    yield self._finish_batch(pending, split)
                pending = reading
            if pending:
                yield self._finish_batch(pending, split)

    def _finish_batch(self, pending: PendingBatch, split: str) -> Batch:
        pairs, reading = pending
        rows = [rendered for _, rendered in pairs]
        encoded = self.encoder.encode(rows, reading.result())
        policy = LengthPolicy(self.recipe, split, self.add, self._add_problem)
        counts = encoded.counts
        pieces: dict[int, list[Piece]] = {}
        for row, tokens in encoded.others.items():
            origin = pairs[row][0].origin
            pieces[row] = policy.apply(origin, tokens) if self._check_borders(split, origin, tokens.joined) else []
            for each in pieces[row]:
                counts.merge(each.counts)
        return _assemble(pairs, encoded, pieces)

    def _check_borders(self, split: str, origin: str, joined: Joined | None) -> bool:
        """Counts a row that loses a token at a border; returns False if all of an answer is lost."""
        if joined and joined.loses_all:
            self._report_bad_row(split, origin, RowError(f"{joined.reason}; {joined.hint}"))
            return False
        if joined:
            self.borders.add(split, origin, joined)
        return True

    def _apply_transforms(
        self,
        split: str,
        count: int,
        bad: ReportBadRow,
        add: Callable[[Entry], None],
        rows_in: dict[str, int],
    ) -> Iterable[Conversation]:
        """Returns the conversations of a split after the first `count` transforms."""
        conversations: Iterable[Conversation] = self._read_conversations(split, bad, rows_in)
        for index in range(count):
            use = self.recipe.transforms[index]
            conversations = _apply_transform(
                use.use, self.transforms[index], conversations, self._make_context(split, index, add)
            )
        return conversations

    def _make_context(self, split: str, index: int, add: Callable[[Entry], None]) -> Context:
        def note(origin: str, action: NoteAction, reason: str, detail: str = "", /) -> None:
            add(Entry(split, origin, action, reason, detail))

        def read_other_split(other: str) -> Iterator[Conversation]:
            # the problems of these rows are reported when their own split is read
            return iter(self._apply_transforms(other, index, lambda *bad: None, lambda entry: None, {}))

        return Context(split, self.source.splits(), self.recipe.seed, note, read_other_split, self.tokenizer.count)

    def _read_conversations(self, split: str, bad: ReportBadRow, rows_in: dict[str, int]) -> Iterator[Conversation]:
        for number, row in enumerate(self.source.rows(split), 1):
            rows_in[split] = number
            if rows_in is self.rows_in:  # else a transform looks at another split
                self.rows_by_file.setdefault(row.origin.rpartition(":")[0], Counter())[split] += 1
            if isinstance(row, BadRow):
                bad(split, row.origin, RowError(row.reason))
                continue
            try:
                conversation = self.formatter.format(row)
                yield split_reasoning(conversation) if self.recipe.data.split_reasoning else conversation
            except RowError as error:
                bad(split, row.origin, error)

    def _render_all(self, conversations: Iterable[Conversation], split: str) -> Iterator[Pair]:
        policy = LengthPolicy(self.recipe, split, self.add, self._add_problem)
        for given in conversations:
            conversation = self._remove_ends(given, split)
            try:
                template = self.choose_template(conversation)
                rendered = template.renderer.render(conversation)
                if conversation.template_kwargs:
                    self._note_unread(conversation, template.renderer.template)
                template.tools.check(conversation, rendered.text)
                if refusal := self.encoder.find_refusal(rendered):
                    raise RowError(refusal)
                if empty := answers.find_empty(conversation.messages):
                    self._check_empty(conversation, rendered, empty)
                if not policy.accept_size(conversation.origin, rendered.text, self.tokenizer.count):
                    continue
                template.date.check(conversation)
                template.crosscheck.compare(conversation, rendered)
                yield conversation, rendered
            except RowError as error:
                self._report_bad_row(split, conversation.origin, error)

    def _check_empty(self, conversation: Conversation, rendered: Rendered, empty: Sequence[int]) -> None:
        """Raises RowError if one of the empty answers is trained."""
        trained = self.encoder.find_trained_answers(rendered)
        for index in empty:
            if index in trained:
                raise answers.make_empty_answer(conversation.messages, index)

    def _note_unread(self, conversation: Conversation, template: Template) -> None:
        """Notes the first row of each template variable that the template does not read."""
        for name in conversation.template_kwargs:
            if name not in template.variables_read:
                self.unread.setdefault(name, conversation.origin)

    def _remove_ends(self, conversation: Conversation, split: str) -> Conversation:
        """Removes end-of-turn tokens from the ends of answers, because the template writes them."""
        messages = answers.remove_ends(conversation.messages, self._ends, plain=conversation.plain)
        if messages is None:
            return conversation
        self.add(Entry(split, conversation.origin, "changed", "end of turn removed from an answer, which had two"))
        return msgspec.structs.replace(conversation, messages=messages)

    def _report_bad_row(self, split: str, origin: str, error: RowError) -> None:
        if self.recipe.data.on_bad_row == "error":
            self._add_problem(origin, str(error))
        else:
            self.add(Entry(split, origin, "dropped", error.reason, str(error)))

    def _add_problem(self, origin: str, message: str) -> None:
        self.problems.append(Problem(message, Place(self.source.locate(origin))))


def locate_file(source: Source, name: str) -> Path | None:
    """Returns the file of the origins `name:1`, `name:2`, …; None if they are in no local file."""
    place = re.sub(r"(:|, row )\d+$", "", source.locate(f"{name}:1"))
    return Path(place) if Path(place).is_file() else None


def _make_row_template(renderer: Renderer, crosscheck: CrossCheck) -> RowTemplate:
    template = renderer.template
    return RowTemplate(renderer, crosscheck, ToolCheck(template), DateCheck(template))


def _group_into_batches(pairs: Iterable[Pair]) -> Iterator[list[Pair]]:
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


def _apply_transform(
    name: str, transform: Any, conversations: Iterable[Conversation], context: Context
) -> Iterator[Conversation]:
    try:
        yield from transform.apply(conversations, context)
    except RowError as error:  # the generator has ended, so no later row would be read
        raise UserError(f"the transform {name} stopped: {error}") from error


def _assemble(pairs: list[Pair], encoded: encode.Encoded, pieces: dict[int, list[Piece]]) -> Batch:
    """Joins the samples of a batch, in the order of its rows."""
    starts = encoded.starts
    if encoded.fast.all():
        origins = [conversation.origin for conversation, _ in pairs]
        cut_from = [(row, 0) for row in range(len(pairs))]
        return Batch(encoded.ids, encoded.trained, np.diff(starts), cut_from, origins, pairs, encoded.counts)
    samples: list[tuple[Any, Any, tuple[int, int], str]] = []
    for row, (conversation, _) in enumerate(pairs):
        if encoded.fast[row]:
            part = slice(starts[row], starts[row + 1])
            samples.append((encoded.ids[part], encoded.trained[part], (row, 0), conversation.origin))
        else:
            samples += [(each.ids, each.trained, (row, each.first), each.origin) for each in pieces[row]]
    ids = np.concatenate([encoded.ids[:0], *(sample[0] for sample in samples)])
    trained = np.concatenate([encoded.trained[:0], *(sample[1] for sample in samples)])
    lengths = np.array([len(sample[0]) for sample in samples], dtype=np.int64)
    cut_from, origins = [sample[2] for sample in samples], [sample[3] for sample in samples]
    return Batch(ids, trained, lengths, cut_from, origins, pairs, encoded.counts)
