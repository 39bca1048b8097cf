"""Keeps secrets and terminal commands out of what is printed and recorded: every output passes `hide` or `printable`.

Secrets are the values of variables that a recipe uses as `${env:NAME}`, of variables whose name says that they are a
token, and values that a recipe has written out where a secret belongs.
"""

import contextlib
import difflib
import html
import json
import os
import re
import sys
from collections.abc import Iterable, Iterator
from typing import Any

TOKEN_NAME = re.compile(
    r"(?!SFTRUN_).*(_|^)(API_?KEY|ACCESS_?KEY|SECRET_?KEY|TOKEN|SECRET|PASSWORD|CREDENTIALS)", re.IGNORECASE
)
SECRET_KEY = re.compile(r"(?i)(api|access|secret|private|auth)[_-]?(key|token)|passw|secret|credential|^key$|^token$")
SECRET_NAMES = ("api_key", "password", "secret", "token", "access_token", "secret_key")  # also with a typo
ASSIGNED = re.compile(r"""([\w-]+)["']?\s*[:=]\s*(?=["']?([^\s"',}\]]+))""")
PATH = re.compile(r"\.{0,2}/|~|[A-Za-z]:\\")
SHORTEST = 4  # characters of a secret that a recipe names: a shorter one would be found in any text
SHORTEST_TOKEN = 8  # characters of a variable that only its name makes a secret: TOKEN=test hides no word
COMMANDS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]")

_used: set[str] = set()  # names of variables
_literal: set[str] = set()  # values that a recipe has written out


def use_variable(name: str) -> None:
    """Makes the value of a variable that a recipe uses a secret, unless it is a path or very short."""
    _used.add(name)


def hide_literal(value: str) -> None:
    """Makes a text that a recipe has written out a secret."""
    if len(value) >= SHORTEST:
        _literal.add(value)


def is_secret_name(key: str) -> bool:
    """Returns True if the name of a key says that its value is a secret: `api_key`, `password`."""
    return bool(SECRET_KEY.search(key) or difflib.get_close_matches(key.lower(), SECRET_NAMES, n=1, cutoff=0.8))


def hide_written_out(text: str) -> None:
    """Makes secrets of the values that a text, which is not valid YAML, seems to give to secret keys."""
    for line in text.splitlines():
        for key, value in ASSIGNED.findall(line):
            if is_secret_name(key) and not value.startswith("${env:"):
                hide_literal(value)


def hide(text: str) -> str:
    """Returns a text with every secret in it replaced: by `${env:NAME}`, or by stars of the same length."""
    for secret, replacement in _replacements():
        if secret in text:
            text = text.replace(secret, replacement)
    return text


def printable(text: str) -> str:
    """Returns a text in which no character commands a terminal or turns the direction of a line: `\\u001b` for ESC."""
    return COMMANDS.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


class Hiding:
    """A text stream that hides secrets in what is written to it."""

    def __init__(self, stream: Any) -> None:
        self.stream = stream

    def write(self, text: str) -> int:
        """Writes a text, and returns its length."""
        self.stream.write(self.shown(text))
        return len(text)

    def writelines(self, lines: Iterable[str]) -> None:
        """Writes several texts."""
        for line in lines:
            self.write(line)

    def shown(self, text: str) -> str:
        """Returns what is written for a text."""
        return hide(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)


class Guarded(Hiding):
    """A text stream that hides secrets, and writes control characters as `\\u001b`."""

    def shown(self, text: str) -> str:
        """Returns what is written for a text; a carriage return may begin it, as in the bars of libraries."""
        start = "\r" if text.startswith("\r") else ""
        return start + printable(super().shown(text[len(start) :]))


@contextlib.contextmanager
def guarded() -> Iterator[None]:
    """A context in which nothing reaches standard output or standard error unguarded.

    Data for programs on standard output keep their control characters, except in a terminal.
    """
    out, err = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = (Guarded if out.isatty() else Hiding)(out), Guarded(err)
    try:
        yield
    finally:
        sys.stdout, sys.stderr = out, err


def _replacements() -> list[tuple[str, str]]:
    """Returns each secret, also as JSON, HTML and Python write it, with its replacement; the longest first."""
    values = {value: "*" * len(value) for value in _literal}
    for name, value in os.environ.items():
        if _is_secret(name, value):
            values[value] = f"${{env:{name}}}"
    found = {form: values[value] for value in values for form in _forms(value)}
    return sorted(found.items(), key=lambda pair: -len(pair[0]))


def _is_secret(name: str, value: str) -> bool:
    if name in _used:
        return len(value) >= SHORTEST and not PATH.match(value)
    return len(value) >= SHORTEST_TOKEN and TOKEN_NAME.fullmatch(name) is not None


def _forms(value: str) -> set[str]:
    return {value, json.dumps(value)[1:-1], json.dumps(value, ensure_ascii=False)[1:-1], html.escape(value)}
