"""Text inside Markdown, so that no value changes the document around it."""

import json
import re
from typing import Any

from sftrun.report import say

MARKUP = re.compile(r"[\\`*\[\]|~#$]|(?<![^\W_])_|_(?![^\W_])")  # an underscore inside a word is plain text
STARTS = re.compile(r"^([-+=]|\d+(?=[.)](?:\s|$)))")
SPACE = re.compile(r"[\s\x00-\x1f\x7f-\x9f\u2028\u2029]+")


class Plain(str):
    """Text that is Markdown already."""

    __slots__ = ()


def finished(value: Any) -> str:
    """What the card's template writes for a value: escaped, on one line, unless it is Plain."""
    return value if isinstance(value, Plain) else escaped(say.plain(value))


def escaped(text: str) -> str:
    """One line that Markdown shows as it is, in a paragraph or in a cell of a table."""
    line = say.INVISIBLE.sub("\ufffd", SPACE.sub(" ", text)).strip()
    line = line.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return STARTS.sub(_start, MARKUP.sub(r"\\\g<0>", line))


def _start(match: re.Match[str]) -> str:
    # "1." would begin a list; a backslash escapes marks, not digits
    return f"\\{match[1]}" if match[1] in "-+=" else f"&#{ord(match[1][0])};{match[1][1:]}"


def literal(text: str) -> Plain:
    """A string of Python or YAML, in double quotes, on one line."""
    quoted = json.dumps(text, ensure_ascii=False)
    return Plain(say.INVISIBLE.sub(_code, quoted))


def _code(match: re.Match[str]) -> str:
    code = ord(match[0])
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"
