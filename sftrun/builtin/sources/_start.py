"""The start of a file: names files that are something else than their source reads."""

import io
from pathlib import Path

import msgspec

import sftrun
from sftrun import strict_json

LOOK = 512  # bytes
WIDE = "convert it, for example with iconv -t utf-8"
# first bytes of a file, what it is, and what to do
KINDS = {
    b"\xff\xfe\0\0": ("is UTF-32, not UTF-8", WIDE),
    b"\0\0\xfe\xff": ("is UTF-32, not UTF-8", WIDE),
    b"\xff\xfe": ("is UTF-16, not UTF-8", WIDE),
    b"\xfe\xff": ("is UTF-16, not UTF-8", WIDE),
    b"\x1f\x8b": ("is compressed with gzip", "let its name end in .gz"),
    b"\x28\xb5\x2f\xfd": ("is compressed with zstd", "let its name end in .zst"),
    b"PK\x03\x04": ("is a ZIP archive or a spreadsheet", "unpack it, or save it as CSV"),
    b"PAR1": ("is a Parquet file", "use the source parquet"),
    b"SQLite format 3": ("is an SQLite database", "export its rows"),
    b"version https://git-lfs": ("is a Git LFS pointer, not the data", "run git lfs pull"),
}
PAGES = (b"<!doctype html", b"<html")


def find_other_kind(start: bytes, is_utf8: bool = True, is_text: bool = False) -> tuple[str, str] | None:
    """Returns what a file is by its first bytes and what to do; None if it can be what it should be."""
    head = start[:LOOK]
    found = next((kind for magic, kind in KINDS.items() if head.startswith(magic)), None)
    if found is None and not is_text and head.lstrip().lower().startswith(PAGES):
        return "is a web page, not the data", "download the file itself"
    if found is None and (order := _find_byte_order(head)):
        found = (f"is UTF-16 ({order}) without a byte order mark, not UTF-8", WIDE)
    return None if found and found[0].startswith("is UTF-") and not is_utf8 else found


def _find_byte_order(head: bytes) -> str | None:
    """Returns the byte order of UTF-16 of mostly Latin text, which is NUL at every other byte."""
    half = len(head) // 2
    even, odd = head[0::2].count(0), head[1::2].count(0)
    if half < 8 or (even and odd) or max(even, odd) < half / 2:
        return None
    return "little-endian" if odd else "big-endian"


def check_first_line(file: Path, text: bytes, lines: io.BufferedReader, number: int) -> None:
    """Raises UserError if a file is JSON, but not one object a line; `text` is its first line that is not blank."""
    if text.startswith(b"{") and text.endswith(b"}"):
        return
    try:
        value = msgspec.json.decode(text)
    except (ValueError, RecursionError) as error:
        if text.startswith(b"["):
            _refuse_shape(file, number, "is one JSON array, not one object a line", "use the source json")
        if str(error) == "Input data was truncated" and text.endswith((b"{", b"[", b",")):
            hint = "write each object on one line, for example with jq -c ."
            _refuse_shape(file, number, "has objects over several lines, not one a line", hint)
        return
    is_whole = not lines.peek(LOOK).strip() if isinstance(value, list) else False
    if is_whole and any(isinstance(each, dict) for each in value):
        _refuse_shape(file, number, "is one JSON array, not one object a line", "use the source json")


def _refuse_shape(file: Path, number: int, message: str, hint: str) -> None:
    raise sftrun.UserError(sftrun.Problem(f"the file {message}", sftrun.errors.Place(str(file), number), hint=hint))


def explain_undecoded(text: str, encoding: str) -> str:
    """Returns why a text read with `surrogateescape` is not in its encoding."""
    raw = text.encode("utf-8", "surrogateescape")
    wrong = next(character for character in text if "\udc80" <= character <= "\udcff")
    if encoding != "utf-8":
        return f"is not {encoding} text: the byte 0x{ord(wrong) - 0xDC00:02x}; set encoding"
    reason = strict_json.find_wrong_byte(raw) or "not UTF-8 text"
    return f"is {reason.partition(' at column')[0]}; set encoding"
