"""Texts and values as rows."""

from typing import Any

import msgspec

import sftrun


def decoded(text: bytes, origin: str) -> sftrun.Row | sftrun.BadRow:
    """A JSON object as a row."""
    try:
        data = msgspec.json.decode(text)
    except UnicodeDecodeError:
        return sftrun.BadRow(origin, "not UTF-8 text")
    except msgspec.DecodeError as error:
        return sftrun.BadRow(origin, f"not valid JSON: {error}")
    if not isinstance(data, dict):
        return sftrun.BadRow(origin, f"must be a JSON object, not a {type(data).__name__}")
    return sftrun.Row(data, origin)


def by_number(place: str) -> str:
    """A place `train.parquet:17` where no editor has a line 17."""
    file, _, number = place.rpartition(":")
    return f"{file}, row {number}"


def content(data: Any) -> bytes:
    """What a record holds, as bytes that are the same for equal records."""
    return msgspec.json.encode(data, enc_hook=repr)
