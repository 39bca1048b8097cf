"""The cross-check: derives masks a second time, without the renderer, and compares them.

The second derivation uses a template's own `{% generation %}` tags or, in a template without tags, the difference
between the render up to an answer, with the generation prompt, and the render up to its end. If these renders are
no prefixes of the full one, as with templates that write older turns in another way, nothing is compared.
"""

import re
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from typing import Any, Literal, NamedTuple

import msgspec

from sftrun.data.masks.render import Renderer, remove_flags
from sftrun.data.masks.skeleton import Skeleton
from sftrun.data.masks.template import Generation, Template
from sftrun.errors import RowError
from sftrun.types import Conversation, Message, Rendered, Span

Kind = Literal["generation", "prefix"]

PER_SHAPE = 2  # rows compared of each shape
SHAPES = 200  # shapes compared; rows of later ones are only compared by chance
EVERY = 1000  # rows between two comparisons, whatever their shapes
RECORDED = 5  # disagreements kept in the mask proof

OPEN, CLOSE = "\U0010fffc", "\U0010fffd"  # private-use characters that mark the text between tags
PROMPT_CHARACTERS = 80  # searched for a generation prompt if the render before is no prefix of it
CONTEXT = 16  # characters before a text that must agree too; a single letter could be the answer's or the prompt's
_TAG = re.compile(r"\{%[-+]?\s*generation\s*[-+]?%\}")
_NAMES = {"generation": "the template's {% generation %} tags", "prefix": "the renders up to each answer"}
HINTS = {
    "generation": "if the tags are wrong, remove them from the template: sftrun needs none",
    "prefix": "look at the row with sftrun inspect; if sftrun is wrong, please report the template and the row",
}


class Disagreement(msgspec.Struct, frozen=True):
    """A row whose second derivation gives another mask, with the first difference and both masks in `reason`."""

    origin: str
    kind: Kind
    reason: str


class Comparison(NamedTuple):
    """The result for one row: the kind of the second derivation, None without one, and a disagreement, if any."""

    kind: Kind | None
    disagreement: Disagreement | None = None


class CrossCheck:
    """The cross-check of a preparation: compares the first rows of every shape, and some of the others.

    `counts` counts the rows compared with tags and with prefixes, rows without a second derivation, and rows that
    differ. Plain text is not counted. `disagreements` holds the first few.
    """

    def __init__(self, renderer: Renderer) -> None:
        self.counts = {"generation": 0, "prefix": 0, "none": 0, "differ": 0}
        self.disagreements: list[Disagreement] = []
        self._renderer = renderer
        self._tags = mark_tags(renderer.template)
        self._seen: dict[Skeleton | None, int] = {}
        self._rows = 0

    def compare(self, conversation: Conversation, rendered: Rendered) -> None:
        """Compares one row, if it is due."""
        self._rows += 1
        seen = self._seen.get(rendered.shape, 0)
        is_due = seen < PER_SHAPE and (seen or len(self._seen) < SHAPES)
        if not is_due and self._rows % EVERY:
            return
        self._seen[rendered.shape] = seen + 1
        if conversation.plain:
            return
        kind, disagreement = cross_check(self._renderer, conversation, rendered, self._tags)
        self.counts[kind or "none"] += 1
        if disagreement:
            self.counts["differ"] += 1
            self.disagreements += [disagreement] if len(self.disagreements) < RECORDED else []

    def for_renderer(self, renderer: Renderer) -> "CrossCheck":
        """Returns a cross-check of the rows of another renderer, with the same counts and disagreements."""
        other = CrossCheck(renderer)
        other.counts, other.disagreements = self.counts, self.disagreements
        return other

    def to_json(self) -> dict[str, Any]:
        """Returns the counts and the recorded disagreements, for the mask proof."""
        return {**self.counts, "disagreements": msgspec.to_builtins(self.disagreements)}


def cross_check(
    renderer: Renderer, conversation: Conversation, rendered: Rendered, tags: Template | None
) -> Comparison:
    """Derives a row's mask a second time and compares the two.

    `tags` is `mark_tags` of the renderer's template. Masks are equal up to white space after the end of a turn, and
    text that the generation prompt holds. A derivation that only knows some of the answers is compared on these.
    """
    conversation = remove_flags(conversation)
    for derived in (_derive_by_tags(tags, conversation), _derive_by_prefixes(renderer, conversation)):
        derivation = derived and _align(rendered, derived)
        if derivation:
            disagreement = _compare(renderer, conversation, rendered, derivation)
            is_complete = derivation.messages == _find_answers(conversation)
            return Comparison(derivation.kind if disagreement or is_complete else None, disagreement)
    return Comparison(None)


def mark_tags(template: Template) -> Template | None:
    """Returns a template that marks the text between its `{% generation %}` tags; None if it has none."""
    if not _TAG.search(template.source):
        return None
    return Template(template.source, template.variables, template.now, template.name, _MarkedGeneration)


class _MarkedGeneration(Generation):
    """The extension that writes a mark before and after the text between the tags."""

    def body(self, caller: Callable[[], str]) -> str:
        return OPEN + caller() + CLOSE


class Derivation(NamedTuple):
    """A second derivation: a text, its generated positions, and the messages that it covers."""

    kind: Kind
    text: str
    inside: set[int]
    messages: set[int]


def _find_answers(conversation: Conversation) -> set[int]:
    return {index for index, message in enumerate(conversation.messages) if message["role"] == "assistant"}


def _derive_by_tags(tags: Template | None, conversation: Conversation) -> Derivation | None:
    if tags is None:
        return None
    try:
        marked = tags.render(conversation.messages, tools=conversation.tools, **conversation.template_kwargs)
    except RowError:
        return None
    text, depth = "", 0
    inside: set[int] = set()
    for piece in re.split(f"([{OPEN}{CLOSE}])", marked):
        if piece in (OPEN, CLOSE):
            depth += 1 if piece == OPEN else -1
            continue
        inside.update(range(len(text), len(text) + len(piece)) if depth else ())
        text += piece
    # The text differs from the row's if the template trims or compares the marked text.
    return Derivation("generation", text, inside, _find_answers(conversation))


def _derive_by_prefixes(renderer: Renderer, conversation: Conversation) -> Derivation:
    def render(count: int, prompt: bool = False) -> str:
        messages, more = conversation.messages[:count], conversation.template_kwargs
        return renderer.template.render(messages, tools=conversation.tools, add_generation_prompt=prompt, **more)

    derivation = Derivation("prefix", render(len(conversation.messages)), set(), set())
    for message in _find_answers(conversation):
        try:
            before, after = render(message, prompt=True), render(message + 1)
            if not message and before == render(0):
                continue  # some templates write no generation prompt without messages
        except RowError:
            continue
        after = after.removesuffix(renderer.opened_turn)
        after = after if derivation.text.startswith(after) else after.rstrip()
        if derivation.text.startswith(before) and derivation.text.startswith(after):
            derivation.messages.add(message)
            derivation.inside.update(range(len(before), len(after)))
    return derivation


def _align(rendered: Rendered, derivation: Derivation) -> Derivation | None:
    """Moves a derivation to the row's own text, into which the renderer may have put ends of turns."""
    if derivation.text == rendered.text:
        return derivation
    added = _find_added_ends(rendered, derivation.text)
    new = {at for span in added for at in range(span.start, span.end)}
    kept = [at for at in range(len(rendered.text)) if at not in new]
    if derivation.text != "".join(rendered.text[at] for at in kept):
        return None
    known = {at for span in added if span.message in derivation.messages for at in range(span.start, span.end)}
    return derivation._replace(inside={kept[at] for at in derivation.inside} | known)


def _find_added_ends(rendered: Rendered, text: str) -> list[Span]:
    """Returns the ends of turns that the template's own text does not have."""
    added: list[Span] = []
    shift = 0
    for span in rendered.spans:
        if span.end_of_turn and not text.startswith(rendered.text[span.start : span.end], span.start - shift):
            added.append(span)
            shift += span.end - span.start
    return added


def _compare(
    renderer: Renderer, conversation: Conversation, rendered: Rendered, derivation: Derivation
) -> Disagreement | None:
    theirs = derivation.inside
    spans = [span for span in rendered.spans if span.generated and span.message in derivation.messages]
    ours = {at for span in spans for at in range(span.start, span.end)}
    # A template may end a turn with the token that opens the next one, if there is a next one.
    openers = {(span.start, span.end) for span in spans if span.end_of_turn and derivation.kind == "prefix"}
    first = {span.message: span.start for span in reversed(spans)}
    starts = {start: message for message, start in first.items()}
    wrong = [stretch for stretch in _group_positions(ours - theirs) if stretch not in openers]
    wrong = [
        (start, end)
        for start, end in wrong
        if start not in starts
        or not rendered.text[start:end].isspace()  # tags may leave out the space that begins an answer
        or not _is_prompt(renderer, conversation, starts[start], rendered.text[:start])
    ]
    ends = {span.end for span in spans}
    for start, end in _group_positions(theirs - ours):
        before, text = rendered.text[:start], rendered.text[start:end]
        if start in ends and not text.strip():
            continue
        if end not in starts or not _is_prompt_text(renderer, conversation, starts[end], (before, text)):
            wrong.append((start, end))
    if not wrong:
        return None
    reason = _describe_difference(rendered.text, (ours, theirs), min(wrong), derivation.kind)
    return Disagreement(conversation.origin, derivation.kind, reason)


def _is_prompt(renderer: Renderer, conversation: Conversation, message: int, text: str) -> bool:
    """Returns True if a text is all that the model gets before a message."""
    try:
        return _render_with_prompt(renderer, conversation, conversation.messages[:message])[0] == text
    except RowError:
        return False


def _is_prompt_text(renderer: Renderer, conversation: Conversation, message: int, text: tuple[str, str]) -> bool:
    """Returns True if a text, given with the text before it, belongs to the generation prompt of a message."""
    given: Sequence[Message] = conversation.messages[:message]
    try:
        prompt, bare = _render_with_prompt(renderer, conversation, given)
    except RowError:  # some templates refuse messages without a user
        given = [{"role": "user", "content": "x"}]
        try:
            prompt, bare = _render_with_prompt(renderer, conversation, given)
        except RowError:
            return False
        text = ("", text[1])
    content = given[-1].get("content") if given else None
    last = bare.rfind(content.strip()) + len(content.strip()) if isinstance(content, str) else len(bare)
    start = last if prompt.startswith(bare) else max(0, len(prompt) - PROMPT_CHARACTERS)
    before = text[0][-CONTEXT:]
    return text[1] in prompt[start:] and before + text[1] in prompt[max(0, start - len(before)) :]


def _render_with_prompt(renderer: Renderer, conversation: Conversation, given: Sequence[Message]) -> tuple[str, str]:
    """Renders messages with a generation prompt, and without."""
    prompt = renderer.render_prompt(given, conversation.tools, conversation.template_kwargs)
    return prompt, renderer.template.render(given, tools=conversation.tools, **conversation.template_kwargs)


def _group_positions(positions: set[int]) -> Iterator[tuple[int, int]]:
    """Yields positions as runs `[start, end)`, in order."""
    ordered = sorted(positions)
    cuts = [0, *(index for index, (a, b) in enumerate(pairwise(ordered), 1) if b != a + 1), len(ordered)]
    for first, last in pairwise(cuts if ordered else []):
        yield ordered[first], ordered[last - 1] + 1


def _describe_difference(text: str, masks: tuple[set[int], set[int]], at: tuple[int, int], kind: Kind) -> str:
    ours, theirs = (_show_mask(text, mask) for mask in masks)
    return (
        f"the mask differs from {_NAMES[kind]}, first at {text[slice(*at)]!r} (character {at[0]})\n"
        f"  sftrun: {ours}\n  theirs: {theirs}"
    )


def _show_mask(text: str, mask: set[int]) -> str:
    shown, end = "", 0
    for start, stop in _group_positions(mask):
        shown += text[end:start] + f"⟦{text[start:stop]}⟧"
        end = stop
    return repr(shown + text[end:])
