"""Promises of a transform."""

import copy
from collections.abc import Sequence
from typing import get_args

import msgspec

from sftrun import kinds, types
from sftrun.testing import examples
from sftrun.testing.examples import is_text
from sftrun.types import Conversation

ACTIONS = get_args(types.NoteAction)
Note = tuple[str, str, str, str]


def check_transform(transform: kinds.Transform, conversations: Sequence[Conversation] = ()) -> None:
    """Raises AssertionError unless a transform repeats itself, changes nothing in place, and notes what it did.

    Give conversations that the transform acts on; the conversations of `talks` are always tried too.
    """
    talks = _distinct([*examples.talks(), *conversations])
    before = copy.deepcopy(talks)
    made, notes = _apply(transform, talks)
    assert talks == before, "conversations were changed in place; make new ones (msgspec.structs.replace)"
    assert _apply(transform, talks) == (made, notes), "not the same a second time: state must not outlive apply()"
    origins = {talk.origin for talk in talks}
    for talk in made:
        assert isinstance(talk, Conversation), f"apply() must yield Conversations, not {type(talk).__name__}"
        assert talk.origin in origins, f"the origin {talk.origin!r} belongs to none of the conversations"
    for origin, action, reason, detail in notes:
        assert origin in origins, f"the note on {origin!r} is about none of the conversations"
        assert action in ACTIONS, f"{origin}: the action is {action!r}; there are {', '.join(ACTIONS)}"
        assert is_text(reason), f"{origin}: the note has no reason"
        assert isinstance(detail, str), f"{origin}: the detail of a note must be a text, not {detail!r}"
    for talk in talks:
        _check_noted(talk, made, {action for origin, action, *_ in notes if origin == talk.origin})


def _distinct(conversations: Sequence[Conversation]) -> list[Conversation]:
    """Returns the conversations, each with its own origin."""
    numbered = enumerate(copy.deepcopy([*conversations]), 1)
    return [msgspec.structs.replace(talk, origin=f"talks.jsonl:{number}") for number, talk in numbered]


def _apply(transform: kinds.Transform, given: Sequence[Conversation]) -> tuple[list[Conversation], list[Note]]:
    notes: list[Note] = []

    def note(origin: str, action: types.NoteAction, reason: str, detail: str = "", /) -> None:
        notes.append((origin, action, reason, detail))

    made = list(transform.apply(iter(given), examples.context(given[:1], note)))
    return made, notes


def _check_noted(talk: Conversation, made: Sequence[Conversation], noted: set[str]) -> None:
    """Raises AssertionError unless the notes on a conversation match its result.

    A conversation that comes out unchanged is not noted, even if others were made of it.
    """
    results = [each for each in made if each.origin == talk.origin]
    actions = " and ".join(sorted(noted)) or "nothing"
    done = noted - {"added"}
    if talk in results:
        was, fits = "kept as it is", not done
    elif results:
        was, fits = "changed", done == {"changed"}
    else:
        was, fits = "dropped", done in ({"dropped"}, {"filtered"})
    assert fits, f"{talk.origin} ({talk.messages}) was {was}, but noted is: {actions}"
    assert len(results) > 1 or "added" not in noted, f"{talk.origin}: nothing was added to it, but noted is: {actions}"
