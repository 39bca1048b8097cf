"""The marked render: a conversation as the chat template writes it, and whose every character is.

One text is rendered, by the template itself. Where things are in it is read off a probe of the same shape
(see `probe`), whose regions were proven (see `regions`); the probe filled with the conversation's texts must
equal the direct render. So the usual row costs one render and one join, on any template.
"""

import re
from collections.abc import Hashable, Mapping, Sequence
from functools import cached_property
from typing import Any

import msgspec

from sftrun.data.masks import conventions
from sftrun.data.masks import plain as plain_text
from sftrun.data.masks.refusal import explained
from sftrun.data.masks.regions import Region, regions
from sftrun.data.masks.skeleton import Skeleton, rendered, tiles
from sftrun.data.masks.stand_ins import Cut, Probe, around, by_words, marks, probe, shape, whole
from sftrun.data.masks.survey import Survey
from sftrun.data.masks.template import RESERVED, Template
from sftrun.errors import Problem, RowError
from sftrun.types import Conversation, Message, Rendered

MAX_SKELETONS = 4096

Flags = tuple[bool | None, ...]


class Renderer:
    """Renders conversations with a template. `eot_token` closes the last turn where the template closes none.

    It also ends plain text, in place of the tokenizer's `eos_token`; with `adds_bos`, `bos_token` begins that.
    """

    def __init__(self, template: Template, *, eot_token: str | None = None, adds_bos: bool = False) -> None:
        self.template = template
        self.eot_token = eot_token
        self._habits = conventions.habits(template)
        template.wraps_text = self._habits.only_lists
        self._bos = template.variables.get("bos_token", "") if adds_bos else ""
        self._eos = eot_token or template.variables.get("eos_token")
        self._skeletons: dict[Hashable, Skeleton | None] = {}
        self._with_tools: dict[tuple[Hashable, bytes], Skeleton] = {}  # one a shape of messages
        self._flagged_shapes: dict[tuple[Skeleton, Flags], Skeleton] = {}
        self._around = around(template.constants)
        self._by_words = by_words(template.constants)

    def render(self, conversation: Conversation) -> Rendered:
        """The text of a conversation, and spans that tile it.

        Raises RowError, naming the message, where the positions of an assistant's text cannot be proven.
        """
        if _has_flags(conversation.messages):
            return self._flagged(self.render(without_flags(conversation)), conversation.messages)
        if conversation.plain:
            return plain_text.render(conversation, self._bos, self._eos)
        text = self._direct(conversation)
        key, texts = shape(conversation.messages)
        if self._steering and any(map(self._steering.search, texts)):
            return self._render_closely(conversation, text)
        key = (key, _extra(conversation))
        try:
            skeleton = self._skeletons[key]
        except KeyError:
            skeleton = self._keep(key, self._new(conversation, key[0], (text, texts)))
        lengths = skeleton.fit(text, texts) if skeleton else None
        if skeleton is None or lengths is None:
            return self._render_closely(conversation, text)
        return self._result(skeleton, text, lengths)

    def prompt(
        self,
        messages: Sequence[Message],
        tools: Sequence[Mapping[str, Any]] | None = None,
        kwargs: Mapping[str, Any] | None = None,
        *,
        plain: bool = False,
    ) -> str:
        """What the model is given at inference: the messages and the generation prompt; the texts of plain ones."""
        messages = [_without_flag(message) for message in messages]
        if plain:
            return self._bos + "".join(plain_text.contents(messages))
        return self.template.render(messages, tools=tools, add_generation_prompt=True, **(kwargs or {}))

    def check(self) -> list[Problem]:
        """What is wrong with the template itself, seen on a short talk."""
        return [] if self.template.missing else conventions.problems(self._habits, self.eot_token)

    @cached_property
    def _steering(self) -> re.Pattern[str] | None:
        found = conventions.steering(self.template, marks(self.template.constants))
        return re.compile("|".join(map(re.escape, found))) if found else None

    def _direct(self, conversation: Conversation) -> str:
        kwargs = conversation.template_kwargs
        if kwargs and not RESERVED.isdisjoint(kwargs):
            raise RowError(f"template_kwargs must not set {', '.join(sorted(RESERVED & kwargs.keys()))}")
        try:
            return self.template.render(conversation.messages, tools=conversation.tools, **kwargs)
        except RowError as error:
            raise explained(self.template, conversation, error) from error

    def _flagged(self, found: Rendered, messages: Sequence[Message]) -> Rendered:
        """The same with what each message says of being trained."""
        flags = tuple(message.get("train") for message in messages)
        spans = [
            msgspec.structs.replace(span, train=flags[span.message]) if span.message >= 0 else span
            for span in found.spans
        ]
        if found.shape is None:
            return Rendered(found.text, spans)
        if len(self._flagged_shapes) >= MAX_SKELETONS:
            self._flagged_shapes.clear()
        key = (found.shape, flags)
        if key not in self._flagged_shapes:
            self._flagged_shapes[key] = found.shape.flagged(flags)
        return Rendered(found.text, spans, self._flagged_shapes[key])

    def _result(self, skeleton: Skeleton, text: str, lengths: Sequence[int]) -> Rendered:
        if skeleton.refusal is not None:
            raise RowError(skeleton.refusal)
        return rendered(skeleton, text, lengths, self.eot_token)

    def _keep(self, key: Hashable, skeleton: Skeleton | None) -> Skeleton | None:
        if len(self._skeletons) >= MAX_SKELETONS:
            self._skeletons.clear()
            self._with_tools.clear()
        self._skeletons[key] = skeleton
        return skeleton

    def _new(self, conversation: Conversation, key: Hashable, found: tuple[str, Sequence[str]]) -> Skeleton | None:
        """A skeleton for a shape that was not seen before, or was seen with other tools."""
        kwargs = msgspec.json.encode(conversation.template_kwargs) if conversation.template_kwargs else b""
        other = self._with_tools.get((key, kwargs)) if conversation.tools else None
        made = other.turned(*found) if other else None
        if made is None:
            made = self._skeleton(conversation, probe(conversation.messages, whole, found[0]))
            if conversation.tools and made and made.refusal is None:
                self._with_tools[key, kwargs] = made
        return made

    def _survey(self, conversation: Conversation, probed: Probe) -> Survey:
        return Survey(self.template, probed, conversation.tools, conversation.template_kwargs)

    def _skeleton(self, conversation: Conversation, probed: Probe) -> Skeleton | None:
        """The skeleton of a probe; None if the template does not take the probe."""
        try:
            survey = self._survey(conversation, probed)
        except RowError:
            return None
        skeleton = Skeleton(survey.whole)
        try:
            found = self._regions(survey)
            skeleton.add(tiles(survey.whole, probed, found, open_end=not self._habits.endings))
        except RowError as error:
            skeleton.refusal = str(error)
        return skeleton

    def _regions(self, survey: Survey) -> list[Region]:
        if self._habits.unfit:
            raise RowError(self._habits.unfit)
        found = regions(survey, self._habits.endings)
        if self._habits.endings or not self.eot_token:
            hint = "" if self._habits.endings else "; set model.eot_token"
            for region in found:
                if region.cut == region.end:  # it would teach the model to go on for ever
                    raise survey.refuse(region.message, f"the template writes no end-of-turn token after it{hint}")
        return found

    def _render_closely(self, conversation: Conversation, text: str) -> Rendered:
        """For a row whose text sends the template another way: what it may look for stays in the probe."""
        probed = probe(conversation.messages, self._around, text)
        key = (repr(probed.messages), _extra(conversation))
        skeleton = self._skeletons.get(key) or self._keep(key, self._skeleton(conversation, probed))
        lengths = skeleton.fit(text, [slot.text for slot in probed.slots]) if skeleton else None
        if skeleton and lengths is not None and skeleton.refusal is None:
            return self._result(skeleton, text, lengths)
        return self._render_by_words(conversation, text)

    def _render_by_words(self, conversation: Conversation, text: str) -> Rendered:
        probed = probe(conversation.messages, self._by_words, text)
        skeleton = self._skeleton(conversation, probed)
        lengths = skeleton.fit(text, [slot.text for slot in probed.slots]) if skeleton else None
        if skeleton is None or lengths is None:
            raise self._mismatch(conversation, text)
        found = self._result(skeleton, text, lengths)
        return Rendered(found.text, found.spans)

    def _mismatch(self, conversation: Conversation, text: str) -> RowError:
        """Blames the first message whose words alone keep the probe from giving the text, assistants first."""
        messages = conversation.messages
        roles = [message["role"] for message in messages]
        for index in sorted(range(len(roles)), key=lambda index: roles[index] != "assistant"):
            found = self._filled(conversation, _only(index, messages, self._by_words, text))
            if found != text:
                why = f"the template changes its text: {_difference(found, text)}"
                return RowError(f"message {index} ({roles[index]}): {why}")
        found = self._filled(conversation, probe(messages, self._by_words, text))
        return RowError(f"the template changes the texts of messages: {_difference(found, text)}")

    def _filled(self, conversation: Conversation, probed: Probe) -> str:
        try:
            return Skeleton(self._survey(conversation, probed).whole).fill([slot.text for slot in probed.slots])
        except RowError as error:
            return str(error)


def _has_flags(messages: Sequence[Message]) -> bool:
    """Whether any message says if it is trained; raises RowError for what are no messages."""
    if not messages:
        raise RowError("the conversation has no messages")
    found = False
    for index, message in enumerate(messages):
        if not isinstance(message, dict) or type(message.get("role")) is not str:
            raise RowError(f"message {index} has no role")
        if "train" in message:
            found = True
            if message["train"] is not None and not isinstance(message["train"], bool):
                raise RowError(f"message {index} ({message['role']}): train must be true or false")
    return found


def without_flags(conversation: Conversation) -> Conversation:
    """The conversation as templates see it: its messages do not say whether they are trained."""
    messages = [_without_flag(message) for message in conversation.messages]
    return msgspec.structs.replace(conversation, messages=messages)


def _without_flag(message: Message) -> Message:
    return {name: value for name, value in message.items() if name != "train"} if "train" in message else message


def _extra(conversation: Conversation) -> Hashable:
    if conversation.tools is None and not conversation.template_kwargs:
        return None
    return msgspec.json.encode([conversation.tools, conversation.template_kwargs])


def _only(index: int, messages: Sequence[Message], cut: Cut, taken: str) -> Probe:
    """A probe in which one message has stand-ins and the others are as they are."""
    one = probe([messages[index]], cut, taken)
    return one._replace(messages=[*messages[:index], one.messages[0], *messages[index + 1 :]])


def _difference(expected: str, found: str) -> str:
    at = next((i for i, (a, b) in enumerate(zip(expected, found, strict=False)) if a != b), 0)
    return f"{expected[max(0, at - 8) : at + 16]!r} became {found[max(0, at - 8) : at + 16]!r}"
