"""Masker `assistant`: train on every answer of the assistant."""

from collections.abc import Sequence

import sftrun


@sftrun.hookimpl
def register_maskers(register: sftrun.Register) -> None:
    register("assistant", Assistant)


class Assistant:
    """Keep the loss on every assistant turn, its end-of-turn token included."""

    def choose(self, spans: Sequence[sftrun.Span]) -> list[bool]:
        return [span.generated and span.role == "assistant" for span in spans]
