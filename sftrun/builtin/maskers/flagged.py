"""Masker `flagged`: train on the messages whose key `train` is true."""

from collections.abc import Sequence
from typing import Annotated, Literal

import sftrun
from sftrun.builtin.maskers import _parts


class FlaggedOptions(_parts.PartOptions):
    """The treatment of messages without the key, and the parts of an answer that are trained."""

    otherwise: Annotated[
        Literal["train", "skip"],
        sftrun.Meta(description="Train or skip answers without the key `train`."),
    ] = "train"


@sftrun.hookimpl
def register_maskers(register: sftrun.Register) -> None:
    register("flagged", Flagged, options=FlaggedOptions)


class Flagged:
    """Keep the loss on answers whose messages have `train: true`; other text is never trained."""

    honours_flags = True

    def __init__(self, options: FlaggedOptions) -> None:
        self.options = options
        self.narrow = _parts.make_narrower(options)

    def choose(self, spans: Sequence[sftrun.Span]) -> list[bool]:
        return _parts.drop_silent_ends(
            spans, [self._is_flagged(span) and _parts.is_chosen(self.options, span) for span in spans]
        )

    def _is_flagged(self, span: sftrun.Span) -> bool:
        return self.options.otherwise == "train" if span.train is None else span.train
