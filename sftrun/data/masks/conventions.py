"""What a template does with a short talk: how it ends turns, and what makes it unfit for training."""

import re
from collections.abc import Iterable
from itertools import pairwise
from typing import NamedTuple

from sftrun.data.masks.regions import regions
from sftrun.data.masks.stand_ins import probe, whole
from sftrun.data.masks.survey import Survey
from sftrun.data.masks.template import Template
from sftrun.errors import Problem, RowError
from sftrun.types import Message

_TOKEN = re.compile(r"<[^<>\s]+>|\[[^\[\]\s]+\]|[^\s<>\[\]]+")
_TEXTS = ("question", "answer", "next question", "next answer")


class Habits(NamedTuple):
    """How a template ends the turns of a talk of plain answers.

    `opens` is the beginning of a next turn that it writes after the last answer. `only_lists` says that it
    reads a content only as a list of parts. `failure` is why there is nothing to see.
    """

    endings: tuple[str, ...] = ()
    opens: str = ""
    only_lists: bool = False
    failure: str = ""

    @property
    def unfit(self) -> str:
        """Why no row can be trained with the template, if so."""
        if self.failure:
            return f"the chat template does not take a talk of user and assistant: {self.failure}"
        if self.opens:
            return f"the chat template ends an answer with the beginning of the next turn: {self.opens!r}"
        return ""


def habits(template: Template) -> Habits:
    """Looks at a talk of two turns and at its first; sees nothing where there is no template."""
    if template.missing:
        return Habits()
    plain = _messages(as_lists=False)
    failures: list[str] = []
    for messages in (plain, _messages(as_lists=True), [{"role": "system", "content": "instruction"}, *plain]):
        try:
            return _look(template, messages)
        except RowError as error:
            failures.append(str(error))
    return Habits(failure=failures[0])


def problems(seen: Habits, eot_token: str | None) -> list[Problem]:
    """What to say of a template before any row is rendered."""
    if seen.failure:
        return [Problem(seen.unfit)]
    found = []
    if seen.opens:
        found.append(Problem(seen.unfit, hint="write it only where a message or a generation prompt follows"))
    elif not seen.endings and not eot_token:
        hint = "set model.eot_token to the token that stops generation, often the eos_token"
        found.append(Problem("the chat template writes no end-of-turn token after an answer", hint=hint))
    elif seen.endings and eot_token:
        message = f"model.eot_token has no effect: the chat template ends answers itself, with {seen.endings[0]!r}"
        found.append(Problem(message, hint="remove model.eot_token", severity="warning"))
    return found


def steering(template: Template, constants: Iterable[str]) -> list[str]:
    """The constants that change the generation prompt if they stand in a message, as `/no_think` may."""
    try:
        usual = _prompt_tail(template, "", "")
    except RowError:
        return []
    return [constant for constant in constants if _steers(template, constant, usual)]


def _steers(template: Template, constant: str, usual: str) -> bool:
    try:
        first, last = (_prompt_tail(template, *pair) for pair in ((f"{constant} ", ""), ("", f" {constant}")))
    except RowError:
        return True
    return first != usual or not last.endswith(usual)


def _prompt_tail(template: Template, before: str, after: str) -> str:
    """The generation prompt, and what comes before it since a stand-in in a question."""
    question = {"role": "user", "content": before + "\U000f0000" + after}
    _, found, tail = template.render([question], add_generation_prompt=True).rpartition("\U000f0000")
    if not found:
        raise RowError("the template leaves out the question")
    return tail


def _messages(as_lists: bool) -> list[Message]:
    roles = ("user", "assistant", "user", "assistant")
    return [
        {"role": role, "content": [{"type": "text", "text": text}] if as_lists else text}
        for role, text in zip(roles, _TEXTS, strict=True)
    ]


def _look(template: Template, messages: list[Message]) -> Habits:
    only_lists = isinstance(messages[0]["content"], list)
    long, short = (Survey(template, probe(talk, whole)) for talk in (messages, messages[:-2]))
    if len(long.whole.slots) < len(messages):
        raise RowError("it leaves out contents")
    if opens := _opens(long):
        return Habits(opens=opens, only_lists=only_lists)
    endings = [
        survey.whole.text[region.cut : region.end] for survey in (long, short) for region in regions(survey, None)
    ]
    return Habits(endings=tuple(dict.fromkeys(filter(None, endings))), only_lists=only_lists)


def _opens(survey: Survey) -> str:
    """The beginning of a turn that follows the last answer, if any.

    An answer may end with a single token that also opens the user's turn (GLM): that one is what the model
    emits. More than one, of which the last opens a turn, is more than it emits.
    """
    text, cuts = survey.whole.text, [start for start, _ in survey.whole.slots]
    gaps = [text[a + 1 : b] for a, b in pairwise(cuts)]
    openers = {tokens[-1] for tokens in map(_TOKEN.findall, gaps) if tokens}
    after = _TOKEN.findall(text[cuts[-1] + 1 :])
    return "".join(after[1:]) if len(after) > 1 and after[-1] in openers else ""
