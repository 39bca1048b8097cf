"""Masker `final-answer`: train on the last answers of a conversation, not on the earlier ones."""

from collections.abc import Sequence
from typing import Annotated

import sftrun

SFTRUN_API = 1


class FinalAnswerOptions(sftrun.Options):
    """The answers that are trained."""

    answers: Annotated[int, sftrun.Meta(ge=1, description="Number of answers, counted from the end.")] = 1
    skip_turns: Annotated[
        int,
        sftrun.Meta(ge=0, description="Answers at the start that are never trained, such as canned replies."),
    ] = 0


@sftrun.hookimpl
def register_maskers(register: sftrun.Register) -> None:
    register("final-answer", FinalAnswer, options=FinalAnswerOptions)


class FinalAnswer:
    """Trains the last answers, with their end-of-turn tokens; answers at the start can be left out."""

    def __init__(self, options: FinalAnswerOptions) -> None:
        self.answers = options.answers
        self.skip_turns = options.skip_turns

    def choose(self, spans: Sequence[sftrun.Span]) -> list[bool]:
        answers = sorted({span.message for span in spans if span.generated})
        trained = answers[self.skip_turns :][-self.answers :]
        return [span.generated and span.message in trained for span in spans]
