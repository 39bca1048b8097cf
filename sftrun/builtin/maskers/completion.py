"""Masker `completion`: train on what follows a prompt."""

from collections.abc import Sequence

import sftrun
from sftrun.builtin.maskers import _parts


@sftrun.hookimpl
def register_maskers(register: sftrun.Register) -> None:
    register("completion", Completion, options=_parts.PartOptions)


class Completion:
    """Keep the loss on completions: generated messages that are flagged as such, else the last message."""

    honours_flags = True

    def __init__(self, options: _parts.PartOptions) -> None:
        self.options = options
        self.narrow = _parts.narrower(options)

    def choose(self, spans: Sequence[sftrun.Span]) -> list[bool]:
        last = max((span.message for span in spans), default=None)
        flags = [
            _parts.takes(self.options, span) and (span.message == last if span.train is None else span.train)
            for span in spans
        ]
        return _parts.with_ends(spans, flags)
