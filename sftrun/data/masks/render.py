"""The marked render: renders a conversation and finds the message that each character belongs to.

The template itself renders one text. Positions in this text come from a render of the same shape with stand-ins
(see `stand_ins`), whose regions were proven (see `regions`). That render, filled with the conversation's texts, must
equal the direct render. So the usual row costs one render and one join, on any template.
"""

import re
from collections.abc import Hashable, Mapping, Sequence
from functools import cached_property
from typing import Any

import msgspec

from sftrun.data.masks import conventions
from sftrun.data.masks import plain as plain_text
from sftrun.data.masks.history import write_ends
from sftrun.data.masks.refusal import THOUGHTS, explain_refusal, find_use_of_parts
from sftrun.data.masks.regions import Region, find_regions
from sftrun.data.masks.skeleton import Skeleton, make_rendered, make_tiles
from sftrun.data.masks.stand_ins import (
    Cut,
    StandIns,
    cut_whole,
    find_marks,
    make_mark_cutter,
    make_stand_ins,
    make_word_cutter,
    split_shape,
)
from sftrun.data.masks.survey import Survey
from sftrun.data.masks.template import RESERVED, Template
from sftrun.errors import Problem, RowError
from sftrun.types import Conversation, Message, Rendered

MAX_SKELETONS = 4096  # shapes of conversation remembered, so that memory is bounded

Flags = tuple[bool | None, ...]


class Renderer:
    """A renderer of conversations with one template.

    `eot_token` closes every answer that the template leaves open, and ends plain text in place of the tokenizer's
    `eos_token`. With `adds_bos`, `bos_token` begins plain text. With `space_to_answer`, the spaces at the end of a
    plain prompt belong to its answer; a template does so itself (see `template.move_space`).
    """

    def __init__(
        self,
        template: Template,
        *,
        eot_token: str | None = None,
        adds_bos: bool = False,
        space_to_answer: bool = False,
    ) -> None:
        self.template = template
        self.eot_token = eot_token
        self._space_to_answer = space_to_answer
        self._conventions = conventions.learn_conventions(template)
        template.wraps_text = self._conventions.only_lists
        template.parts_use = "reads" if template.missing or template.wraps_text else find_use_of_parts(template)
        self._bos = template.variables.get("bos_token", "") if adds_bos else ""
        self._eos = eot_token or template.variables.get("eos_token")
        self._skeletons: dict[Hashable, Skeleton | None] = {}
        self._with_tools: dict[tuple[Hashable, bytes], Skeleton] = {}  # one for each shape of messages
        self._flagged_shapes: dict[tuple[Skeleton, Flags], Skeleton] = {}
        self._around = make_mark_cutter(template.constants)
        self._by_words = make_word_cutter(template.constants)

    def render(self, conversation: Conversation) -> Rendered:
        """Renders a conversation, with spans that tile its text.

        Raises RowError, naming the message, if the positions of an assistant's text cannot be proven.
        """
        if _has_flags(conversation.messages):
            return self._add_flags(self.render(remove_flags(conversation)), conversation.messages)
        if conversation.plain:
            return plain_text.render_plain(conversation, self._bos, self._eos, self._space_to_answer)
        text = self._render_directly(conversation)
        key, texts = split_shape(conversation.messages)
        if self._steering and any(map(self._steering.search, texts)):
            return self._render_closely(conversation, text)
        key = (key, _make_extra_key(conversation))
        try:
            skeleton = self._skeletons[key]
        except KeyError:
            skeleton = self._remember(key, self._find_skeleton(conversation, key[0], (text, texts)))
        lengths = skeleton.match(text, texts) if skeleton else None
        if skeleton is None or lengths is None:
            return self._render_closely(conversation, text)
        return self._make_render(skeleton, text, lengths)

    def render_prompt(
        self,
        messages: Sequence[Message],
        tools: Sequence[Mapping[str, Any]] | None = None,
        kwargs: Mapping[str, Any] | None = None,
        *,
        plain: bool = False,
    ) -> str:
        """Renders messages with the generation prompt, as the model gets them; joins the contents of plain text."""
        messages = [_remove_flag(message) for message in messages]
        if plain:
            text = self._bos + "".join(plain_text.get_contents(messages))
            return plain_text.move_space(text, "")[0] if self._space_to_answer else text
        prompt = self.template.render(messages, tools=tools, add_generation_prompt=True, **(kwargs or {}))
        if self.recipe_end is None:
            return prompt
        given = None if tools is None else [dict(tool) for tool in tools]
        return self._end_answers(prompt, Conversation(messages, tools=given, template_kwargs=dict(kwargs or {})))

    def _end_answers(self, prompt: str, conversation: Conversation) -> str:
        """Ends the answers of a prompt with `eot_token` if the template does not end them."""
        messages = conversation.messages
        if not any(message["role"] == "assistant" for message in messages):
            return prompt
        answered = msgspec.structs.replace(conversation, messages=[*messages, {"role": "assistant", "content": "x"}])
        try:
            return write_ends(prompt, self.render(answered), len(messages))
        except RowError:
            return prompt  # no row of training has such messages

    @property
    def endings(self) -> tuple[str, ...]:
        """The texts that end turns of the template."""
        return self._conventions.endings

    def check_template(self) -> list[Problem]:
        """Returns the problems of the template itself, seen on a short conversation."""
        return [] if self.template.missing else conventions.find_problems(self._conventions, self.eot_token)

    @property
    def opened_turn(self) -> str:
        """The beginning of a next turn that the template writes after every last answer; usually empty."""
        return self._conventions.opens

    @property
    def recipe_end(self) -> dict[str, str] | None:
        """The recipe's `eot_token` and the answers that it ends, because the template does not; None without any."""
        if not self.eot_token or not self._conventions.unended:
            return None
        return {"token": self.eot_token, "after": re.sub("^any?", "every", self._conventions.unended)}

    @cached_property
    def _steering(self) -> re.Pattern[str] | None:
        found = conventions.find_steering_constants(self.template, find_marks(self.template.constants))
        return re.compile("|".join(map(re.escape, found))) if found else None

    def _render_directly(self, conversation: Conversation) -> str:
        kwargs = conversation.template_kwargs
        if kwargs and not RESERVED.isdisjoint(kwargs):
            raise RowError(f"template_kwargs must not set {', '.join(sorted(RESERVED & kwargs.keys()))}")
        try:
            return self.template.render(conversation.messages, tools=conversation.tools, **kwargs)
        except RowError as error:
            raise explain_refusal(self.template, conversation, error) from error

    def _add_flags(self, found: Rendered, messages: Sequence[Message]) -> Rendered:
        """Adds the `train` of each message to its spans."""
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
            self._flagged_shapes[key] = found.shape.with_flags(flags)
        return Rendered(found.text, spans, self._flagged_shapes[key])

    def _make_render(self, skeleton: Skeleton, text: str, lengths: Sequence[int]) -> Rendered:
        if skeleton.refusal is not None:
            raise RowError(skeleton.refusal)
        return make_rendered(skeleton, text, lengths, self.eot_token)

    def _remember(self, key: Hashable, skeleton: Skeleton | None) -> Skeleton | None:
        if len(self._skeletons) >= MAX_SKELETONS:
            self._skeletons.clear()
            self._with_tools.clear()
        self._skeletons[key] = skeleton
        return skeleton

    def _find_skeleton(
        self, conversation: Conversation, key: Hashable, found: tuple[str, Sequence[str]]
    ) -> Skeleton | None:
        """Returns a skeleton for a shape that is new, or new with these tools."""
        kwargs = msgspec.json.encode(conversation.template_kwargs) if conversation.template_kwargs else b""
        other = self._with_tools.get((key, kwargs)) if conversation.tools else None
        made = other.adapt(*found) if other else None
        if made is None:
            made = self._make_skeleton(conversation, make_stand_ins(conversation.messages, cut_whole, found[0]))
            if conversation.tools and made and made.refusal is None:
                self._with_tools[key, kwargs] = made
        return made

    def _make_survey(self, conversation: Conversation, stand_ins: StandIns) -> Survey:
        return Survey(self.template, stand_ins, conversation.tools, conversation.template_kwargs, shortens=True)

    def _make_skeleton(self, conversation: Conversation, stand_ins: StandIns) -> Skeleton | None:
        """Makes the skeleton of a render with stand-ins; None if the template refuses them."""
        try:
            survey = self._make_survey(conversation, stand_ins)
        except RowError:
            return None
        skeleton = Skeleton(survey.full)
        try:
            found = self._find_regions(survey)
            skeleton.set_tiles(make_tiles(survey.full, stand_ins, found, open_ends=bool(self._conventions.unended)))
        except RowError as error:
            skeleton.refusal = str(error)
        return skeleton

    def _find_regions(self, survey: Survey) -> list[Region]:
        if self._conventions.refusal:
            raise RowError(self._conventions.refusal)
        ends = self._conventions.make_ends(self.eot_token)
        try:
            found = find_regions(survey, ends)
        except RowError:
            if not survey.shortens:
                raise
            survey.forget_shortened()
            found = find_regions(survey, ends)
        if self._conventions.unended and self.eot_token:
            return found
        for region in found:
            if region.cut == region.end:  # the model would learn to never stop
                hint = f"; {self._conventions.advice}" if self._conventions.unended else ""
                raise survey.make_refusal(region.message, f"the template writes no end-of-turn token after it{hint}")
        return found

    def _render_closely(self, conversation: Conversation, text: str) -> Rendered:
        """Renders a row whose text makes the template branch: text that the template may look for stays in place."""
        stand_ins = make_stand_ins(conversation.messages, self._around, text)
        key = (repr(stand_ins.messages), _make_extra_key(conversation))
        skeleton = self._skeletons.get(key) or self._remember(key, self._make_skeleton(conversation, stand_ins))
        lengths = skeleton.match(text, [slot.text for slot in stand_ins.slots]) if skeleton else None
        if skeleton and lengths is not None and skeleton.refusal is None:
            return self._make_render(skeleton, text, lengths)
        return self._render_by_words(conversation, text)

    def _render_by_words(self, conversation: Conversation, text: str) -> Rendered:
        stand_ins = make_stand_ins(conversation.messages, self._by_words, text)
        skeleton = self._make_skeleton(conversation, stand_ins)
        lengths = skeleton.match(text, [slot.text for slot in stand_ins.slots]) if skeleton else None
        if skeleton is None or lengths is None:
            raise self._explain_mismatch(conversation, text)
        found = self._make_render(skeleton, text, lengths)
        return Rendered(found.text, found.spans)

    def _explain_mismatch(self, conversation: Conversation, text: str) -> RowError:
        """Returns an error for the first message whose stand-ins alone change the text, assistants first."""
        messages = conversation.messages
        roles = [message["role"] for message in messages]
        for index in sorted(range(len(roles)), key=lambda index: roles[index] != "assistant"):
            found = self._fill(conversation, _make_single_stand_ins(index, messages, self._by_words, text))
            if found != text:
                why = f"the template changes its text: {_describe_difference(found, text)}"
                why += f"; {THOUGHTS}" if "</think>" in str(messages[index].get("content")) else ""
                return RowError(f"message {index} ({roles[index]}): {why}")
        found = self._fill(conversation, make_stand_ins(messages, self._by_words, text))
        return RowError(f"the template changes the texts of messages: {_describe_difference(found, text)}")

    def _fill(self, conversation: Conversation, stand_ins: StandIns) -> str:
        try:
            return Skeleton(self._make_survey(conversation, stand_ins).full).fill(
                [slot.text for slot in stand_ins.slots]
            )
        except RowError as error:
            return str(error)


def _has_flags(messages: Sequence[Message]) -> bool:
    """Returns True if a message has the key `train`; raises RowError for malformed messages."""
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


def remove_flags(conversation: Conversation) -> Conversation:
    """Returns the conversation as templates see it, without the key `train` in messages."""
    messages = [_remove_flag(message) for message in conversation.messages]
    return msgspec.structs.replace(conversation, messages=messages)


def _remove_flag(message: Message) -> Message:
    return {name: value for name, value in message.items() if name != "train"} if "train" in message else message


def _make_extra_key(conversation: Conversation) -> Hashable:
    if conversation.tools is None and not conversation.template_kwargs:
        return None
    return msgspec.json.encode([conversation.tools, conversation.template_kwargs])


def _make_single_stand_ins(index: int, messages: Sequence[Message], cut: Cut, used: str) -> StandIns:
    """Replaces the texts of one message by stand-ins, and keeps the others."""
    one = make_stand_ins([messages[index]], cut, used)
    return one._replace(messages=[*messages[:index], one.messages[0], *messages[index + 1 :]])


def _describe_difference(expected: str, found: str) -> str:
    at = next((i for i, (a, b) in enumerate(zip(expected, found, strict=False)) if a != b), 0)
    return f"{expected[max(0, at - 8) : at + 16]!r} became {found[max(0, at - 8) : at + 16]!r}"
