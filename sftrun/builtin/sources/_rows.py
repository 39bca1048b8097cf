"""Conversions of texts and values into rows."""

from typing import Any

import msgspec

import sftrun
from sftrun import strict_json


def decode_row(text: bytes, origin: str) -> sftrun.Row | sftrun.BadRow:
    """Decodes a JSON object into a row."""
    if not text:
        return sftrun.BadRow(origin, "no object stands between two commas, or after the last one")
    try:
        data = strict_json.decode(text)
    except strict_json.NotJsonError as error:
        return sftrun.BadRow(origin, str(error))
    if not isinstance(data, dict):
        return sftrun.BadRow(origin, f"must be a JSON object, not a {type(data).__name__}")
    return sftrun.Row(data, origin)


def format_row_number(place: str) -> str:
    """Formats a place `train.parquet:17` in a file without lines as `train.parquet, row 17`."""
    file, _, number = place.rpartition(":")
    return f"{file}, row {number}"


def encode_content(data: Any) -> bytes:
    """Encodes a record as bytes that are equal for equal records."""
    return msgspec.json.encode(data, enc_hook=repr)
