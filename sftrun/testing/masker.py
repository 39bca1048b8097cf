"""Promises of a masker."""

from collections.abc import Collection, Sequence

import msgspec

from sftrun import kinds, types
from sftrun.testing import examples


def check_masker(masker: kinds.Masker, also: Collection[str] = ()) -> None:
    """Raises AssertionError unless each span has one bool, and only text that the model emits is trained.

    Spans of the roles in `also` may be trained too. Flags must not depend on positions; the stretches of `narrow` must
    be in order, inside the text and apart from one another.
    """
    trained = 0
    talks = [*examples.talks(), *(examples.flagged() if getattr(masker, "honours_flags", False) else [])]
    for talk in talks:
        text = examples.rendered(talk)
        chosen = masker.choose(list(text.spans))
        _check_flags(masker, talk.origin, text.spans, chosen)
        for span, flag in zip(text.spans, chosen, strict=True):
            where = f"{talk.origin}: the span {span.start} to {span.end} (message {span.message}, {span.role})"
            assert not flag or span.generated or span.role in also, f"{where} is trained, but the model never emits it"
            if flag and not span.end_of_turn:
                _check_stretches(masker, text.text[span.start : span.end])
        trained += sum(chosen)
    assert trained, f"nothing is trained in any of {len(talks)} conversations"
    for odd in ("", " \n", "\0", "</think>", "<think>\nx</think>\n\ny", "Дунай 🌊" * 99):
        _check_stretches(masker, odd)


def _check_flags(masker: kinds.Masker, origin: str, spans: Sequence[types.Span], chosen: Sequence[bool]) -> None:
    assert len(chosen) == len(spans), f"{origin}: {len(chosen)} flags for {len(spans)} spans"
    assert all(isinstance(flag, bool) for flag in chosen), f"{origin}: flags must be bools: {list(chosen)}"
    assert list(masker.choose(list(spans))) == list(chosen), f"{origin}: not the same a second time"
    moved = [msgspec.structs.replace(span, start=3 * span.start, end=3 * span.end + 1) for span in spans]
    why = "choose() depends on positions; it is called once for conversations of one shape"
    assert list(masker.choose(moved)) == list(chosen), f"{origin}: {why}"


def _check_stretches(masker: kinds.Masker, text: str) -> None:
    """Raises AssertionError if the masker has `narrow`, and its stretches do not fit the text."""
    narrow = getattr(masker, "narrow", None)
    if narrow is None:
        return
    stretches = [(start, end) for start, end in narrow(text)]
    edges = [edge for stretch in stretches for edge in stretch]
    fits = edges == sorted(edges) and all(0 <= edge <= len(text) for edge in edges)
    what = f"narrow({text[:20]!r}) gives {stretches[:5]}"
    assert fits, f"{what}; stretches must be in order, inside the text and apart from one another"
    assert [*map(tuple, narrow(text))] == stretches, f"{what}, and others a second time"
