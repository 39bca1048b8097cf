"""Promises of a source."""

from typing import Any

from sftrun import kinds
from sftrun.testing.examples import is_text
from sftrun.types import BadRow, Row

SPLITS = ("train", "val", "test")


def check_source(source: kinds.Source) -> None:
    """Raises AssertionError unless splits are known, rows repeat in order, origins are unique and the hash stays."""
    who = type(source).__name__
    splits, fingerprint = list(source.splits()), source.fingerprint()
    assert splits, f"{who}.splits() names none"
    assert len({*splits} & {*SPLITS}) == len(splits), f"{who}.splits() must be among {SPLITS}, once each: {splits}"
    assert is_text(fingerprint), f"{who}.fingerprint() must be a text: {fingerprint!r}"
    origins: set[str] = set()
    for split in splits:
        next(source.rows(split), None)  # a reader that stopped early must not move the next one
        rows, again = list(source.rows(split)), list(source.rows(split))
        assert rows == again, f"{who}.rows({split!r}) is not the same a second time"
        for row in rows:
            _check_row(row, who)
            assert row.origin not in origins, f"{who}: two rows have the origin {row.origin!r}"
            origins.add(row.origin)
            assert is_text(source.locate(row.origin)), f"{who}.locate({row.origin!r}) must say where to look"
    assert origins, f"{who} has no row, so nothing was checked"
    assert source.fingerprint() == fingerprint, f"{who}.fingerprint() is not the same a second time"


def _check_row(row: Any, who: str) -> None:
    assert isinstance(row, Row | BadRow), f"{who}: a row must be a Row or a BadRow, not {type(row).__name__}"
    assert is_text(row.origin), f"{who}: a row must have an origin: {row!r}"
    if isinstance(row, BadRow):
        assert is_text(row.reason), f"{who}: the bad row {row.origin} must have a reason"
    else:
        assert isinstance(row.data, dict), f"{who}: the data of {row.origin} must be a dict, not {row.data!r}"
