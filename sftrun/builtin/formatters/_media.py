"""Images, videos and audio: refuses rows that have some, because only text is trained."""

from collections.abc import Collection
from typing import Any

import sftrun

COLUMNS = ("image", "images", "video", "videos", "audio", "audios")
"""Columns of public datasets with something else than text."""


def check_media(data: dict[str, Any], used: Collection[str | None] = ()) -> None:
    """Raises RowError for a row with media; `used` are the columns that the formatter reads as text."""
    for column in COLUMNS:
        if column in data and column not in used and not _is_missing(data[column]):
            why = "only text is trained, and a mark such as <image> would be learned as letters"
            advice = "remove the column and the marks if the text makes sense alone, or leave the row out"
            raise sftrun.RowError(f"has {column}, but {why}; {advice}", "not only text")


def _is_missing(value: Any) -> bool:
    """Returns True for null and for empty values, such as the objects of nulls that Arrow writes."""
    if isinstance(value, dict):
        return all(map(_is_missing, value.values()))
    if isinstance(value, list):
        return all(map(_is_missing, value))
    return value is None or value == ""
