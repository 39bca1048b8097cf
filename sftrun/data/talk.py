"""What a template does with a short talk: how it ends turns, and what makes it unfit for training."""

import re
from typing import Any, NamedTuple

from sftrun.data.probe import probe, whole
from sftrun.data.regions import Survey
from sftrun.data.template import Template
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

    def refuse(self) -> None:
        """Raises RowError for a template with which no row can be trained."""
        if self.opens:
            raise RowError(f"the template ends an answer with the beginning of the next turn: {self.opens!r}")


def habits(template: Template) -> Habits:
    """Looks at a talk of two turns and at its first."""
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
        return [Problem(f"the chat template does not take a talk of user and assistant: {seen.failure}")]
    found = []
    if seen.opens:
        message = f"the chat template ends an answer with the beginning of the next turn: {seen.opens!r}"
        found.append(Problem(message, hint="write it only where a message or a generation prompt follows"))
    elif not seen.endings and not eot_token:
        hint = "set model.eot_token to the token that stops generation, often the eos_token"
        found.append(Problem("the chat template writes no end-of-turn token after an answer", hint=hint))
    elif seen.endings and eot_token:
        message = f"model.eot_token has no effect: the chat template ends answers itself, with {seen.endings[0]!r}"
        found.append(Problem(message, hint="remove model.eot_token", severity="warning"))
    if seen.only_lists:
        hint = 'give each content as [{"type": "text", "text": …}]'
        found.append(Problem("the chat template reads contents only as lists", hint=hint, severity="warning"))
    return found


def _messages(as_lists: bool) -> list[Message]:
    roles = ("user", "assistant", "user", "assistant")
    return [
        {"role": role, "content": [{"type": "text", "text": text}] if as_lists else text}
        for role, text in zip(roles, _TEXTS, strict=True)
    ]


def _look(template: Template, messages: list[Message]) -> Habits:
    only_lists = isinstance(messages[0]["content"], list)
    long = Survey(template, probe(messages, whole), None, {})
    short = Survey(template, probe(messages[:-2], whole), None, {})
    if len(long.marked.slots) < len(messages):
        raise RowError("it leaves out contents")
    opens = _opens(long)
    if opens:
        return Habits(opens=opens, only_lists=only_lists)
    endings = [survey.marked.text[region.cut : region.end] for survey in (long, short) for region in survey.regions()]
    return Habits(endings=tuple(dict.fromkeys(filter(None, endings))), only_lists=only_lists)


def _opens(survey: Survey) -> str:
    """The beginning of a turn that follows the last answer, if any.

    An answer may end with a single token that also opens the user's turn (GLM): that one is what the model
    emits. More than one, of which the last opens a turn, is more than it emits.
    """
    text, cuts = survey.marked.text, [start for start, _ in survey.marked.slots]
    gaps = [text[a + 1 : b] for a, b in zip(cuts, cuts[1:], strict=False)]
    openers = {tokens[-1] for tokens in map(_TOKEN.findall, gaps) if tokens}
    after = _TOKEN.findall(text[cuts[-1] + 1 :])
    return "".join(after[1:]) if len(after) > 1 and after[-1] in openers else ""
