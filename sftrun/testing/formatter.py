"""Promises of a formatter."""

import copy
from collections.abc import Iterable, Iterator
from typing import Any

import msgspec

from sftrun import kinds, types
from sftrun.errors import RowError
from sftrun.testing.examples import is_text
from sftrun.types import Conversation, Row

JUNK: tuple[Any, ...] = (None, True, -1, 0.5, "", " \n", "\0", [], {}, [None], [[]], {"x": 1})


def check_formatter(formatter: kinds.Formatter, rows: Iterable[dict[str, Any]]) -> None:
    """Raises AssertionError unless `rows` become conversations, the same each time, and broken rows a RowError."""
    rows = list(rows)
    assert rows, "check_formatter needs a row"
    for number, data in enumerate(rows, 1):
        row = Row(data, f"rows.jsonl:{number}")
        before = copy.deepcopy(data)
        talk = formatter.format(row)
        _check_conversation(talk, row)
        assert data == before, f"{row.origin}: the row was changed in place"
        assert formatter.format(row) == talk, f"{row.origin}: the conversation is not the same a second time"
    broken = [each for data in rows for each in _broken(data) if isinstance(each, dict)]
    for data in [{"unexpected": 1}, *broken]:
        _check_hostile(formatter, Row(data, "hostile.jsonl:1"))


def _broken(value: Any) -> Iterator[Any]:
    """Yields copies of a value; in each, one part, at any depth, is missing or of another type."""
    yield from JUNK
    if isinstance(value, dict):
        for key, inner in value.items():
            yield {name: other for name, other in value.items() if name != key}
            yield from ({**value, key: each} for each in _broken(inner))
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            yield from ([*value[:index], each, *value[index + 1 :]] for each in _broken(inner))


def _check_hostile(formatter: kinds.Formatter, row: Row) -> None:
    try:
        talk = formatter.format(row)
    except RowError as error:
        if not is_text(str(error)):
            raise AssertionError(f"the RowError for {row.data!r} has no reason") from error
        return
    except Exception as error:
        raise AssertionError(f"must be a RowError, not {type(error).__name__}: {error}; for {row.data!r}") from error
    try:
        _check_conversation(talk, row)
    except AssertionError as error:
        raise AssertionError(f"neither refused nor right: {error}; for {row.data!r}") from None


def _check_conversation(talk: Any, row: Row) -> None:
    assert isinstance(talk, Conversation), f"format() must return a Conversation, not {type(talk).__name__}"
    assert talk.origin == row.origin, f"the origin is {talk.origin!r}, but the row's is {row.origin!r}"
    assert talk.messages, "the conversation has no messages"
    for index, message in enumerate(talk.messages):
        assert isinstance(message, dict), f"message {index} must be a dict, not {type(message).__name__}"
        assert isinstance(message.get("role"), str), f"message {index} has no role"
        _check_content(message, index, talk.plain)
        train = message.get("train", True)
        assert isinstance(train, bool), f"message {index}: train must be true or false, not {train!r}"
    last = talk.messages[-1]["role"]
    fits = talk.plain or last == "assistant"
    assert fits, f"it ends on a {last} turn; the last message is the answer to learn, or to hold out"
    msgspec.json.encode(talk)  # held-out prompts are kept as JSON


def _check_content(message: types.Message, index: int, plain: bool) -> None:
    content = message.get("content")
    if plain:
        assert isinstance(content, str), f"message {index}: plain content must be a text, not {content!r}"
        assert message.keys() == {"role", "content"}, f"message {index}: a plain one has a role and a content only"
        return
    fits = isinstance(content, str | list) or (content is None and message.get("tool_calls"))
    assert fits, f"message {index}: content must be a text or a list of parts, not {content!r}"
