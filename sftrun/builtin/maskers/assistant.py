"""Masker `assistant`: train on every answer of the assistant."""

from collections.abc import Sequence

import sftrun
from sftrun.builtin.maskers import _parts


@sftrun.hookimpl
def register_maskers(register: sftrun.Register) -> None:
    register("assistant", Assistant, options=_parts.PartOptions)


class Assistant:
    """Keep the loss on every assistant turn, its end-of-turn token included."""

    def __init__(self, options: _parts.PartOptions) -> None:
        self.options = options
        self.narrow = _parts.make_narrower(options)

    def choose(self, spans: Sequence[sftrun.Span]) -> list[bool]:
        return _parts.drop_silent_ends(
            spans, [span.role == "assistant" and _parts.is_chosen(self.options, span) for span in spans]
        )
