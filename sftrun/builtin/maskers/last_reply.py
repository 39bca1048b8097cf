"""Masker `last-reply`: train only on the last answer of the assistant."""

from collections.abc import Sequence

import sftrun
from sftrun.builtin.maskers import _parts


@sftrun.hookimpl
def register_maskers(register: sftrun.Register) -> None:
    register("last-reply", LastReply, options=_parts.PartOptions)


class LastReply:
    """Keep the loss on the last assistant turn, its end-of-turn token included."""

    def __init__(self, options: _parts.PartOptions) -> None:
        self.options = options
        self.narrow = _parts.make_narrower(options)

    def choose(self, spans: Sequence[sftrun.Span]) -> list[bool]:
        last = max((span.message for span in spans if span.role == "assistant"), default=None)
        flags = [
            span.role == "assistant" and span.message == last and _parts.is_chosen(self.options, span) for span in spans
        ]
        return _parts.drop_silent_ends(spans, flags)
