"""Masker `completion`: train on the text after a prompt."""

from collections.abc import Sequence

import sftrun
from sftrun.builtin.maskers import _parts


@sftrun.hookimpl
def register_maskers(register: sftrun.Register) -> None:
    register("completion", Completion, options=_parts.PartOptions)


class Completion:
    """Keep the loss on completions: generated messages flagged as such, or else the last message."""

    honours_flags = True

    def __init__(self, options: _parts.PartOptions) -> None:
        self.options = options
        self.narrow = _parts.make_narrower(options)

    def choose(self, spans: Sequence[sftrun.Span]) -> list[bool]:
        last = max((span.message for span in spans), default=None)
        flags = [
            _parts.is_chosen(self.options, span) and (span.message == last if span.train is None else span.train)
            for span in spans
        ]
        return _parts.drop_silent_ends(spans, flags)
