"""Masker `all`: train on every token, as in continued pretraining."""

from collections.abc import Sequence

import sftrun


@sftrun.hookimpl
def register_maskers(register: sftrun.Register) -> None:
    register("all", All)


class All:
    """Put the loss on the whole text, prompts and the template's own words included."""

    def choose(self, spans: Sequence[sftrun.Span]) -> list[bool]:
        return [True for _ in spans]
