"""Cuts a JSON array into its elements while reading it, so that it need not fit into memory."""

import re
from collections.abc import Iterator
from typing import IO, NoReturn

import msgspec

from sftrun.files import LONGEST_LINE

BLOCK = 1 << 20  # bytes read at a time
BOM = b"\xef\xbb\xbf"
TURNS = ("messages", "conversations")  # keys of one conversation, whose elements are no rows
# Matches a string or a structural character; a lone quote begins a string that continues in the next block.
TOKEN = re.compile(rb'"[^"\\\n]*(?:\\.[^"\\\n]*)*"|([\[\]{},"])')
OPENING, CLOSING = {b"[": b"]", b"{": b"}"}, (b"]", b"}")
Token = tuple[bytes, int, int]


class BrokenError(ValueError):
    """The text is no JSON array from here on, so its elements cannot be separated; `hint` says what to do."""

    def __init__(self, reason: str, hint: str | None = None, line: int | None = None) -> None:
        super().__init__(f"not valid JSON: {reason}" if hint is None else reason)
        self.hint = hint
        self.line = line


class Array:
    """The elements of one array: a whole file, or the value of a `field` of the object in it."""

    def __init__(self, stream: IO[bytes], field: str | None) -> None:
        self.stream = stream
        self.field = field
        self.data = b""
        self.start = 0  # index in `data` of the first unread byte
        self.dropped = 0  # lines already removed from `data`
        self.stack: list[bytes] = []  # closing brackets of the open ones

    def count_lines(self) -> int:
        """Returns the 1-based line of the element last read or being read."""
        rest = self.data[self.start :]
        blank = rest[: len(rest) - len(rest.lstrip())]
        return self.dropped + self.data.count(b"\n", 0, self.start) + blank.count(b"\n") + 1

    def iter_elements(self) -> Iterator[bytes]:
        """Yields the bytes of each element, valid or not; raises BrokenError if the array's structure is broken."""
        tokens = self._iter_tokens()
        self._enter_array(tokens)
        outside, inside = len(self.stack), False
        for sign, start, end in tokens:
            if len(self.stack) > outside or sign not in (b",", b"]"):
                if sign != b",":
                    self._track_bracket(sign)
                continue
            element = self.data[self.start : start].strip()
            if element or inside or sign == b",":
                yield element
            inside, self.start = True, end
            if sign == b"]":
                self.stack.pop()
                return self._check_end(tokens)
        raise BrokenError("the file ends within the array")

    def _iter_tokens(self) -> Iterator[Token]:
        """Yields structural characters outside strings, each with its position in `data`, valid until the next one."""
        at = 0
        while True:
            for found in TOKEN.finditer(self.data, at):
                sign = found[1]
                if sign == b'"':
                    at = found.start()
                    break
                if sign:
                    yield sign, found.start(), found.end()
            else:
                at = len(self.data)
            if self.data.find(b"\n", at) >= 0:
                raise BrokenError("a string is not closed")
            if len(self.data) - self.start > LONGEST_LINE:
                raise BrokenError(
                    f"an element has more than {LONGEST_LINE >> 20} MiB, and is not read", "split it, or use jsonl"
                )
            block = self.stream.read(max(BLOCK, len(self.data) - self.start))
            if not block:
                return
            self.dropped += self.data.count(b"\n", 0, self.start)
            self.data = self.data[self.start :] + block
            at, self.start = at - self.start, 0

    def _track_bracket(self, sign: bytes) -> None:
        if sign in OPENING:
            self.stack.append(OPENING[sign])
        elif sign in CLOSING and (not self.stack or self.stack.pop() != sign):
            raise BrokenError(f"a {sign.decode()} closes nothing")

    def _enter_array(self, tokens: Iterator[Token]) -> None:
        """Moves to the first element."""
        sign, start, end = next(tokens, (b"", 0, 0))
        blank = not self.data[:start].removeprefix(BOM).strip()
        if not sign and blank:
            raise BrokenError("the file is empty" if not self.data.strip() else "the file holds no array of objects")
        if not blank or sign not in OPENING:
            raise BrokenError("the file holds no array of objects")
        if sign == b"{" and self.field is None:
            self._refuse_object(tokens, start, end)
        if sign == b"[" and self.field is not None:
            raise BrokenError("the file is an array, not an object with a field", "remove field")
        self._track_bracket(sign)
        self.start = end
        if self.field is not None:
            self._find_field(tokens, self.field)

    def _refuse_object(self, tokens: Iterator[Token], start: int, end: int) -> NoReturn:
        """Raises BrokenError for a file of objects, or of one object, which may have the array in a field."""
        line = self.dropped + self.data.count(b"\n", 0, start) + 1
        fields = list(self._iter_fields(tokens, end))
        if not self.stack and (self.data[self.start :].strip() or next(tokens, None)):
            raise BrokenError("the file has several objects, not one array", "use the source jsonl", line)
        if self.stack:
            raise BrokenError("the file ends within an object", line=line)
        hint = f"set field: {' or '.join(fields)}" if fields else "write [ before it and ] after it"
        raise BrokenError("the file is one object, not an array", hint, line)

    def _iter_fields(self, tokens: Iterator[Token], end: int) -> Iterator[str]:
        """Yields the keys of the object that begins, whose values are arrays of objects."""
        self.stack.append(b"}")
        self.start, name = end, None
        for sign, at, after in tokens:
            if len(self.stack) == 2 and sign == b"{" and name and name not in TURNS:
                yield name
            name = _parse_key(self.data[self.start : at]) if len(self.stack) == 1 and sign == b"[" else None
            self._track_bracket(sign)
            self.start = after
            if not self.stack:
                return

    def _find_field(self, tokens: Iterator[Token], field: str) -> None:
        """Moves to the first element of a field's array."""
        keys = []
        for sign, start, end in tokens:
            if len(self.stack) == 1 and sign in OPENING:
                keys.append(_parse_key(self.data[self.start : start]))
                if keys[-1] == field and sign == b"[":
                    self._track_bracket(sign)
                    self.start = end
                    return
            self._track_bracket(sign)
            self.start = end
        named = f"the object has {', '.join(filter(None, keys))}" if any(keys) else None
        raise BrokenError(f"no array in the field '{field}'", named)

    def _check_end(self, tokens: Iterator[Token]) -> None:
        """Moves to the end of the file, after which only the rest of the object may follow."""
        for sign, _, end in tokens:
            if not self.stack:
                raise BrokenError("something follows after the end")
            self._track_bracket(sign)
            self.start = end
        if self.stack:
            raise BrokenError("the file ends too early")
        if self.data[self.start :].strip():
            raise BrokenError("something follows after the end")


def _parse_key(text: bytes) -> str | None:
    """Parses the key in a text such as `"data": `."""
    try:
        return msgspec.json.decode(text.strip().removesuffix(b":"), type=str)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None
