"""Masker `final-answer`: train on the answers that end a conversation, not on those that lead there."""

from collections.abc import Sequence
from typing import Annotated

import sftrun

SFTRUN_API = 1


class FinalAnswerOptions(sftrun.Options):
    """Which answers are trained."""

    answers: Annotated[int, sftrun.Meta(ge=1, description="How many answers, counted from the end.")] = 1
    skip_turns: Annotated[
        int,
        sftrun.Meta(ge=0, description="Answers at the start that are never trained, such as canned replies."),
    ] = 0


@sftrun.hookimpl
def register_maskers(register: sftrun.Register) -> None:
    register("final-answer", FinalAnswer, options=FinalAnswerOptions)


class FinalAnswer:
    """Keep the loss on the last answers, end-of-turn tokens included; answers at the start can be left out."""

    def __init__(self, options: FinalAnswerOptions) -> None:
        self.answers = options.answers
        self.skip_turns = options.skip_turns

    def choose(self, spans: Sequence[sftrun.Span]) -> list[bool]:
        answers = sorted({span.message for span in spans if span.generated})
        trained = answers[self.skip_turns :][-self.answers :]
        return [span.generated and span.message in trained for span in spans]
