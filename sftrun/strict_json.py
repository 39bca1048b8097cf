"""Strict JSON: names what other readers accept in silence (a repeated key) or name badly (NaN)."""

import json
import re
from collections.abc import Callable
from typing import Any

import msgspec

__all__ = ["NotJsonError", "decode", "find_wrong_byte"]

DEEPEST = 200  # levels of nesting; what reads a row goes one call deeper for each


class NotJsonError(ValueError):
    """The text is no JSON, or an object in it has a key twice; the message says why, for people."""


class _RepeatedKeyError(Exception):
    pass


def decode(text: bytes) -> Any:
    """Decodes a JSON text; raises NotJsonError with the reason and its column."""
    try:
        data = msgspec.json.decode(text)
        again = msgspec.json.encode(data)
    except UnicodeDecodeError as error:
        raise NotJsonError(find_wrong_byte(text) or str(error)) from None
    except msgspec.DecodeError as error:
        raise NotJsonError(find_wrong_byte(text) or f"not valid JSON: {_explain(text, error)}") from None
    except RecursionError:
        raise NotJsonError(_too_deep()) from None
    except OverflowError:  # an integer that msgspec reads but does not write
        again = b""
    # a repeated key has a colon that the decoded object lost; a colon in a text may be written as \u003a
    if again.count(b":") != text.count(b":") or (b"\\" in text and b"\\u003" in text):
        _check_keys(text)
    if text.count(b"[") + text.count(b"{") > DEEPEST:
        _check_depth(data)
    return data


def find_wrong_byte(text: bytes) -> str | None:
    """Returns why a text is not UTF-8: the first wrong byte, its column, and its meaning in cp1252; None if it is."""
    try:
        text.decode("utf-8")
    except UnicodeDecodeError as error:
        column = len(text[: error.start].decode("utf-8")) + 1
        meant = text[error.start : error.start + 1].decode("cp1252", "replace")
        guess = "" if meant == "\ufffd" else f", in cp1252 {meant}"
        return f"not UTF-8 text: it has the byte 0x{text[error.start]:02x}{guess} at column {column}"
    return None


def _check_keys(text: bytes) -> None:
    def refuse_repeated(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs):
            keys = [key for key, _ in pairs]
            raise _RepeatedKeyError(next(key for key in keys if keys.count(key) > 1))
        return found

    try:
        json.loads(text, object_pairs_hook=refuse_repeated)
    except _RepeatedKeyError as error:
        column = _find_second(text, str(error))
        raise NotJsonError(f"an object has the key {str(error)!r} twice{column}; rename or remove one") from None
    except RecursionError:
        raise NotJsonError(_too_deep()) from None
    except ValueError:  # a number of more digits than Python converts
        return


def _find_second(text: bytes, key: str) -> str:
    """Returns the column of the second key of an object, as `, at column 12`; nothing if it is hard to find."""
    stack: list[set[str]] = []
    for found in re.finditer(rf"({STRING})(\s*:)?|[{{\[}}\]]", text.decode()):
        sign = found[0]
        if sign in "{[":
            stack.append(set())
        elif sign in "}]":
            stack.pop()
        elif found[2]:
            name = json.loads(found[1], strict=False)
            if name == key and name in stack[-1]:
                return f", at {_place(text.decode(), found.start())}"
            stack[-1].add(name)
    return ""


def _check_depth(data: Any) -> None:
    level = [data]
    for _ in range(DEEPEST):
        inner = (each.values() if isinstance(each, dict) else each for each in level if isinstance(each, dict | list))
        level = [value for values in inner for value in values]
    if level:
        raise NotJsonError(_too_deep())


def _too_deep() -> str:
    return f"its values are nested more than {DEEPEST} deep"


def _explain(text: bytes, error: msgspec.DecodeError) -> str:
    """Returns why a text is no JSON, with the column."""
    if text and not text.strip(b"\0"):
        return "it has only NUL bytes: the file is damaged, as by a crash while it was written"
    decoded = text.decode("utf-8")
    for pattern, explain in EXPLAINED.items():
        for found in re.finditer(pattern, decoded):
            if found[1] and (message := explain(found[1])):
                return f"{message} at {_place(decoded, found.start())}"
    if decoded.lstrip().startswith(("{'", "[{'")):
        return "it is written as Python writes a dict, in single quotes; write it with json.dumps"
    try:
        json.loads(decoded)
    except json.JSONDecodeError as better:
        return _explain_position(decoded, better)
    except (ValueError, RecursionError):
        pass
    return str(error)


def _explain_foreign(sign: str) -> str:
    return f"{sign} is not JSON ({HINTS.get(sign, 'write null or a text')})"


def _explain_trailing(sign: str) -> str:
    return "a comma before the end of a list or object"


def _explain_large(number: str) -> str | None:
    try:
        is_large = abs(float(number)) == float("inf")
    except ValueError:
        return None
    return "a number is too large" if is_large else None


def _explain_surrogate(escape: str) -> str:
    return f"{escape} is half of a surrogate pair, which is no character,"


def _explain_position(text: str, error: json.JSONDecodeError) -> str:
    sign, place = text[error.pos : error.pos + 1], _place(text, error.pos)
    message = (error.msg[:1].lower() + error.msg[1:]).removesuffix(" starting at")
    if message.startswith("invalid control character"):
        name = "NUL (U+0000)" if sign == "\0" else f"U+{ord(sign):04X}"
        return f"the control character {name} stands unescaped in a text at {place}"
    if message == "extra data":
        return f"more text follows after its end, at {place}"
    cut = "it is cut off: " if not sign or message == "unterminated string" else ""
    return f"{cut}{message} at {place}"


def _place(text: str, position: int) -> str:
    """Returns the column of a position, and the line in a text of several lines."""
    line = text.count("\n", 0, position)
    column = position - text.rfind("\n", 0, position)
    return f"line {line + 1} of the object, column {column}" if "\n" in text else f"column {column}"


STRING = r'"(?:[^"\\]|\\.)*"'
HINTS = {"None": "write null", "True": "write true", "False": "write false"}
# patterns whose first group is what is wrong, and the function that says so; strings have no such group
EXPLAINED: dict[str, Callable[[str], str | None]] = {
    rf"{STRING}|(?<![\w.])(-?(?:Infinity|inf)|NaN|nan|None|True|False|undefined)(?![\w.])": _explain_foreign,
    rf"{STRING}|(,)\s*[\]}}]": _explain_trailing,
    rf"{STRING}|(-?\d[\d.]*[eE]\+?\d+|-?\d{{309,}})": _explain_large,
    r"\\\\|\\u[dD][89abAB]\w\w\\u[dD][c-fC-F]\w\w|(\\u[dD][89a-fA-F]\w\w)": _explain_surrogate,
}
