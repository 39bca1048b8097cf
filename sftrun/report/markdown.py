"""Escapes values for Markdown, so that no value changes the document around it."""

import json
import re
from typing import Any

from sftrun.report import describe

MARKUP = re.compile(r"[\\`*\[\]|~#$]|(?<![^\W_])_|_(?![^\W_])")  # an underscore inside a word is plain text
STARTS = re.compile(r"^([-+=]|\d+(?=[.)](?:\s|$)))")
SPACE = re.compile(r"[\s\x00-\x1f\x7f-\x9f\u2028\u2029]+")


class Plain(str):
    """Text that is already Markdown."""

    __slots__ = ()


def finalize(value: Any) -> str:
    """Returns a value of the card's template as one escaped line; a `Plain` is returned unchanged."""
    return value if isinstance(value, Plain) else escaped(describe.plain(value))


def escaped(text: str) -> str:
    """Returns text as one line that Markdown shows literally, in a paragraph or in a table cell."""
    line = describe.INVISIBLE.sub("\ufffd", SPACE.sub(" ", text)).strip()
    line = line.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return STARTS.sub(_start, MARKUP.sub(r"\\\g<0>", line))


def _start(match: re.Match[str]) -> str:
    # "1." would begin a list, and a backslash does not escape a digit
    return f"\\{match[1]}" if match[1] in "-+=" else f"&#{ord(match[1][0])};{match[1][1:]}"


def literal(value: Any) -> Plain:
    """Returns a literal of Python or YAML for a text, or a list or dict of texts, on one line."""
    quoted = json.dumps(value, ensure_ascii=False)
    return Plain(describe.INVISIBLE.sub(_code, quoted))


def _code(match: re.Match[str]) -> str:
    code = ord(match[0])
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"
