"""The conventions of a template: how it ends turns, and problems that make it unfit for training."""

import re
from collections.abc import Iterable
from itertools import pairwise
from typing import NamedTuple

from sftrun.data.masks.regions import Ends, find_regions
from sftrun.data.masks.stand_ins import cut_whole, make_stand_ins
from sftrun.data.masks.survey import Survey, is_reasoning_mark
from sftrun.data.masks.template import Template
from sftrun.errors import Problem, RowError
from sftrun.types import Message

_TOKEN = re.compile(r"<[^<>\s]+>|\[[^\[\]\s]+\]|[^\s<>\[\]]+")
_CONTROL = re.compile(r"\s*(?:<[^<>\s]+>|\[[^\[\]\s]+\])+")
_TEXTS = ("question", "answer", "next question", "next answer")

EVERY = "an answer"


class Conventions(NamedTuple):
    """The conventions of a template for a conversation of plain answers.

    `endings` are the texts that end its turns. `unended` says which answers get no end: `an answer` (all), `the last
    answer` or `any answer but the last`. `opens` is the beginning of a next turn that the template writes after the
    last answer; `ambiguous` is set if it is not clear where that turn begins. `header` is the beginning of answers that
    no generation prompt has. `only_lists` is set if it reads a content only as a list of parts. `failure` is set if it
    renders no such conversation, or if the answers cannot be located in its text.
    """

    endings: tuple[str, ...] = ()
    unended: str = ""
    opens: str = ""
    ambiguous: bool = False
    header: str = ""
    only_lists: bool = False
    failure: str = ""

    @property
    def refusal(self) -> str:
        """The reason why no row can be trained with the template; empty if there is none."""
        if self.failure:
            return self.failure
        if self.ambiguous:
            return f"the chat template ends an answer with the beginning of the next turn: {self.opens!r}"
        if self.header:
            return f"the chat template begins answers with {self.header!r}, but writes no generation prompt"
        return ""

    def make_ends(self, eot_token: str | None) -> Ends:
        """Returns the ends of turns with a recipe's `eot_token`."""
        return Ends(self.endings, self.opens, not self.unended, eot_token)

    @property
    def advice(self) -> str:
        """The remedy for answers without an end."""
        if self.endings:
            return f"set model.eot_token to {self.endings[0].strip()!r}, which ends the others"
        return "set model.eot_token to the stop token of the model, often its eos_token"


def learn_conventions(template: Template) -> Conventions:
    """Learns a template's conventions from its renders of a conversation of two turns, and of the first turn alone."""
    if template.missing:
        return Conventions()
    plain = _make_messages(as_lists=False)
    failures: list[str] = []
    for messages in (plain, _make_messages(as_lists=True), [{"role": "system", "content": "instruction"}, *plain]):
        try:
            return _observe(template, messages)
        except RowError as error:
            failures.append(str(error))
    return Conventions(failure=f"the chat template does not render a conversation of user and assistant: {failures[0]}")


def find_problems(seen: Conventions, eot_token: str | None) -> list[Problem]:
    """Returns the problems of a template that are known before any row is rendered."""
    if seen.refusal:
        return [Problem(seen.refusal, hint=_find_remedy(seen))]
    if seen.unended and not eot_token:
        return [Problem(f"the chat template writes no end-of-turn token after {seen.unended}", hint=seen.advice)]
    if not eot_token or (seen.unended and eot_token in [end.strip() for end in seen.endings or (eot_token,)]):
        return []
    if seen.unended:
        message = f"model.eot_token ends {seen.unended} with {eot_token!r}, the chat template the others with "
        return [Problem(f"{message}{seen.endings[0]!r}", hint=seen.advice, severity="warning")]
    message = f"model.eot_token has no effect: the chat template ends answers itself, with {seen.endings[0]!r}"
    return [Problem(message, hint="remove model.eot_token", severity="warning")]


def _find_remedy(seen: Conventions) -> str | None:
    if seen.failure:
        return None
    if seen.ambiguous:
        return "write it only if a message or a generation prompt follows"
    return "write it at the end of the text, too, if add_generation_prompt is set"


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


def _observe(template: Template, messages: list[Message]) -> Conventions:
    only_lists = isinstance(messages[0]["content"], list)
    long, short = (
        Survey(template, make_stand_ins(conversation, cut_whole)) for conversation in (messages, messages[:-2])
    )
    if len(long.full.slots) < len(messages):
        raise RowError("it leaves out the contents of messages")
    opens, ambiguous = _find_opened_turn(long, template)
    if ambiguous:
        return Conventions(opens=opens, ambiguous=True, only_lists=only_lists)
    try:
        return _learn_ends(long, short, template, opens)._replace(only_lists=only_lists)
    except RowError as error:
        failure = f"answers cannot be located in the text of the chat template: {error}"
        return Conventions(failure=failure, only_lists=only_lists)


def _learn_ends(long: Survey, short: Survey, template: Template, opens: str) -> Conventions:
    if header := "" if opens else _find_header(short):
        return Conventions(header=header)
    (single,) = _find_ends(short, opens)
    try:
        middle, last = _find_ends(long, opens)
    except RowError:  # rows of two turns are refused for the same reason, but not rows of one
        middle = last = single
    middle = middle or _find_middle_end(long, template)
    endings = tuple(dict.fromkeys(filter(None, (middle, last, single))))
    return Conventions(endings, _describe_unended(middle, last and single), opens)


def _find_ends(survey: Survey, opens: str) -> list[str]:
    regions = find_regions(survey, Ends(opens=opens, is_complete=False))
    return [survey.full.text[region.cut : region.end] for region in regions]


def _describe_unended(middle: str, last: str) -> str:
    """Says which answers get no end, given the end of an answer in the middle and of the last one."""
    if middle and last:
        return ""
    if not middle and not last:
        return EVERY
    return "the last answer" if middle else "any answer but the last"


def _find_opened_turn(survey: Survey, template: Template) -> tuple[str, bool]:
    """Returns the beginning of a turn that follows the last answer, or an empty text.

    The flag is set if it is not clear where that turn begins. An answer may end with a single token that also opens the
    user's turn (GLM); the model emits that token. Two or more tokens, the last of which opens a turn, are more than the
    model emits.
    """
    text, cuts = survey.full.text, [start for start, _ in survey.full.slots]
    after, gap = text[cuts[-1] + 1 :], text[cuts[-3] + 1 : cuts[-2]]
    tokens = list(_TOKEN.finditer(after))
    first = _find_first_token(text[: cuts[0]], template)
    starts = [token.start() for token in tokens[1:] if token[0] == first]
    if starts:
        return after[starts[0] :], not gap.startswith(after[: starts[0]])
    openers = {found[-1] for found in (_TOKEN.findall(text[a + 1 : b]) for a, b in pairwise(cuts)) if found}
    if len(tokens) > 1 and tokens[-1][0] in openers:
        return "".join(token[0] for token in tokens[1:]), True
    return "", False


def _find_first_token(text: str, template: Template) -> str:
    """Returns the token that begins the first turn, after BOS; empty if there is none."""
    special = set(template.variables.values())
    return next((token for token in _TOKEN.findall(text) if token not in special), "")


def _find_header(survey: Survey) -> str:
    """Returns the beginning of an answer that the model would have to write, because no generation prompt has it."""
    if survey.has_prompt():
        return ""
    message = len(survey.stand_ins.messages) - 1
    start, _ = survey.find_start(survey.full, message)
    written = survey.full.text[start : survey.full.slots[-1][0]]
    return written if written.strip() and not is_reasoning_mark(written) else ""


def _find_middle_end(survey: Survey, template: Template) -> str:
    """Returns the control tokens after the first of two answers, up to the next turn.

    The next turn begins with the token that begins the text, or with the text before both questions. Its beginning is
    also what remains after the end of a question, if answers end alike.
    """
    text, cuts = survey.full.text, [start for start, _ in survey.full.slots]
    gap = text[cuts[-3] + 1 : cuts[-2]]
    first = _find_first_token(text[: cuts[0]], template)
    question_end = text[cuts[-2] + 1 : cuts[-1]].removesuffix(survey.usual_prompt).strip()
    if first and first in gap:
        end = gap[: gap.index(first)].rstrip()
    elif question_end and gap.lstrip().startswith(question_end):
        end = gap[: gap.index(question_end) + len(question_end)]
    else:
        end = gap[: _find_shared_end(text[: cuts[-4]], gap)].rstrip()
    return end if _CONTROL.fullmatch(end) or end.strip() in template.variables.values() else ""


def _find_shared_end(text: str, gap: str) -> int:
    """Returns where the whole tokens begin that both texts end with; the length of `gap` if there are none."""
    same = next((n for n, (a, b) in enumerate(zip(reversed(text), reversed(gap), strict=False)) if a != b), None)
    limit = len(gap) - (min(len(text), len(gap)) if same is None else same)
    return next((token.start() for token in _TOKEN.finditer(gap) if token.start() >= limit), len(gap))
