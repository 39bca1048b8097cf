"""The cross-check: what a row's mask should be, found in another way, and compared.

Two ways, neither of which the renderer uses: a template's own `{% generation %}` tags; and, where it has none, the
difference between the render up to an answer, with the generation prompt, and the render up to its end. Where
these renders are no beginnings of the whole one, as with templates that treat older turns differently, there is
nothing to compare.
"""

import re
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from typing import Any, Literal, NamedTuple

from sftrun.data.masks.render import Renderer, without_flags
from sftrun.data.masks.template import Generation, Template
from sftrun.errors import Problem, RowError, UserError
from sftrun.types import Conversation, Message, Rendered

Kind = Literal["generation", "prefix"]

PER_SHAPE = 2
SHAPES = 200
EVERY = 1000

OPEN, CLOSE = "\U0010fffc", "\U0010fffd"
_TAG = re.compile(r"\{%[-+]?\s*generation\s*[-+]?%\}")
_NAMES = {"generation": "the template's {% generation %} tags", "prefix": "the renders up to each answer"}
_HINTS = {
    "generation": "where the tags are wrong, take them out of the template: sftrun needs none",
    "prefix": "this is a bug of sftrun: report it with the chat template and the row",
}


class CrossCheck:
    """Compares a sample of the rows: the first of every shape, and some of the others.

    `counts` says how many rows were compared with tags, with beginnings, and could not be compared; plain text,
    where there is nothing to find, is not counted.
    """

    def __init__(self, renderer: Renderer) -> None:
        self.counts = {"generation": 0, "prefix": 0, "none": 0}
        self._renderer = renderer
        self._tagged = tagged(renderer.template)
        self._seen: dict[Any, int] = {}
        self._rows = 0

    def see(self, conversation: Conversation, rendered: Rendered) -> None:
        """Takes one row; raises UserError, with both masks, where they differ."""
        self._rows += 1
        seen = self._seen.get(rendered.shape, 0)
        is_due = seen < PER_SHAPE and (seen or len(self._seen) < SHAPES)
        if not is_due and self._rows % EVERY:
            return
        self._seen[rendered.shape] = seen + 1
        if not conversation.plain:
            self.counts[check(self._renderer, conversation, rendered, self._tagged) or "none"] += 1


def check(renderer: Renderer, talk: Conversation, rendered: Rendered, tags: Template | None) -> Kind | None:
    """The way in which a row's mask was found again; None where in neither. Raises UserError where they differ.

    `tags` is what `tagged` makes of the renderer's template. Masks are equal up to white space after the end of a
    turn, and text that the generation prompt holds.
    """
    talk = without_flags(talk)
    for way in (_by_tags(tags, talk) if tags else None, _by_beginnings(renderer.template, talk)):
        found = way and _in(rendered, way)
        if found:
            _compare(renderer, talk, rendered, found)
            return found.kind if found.messages == _answers(talk) else None
    return None


def tagged(template: Template) -> Template | None:
    """The template as it marks what stands between its `{% generation %}` tags; None where it has none."""
    if not _TAG.search(template.source):
        return None
    return Template(template.source, template.variables, template.now, template.name, _Marked)


class _Marked(Generation):
    """Writes a mark before and after what stands between the tags."""

    def body(self, caller: Callable[[], str]) -> str:
        return OPEN + caller() + CLOSE


class Found(NamedTuple):
    """A text, the positions in it that are generated, and the messages that this is known of."""

    kind: Kind
    text: str
    inside: set[int]
    messages: set[int]


def _answers(talk: Conversation) -> set[int]:
    return {index for index, message in enumerate(talk.messages) if message["role"] == "assistant"}


def _by_tags(tags: Template, talk: Conversation) -> Found | None:
    try:
        marked = tags.render(talk.messages, tools=talk.tools, **talk.template_kwargs)
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
    # The text is another one than the row's where the template trims or compares what it marks.
    return Found("generation", text, inside, _answers(talk))


def _by_beginnings(template: Template, talk: Conversation) -> Found | None:
    def text(count: int, prompt: bool = False) -> str:
        given = talk.messages[:count]
        return template.render(given, tools=talk.tools, add_generation_prompt=prompt, **talk.template_kwargs)

    found = Found("prefix", text(len(talk.messages)), set(), set())
    for message in _answers(talk):
        try:
            before, after = text(message, prompt=True), text(message + 1)
        except RowError:
            continue
        after = after if found.text.startswith(after) else after.rstrip()
        if found.text.startswith(before) and found.text.startswith(after):
            found.messages.add(message)
            found.inside.update(range(len(before), len(after)))
    return found


def _in(rendered: Rendered, found: Found) -> Found | None:
    """The same in a row's own text, into which the renderer may have put the end of the last turn."""
    if found.text == rendered.text:
        return found
    end = next((span for span in reversed(rendered.spans) if span.end_of_turn), None)
    if end is None or found.text != rendered.text[: end.start] + rendered.text[end.end :]:
        return None
    moved = {at if at < end.start else at + end.end - end.start for at in found.inside}
    known = end.message in found.messages
    return found._replace(inside=moved | set(range(end.start, end.end) if known else ()))


def _compare(renderer: Renderer, talk: Conversation, rendered: Rendered, found: Found) -> None:
    theirs = found.inside
    spans = [span for span in rendered.spans if span.generated and span.message in found.messages]
    ours = {at for span in spans for at in range(span.start, span.end)}
    # A template may end a turn with the token that opens the next one, where there is a next one.
    openers = {(span.start, span.end) for span in spans if span.end_of_turn and found.kind == "prefix"}
    wrong = [stretch for stretch in _stretches(ours - theirs) if stretch not in openers]
    ends = {span.end for span in spans}
    first = {span.message: span.start for span in reversed(spans)}
    starts = {start: message for message, start in first.items()}
    for start, end in _stretches(theirs - ours):
        if start in ends and not rendered.text[start:end].strip():
            continue
        if end not in starts or not _opens(
            renderer, talk, starts[end], (rendered.text[:start], rendered.text[start:end])
        ):
            wrong.append((start, end))
    if wrong:
        raise _difference(talk, rendered.text, (ours, theirs), min(wrong), found.kind)


def _opens(renderer: Renderer, talk: Conversation, message: int, text: tuple[str, str]) -> bool:
    """Whether a text (what comes before it, and itself) is what leads to a message: after the last text, no answer."""
    given = talk.messages[:message]
    try:
        prompt, bare = _prompt(renderer, talk, given)
    except RowError:  # some templates render nothing without a user's message
        given = [{"role": "user", "content": "x"}]
        try:
            prompt, bare = _prompt(renderer, talk, given)
        except RowError:
            return False
        text = ("", text[1])
    content = given[-1].get("content") if given else None
    last = bare.rfind(content.strip()) + len(content.strip()) if isinstance(content, str) else len(bare)
    start = last if prompt.startswith(bare) else max(0, len(prompt) - 80)
    before = text[0][-16:]  # lest a letter of the answer passes for one of the prompt
    return text[1] in prompt[start:] and before + text[1] in prompt[max(0, start - len(before)) :]


def _prompt(renderer: Renderer, talk: Conversation, given: Sequence[Message]) -> tuple[str, str]:
    """Messages with a generation prompt, and without."""
    prompt = renderer.prompt(given, talk.tools, talk.template_kwargs)
    return prompt, renderer.template.render(given, tools=talk.tools, **talk.template_kwargs)


def _stretches(positions: set[int]) -> Iterator[tuple[int, int]]:
    """Positions as runs `[start, end)`, in order."""
    ordered = sorted(positions)
    cuts = [0, *(index for index, (a, b) in enumerate(pairwise(ordered), 1) if b != a + 1), len(ordered)]
    for first, last in pairwise(cuts if ordered else []):
        yield ordered[first], ordered[last - 1] + 1


def _difference(
    talk: Conversation, text: str, masks: tuple[set[int], set[int]], at: tuple[int, int], kind: Kind
) -> UserError:
    ours, theirs = (_shown(text, mask) for mask in masks)
    who = f"{talk.origin}: " if talk.origin else ""
    message = (
        f"{who}what is trained differs from what {_NAMES[kind]} say, first at {text[slice(*at)]!r} "
        f"(character {at[0]})\n  sftrun: {ours}\n  theirs: {theirs}\n "
    )
    return UserError(Problem(message, hint=_HINTS[kind]))


def _shown(text: str, mask: set[int]) -> str:
    shown, end = "", 0
    for start, stop in _stretches(mask):
        shown += text[end:start] + f"⟦{text[start:stop]}⟧"
        end = stop
    return repr(shown + text[end:])
