"""Masker `last-reply`: train on the last answer of the assistant only."""

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
        self.narrow = _parts.narrower(options)

    def choose(self, spans: Sequence[sftrun.Span]) -> list[bool]:
        last = max((span.message for span in spans if span.role == "assistant"), default=None)
        flags = [
            span.role == "assistant" and span.message == last and _parts.takes(self.options, span) for span in spans
        ]
        return _parts.with_ends(spans, flags)
