"""The conventions of a template: how it ends turns, and problems that make it unfit for training."""

import re
from collections.abc import Iterable
from itertools import pairwise
from typing import Any, NamedTuple

from sftrun.data.masks.refusal import TOOL
from sftrun.data.masks.regions import find_regions
from sftrun.data.masks.stand_ins import cut_whole, make_stand_ins
from sftrun.data.masks.survey import Survey
from sftrun.data.masks.template import Template
from sftrun.errors import Problem, RowError
from sftrun.types import Message

_TOKEN = re.compile(r"<[^<>\s]+>|\[[^\[\]\s]+\]|[^\s<>\[\]]+")
Tools = list[dict[str, Any]] | None

_TEXTS = ("question", "answer", "next question", "next answer")


class Conventions(NamedTuple):
    """The conventions of a template for a conversation of plain answers.

    `endings` are the texts that end its turns. `opens` is the beginning of a next turn that the template writes after
    the last answer. `only_lists` is set if it reads a content only as a list of parts. `failure` is the error if it
    renders no such conversation.
    """

    endings: tuple[str, ...] = ()
    opens: str = ""
    only_lists: bool = False
    failure: str = ""

    @property
    def refusal(self) -> str:
        """The reason why no row can be trained with the template; empty if there is none."""
        if self.failure:
            return f"the chat template does not render a conversation of user and assistant: {self.failure}"
        if self.opens:
            return f"the chat template ends an answer with the beginning of the next turn: {self.opens!r}"
        return ""


def learn_conventions(template: Template) -> Conventions:
    """Learns a template's conventions from its renders of a conversation of two turns, and of the first turn alone."""
    if template.missing:
        return Conventions()
    plain = _make_messages(as_lists=False)
    forms = (plain, _make_messages(as_lists=True), [{"role": "system", "content": "instruction"}, *plain])
    failures: list[str] = []
    for tools, messages in [*((None, form) for form in forms), ([TOOL], plain)]:
        try:
            return _observe(template, messages, tools)
        except RowError as error:
            failures.append(str(error))
    return Conventions(failure=failures[0])


def find_problems(seen: Conventions, eot_token: str | None) -> list[Problem]:
    """Returns the problems of a template that are known before any row is rendered."""
    if seen.failure:
        return [Problem(seen.refusal)]
    found = []
    if seen.opens:
        found.append(Problem(seen.refusal, hint="write it only if a message or a generation prompt follows"))
    elif not seen.endings and not eot_token:
        hint = "set model.eot_token to the stop token of the model, often its eos_token"
        found.append(Problem("the chat template writes no end-of-turn token after an answer", hint=hint))
    elif seen.endings and eot_token:
        message = f"model.eot_token has no effect: the chat template ends answers itself, with {seen.endings[0]!r}"
        found.append(Problem(message, hint="remove model.eot_token", severity="warning"))
    return found


def find_steering_constants(template: Template, constants: Iterable[str]) -> list[str]:
    """Returns the constants that change the generation prompt if a message contains them, as `/no_think` may."""
    try:
        usual = _render_prompt_tail(template, "", "")
    except RowError:
        return []
    return [constant for constant in constants if _changes_prompt(template, constant, usual)]


def _changes_prompt(template: Template, constant: str, usual: str) -> bool:
    try:
        first, last = (_render_prompt_tail(template, *pair) for pair in ((f"{constant} ", ""), ("", f" {constant}")))
    except RowError:
        return True
    return first != usual or not last.endswith(usual)


def _render_prompt_tail(template: Template, before: str, after: str) -> str:
    """Returns the text between a stand-in in a question and the end of the generation prompt."""
    question = {"role": "user", "content": before + "\U000f0000" + after}
    _, found, tail = template.render([question], add_generation_prompt=True).rpartition("\U000f0000")
    if not found:
        raise RowError("the template leaves out the question")
    return tail


def _make_messages(as_lists: bool) -> list[Message]:
    roles = ("user", "assistant", "user", "assistant")
    return [
        {"role": role, "content": [{"type": "text", "text": text}] if as_lists else text}
        for role, text in zip(roles, _TEXTS, strict=True)
    ]


def _observe(template: Template, messages: list[Message], tools: Tools) -> Conventions:
    only_lists = isinstance(messages[0]["content"], list)
    long, short = (
        Survey(template, make_stand_ins(conversation, cut_whole), tools) for conversation in (messages, messages[:-2])
    )
    if len(long.full.slots) < len(messages):
        raise RowError("it leaves out the contents of messages")
    if opens := _find_opened_turn(long):
        return Conventions(opens=opens, only_lists=only_lists)
    endings = [
        survey.full.text[region.cut : region.end] for survey in (long, short) for region in find_regions(survey, None)
    ]
    return Conventions(endings=tuple(dict.fromkeys(filter(None, endings))), only_lists=only_lists)


def _find_opened_turn(survey: Survey) -> str:
    """Returns the beginning of a turn that follows the last answer, or an empty text.

    An answer may end with a single token that also opens the user's turn (GLM); the model emits that token. Two or
    more tokens, the last of which opens a turn, are more than the model emits.
    """
    text, cuts = survey.full.text, [start for start, _ in survey.full.slots]
    gaps = [text[a + 1 : b] for a, b in pairwise(cuts)]
    openers = {tokens[-1] for tokens in map(_TOKEN.findall, gaps) if tokens}
    after = _TOKEN.findall(text[cuts[-1] + 1 :])
    return "".join(after[1:]) if len(after) > 1 and after[-1] in openers else ""
