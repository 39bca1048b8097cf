"""Images, videos and audio: refuses rows that have some, because only text is trained."""

from collections.abc import Collection
from typing import Any

import sftrun

COLUMNS = ("image", "images", "video", "videos", "audio", "audios")
"""Columns of public datasets with something else than text."""

FEATURES = ({"bytes", "path"}, {"array", "sampling_rate"})
"""Keys of the objects that the library datasets writes for images, videos and audio, in columns of any name."""


def check_media(data: dict[str, Any], used: Collection[str | None] = ()) -> None:
    """Raises RowError for a row with media; `used` are the columns that the formatter reads as text."""
    for column, value in data.items():
        if (column in COLUMNS or is_media(value)) and column not in used and not _is_missing(value):
            why = "only text is trained, and a mark such as <image> would be learned as letters"
            advice = "remove the column and the marks if the text makes sense alone, or leave the row out"
            raise sftrun.RowError(f"has {column}, but {why}; {advice}", "not only text")


def is_media(value: Any) -> bool:
    """Returns True for bytes, and for an image or a sound as an object."""
    return type(value) is bytes or (type(value) is dict and any(keys <= value.keys() for keys in FEATURES))


def _is_missing(value: Any) -> bool:
    """Returns True for null and for empty values, such as the objects of nulls that Arrow writes."""
    if isinstance(value, dict):
        return all(map(_is_missing, value.values()))
    if isinstance(value, list):
        return all(map(_is_missing, value))
    return value is None or value == ""
