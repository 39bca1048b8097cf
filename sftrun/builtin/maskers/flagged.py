"""Masker `flagged`: each message says by its key `train` whether it is trained."""

from collections.abc import Sequence
from typing import Annotated, Literal

import sftrun
from sftrun.builtin.maskers import _parts


class FlaggedOptions(_parts.PartOptions):
    """What becomes of messages that say nothing, and which parts of an answer are trained."""

    otherwise: Annotated[
        Literal["train", "skip"],
        sftrun.Meta(description="Answers without the key `train`: trained, or not."),
    ] = "train"


@sftrun.hookimpl
def register_maskers(register: sftrun.Register) -> None:
    register("flagged", Flagged, options=FlaggedOptions)


class Flagged:
    """Keep the loss on the answers whose messages have `train: true`; other text than answers is never trained."""

    honours_flags = True

    def __init__(self, options: FlaggedOptions) -> None:
        self.options = options
        self.narrow = _parts.narrower(options)

    def choose(self, spans: Sequence[sftrun.Span]) -> list[bool]:
        return _parts.with_ends(spans, [self._says(span) and _parts.takes(self.options, span) for span in spans])

    def _says(self, span: sftrun.Span) -> bool:
        return self.options.otherwise == "train" if span.train is None else span.train
