"""Cuts a JSON array into its elements while it is read, so that it need not fit into memory."""

import re
from collections.abc import Iterator
from typing import IO

import msgspec

BLOCK = 1 << 20
BOM = b"\xef\xbb\xbf"
# A string, or a sign that structures; a lone quote begins a string that goes on in the next block.
TOKEN = re.compile(rb'"[^"\\\n]*(?:\\.[^"\\\n]*)*"|([\[\]{},"])')
OPENING, CLOSING = {b"[": b"]", b"{": b"}"}, (b"]", b"}")
Token = tuple[bytes, int, int]


class BrokenError(ValueError):
    """The text is no JSON array from here on: what follows cannot be told apart."""


class Array:
    """The elements of one array: the whole of a file, or the value of a `field` of the object that it holds."""

    def __init__(self, stream: IO[bytes], field: str | None) -> None:
        self.stream = stream
        self.field = field
        self.data = b""
        self.start = 0  # what stands before is done with
        self.dropped = 0  # lines that are no longer in `data`
        self.stack: list[bytes] = []  # the brackets that are open, each as the one that closes it

    def line(self) -> int:
        """The 1-based line of what was read last, or is being read."""
        rest = self.data[self.start :]
        blank = rest[: len(rest) - len(rest.lstrip())]
        return self.dropped + self.data.count(b"\n", 0, self.start) + blank.count(b"\n") + 1

    def elements(self) -> Iterator[bytes]:
        """Each element as it is written, right or not; raises BrokenError where the array has no shape any more."""
        tokens = self._tokens()
        self._enter(tokens)
        outside, inside = len(self.stack), False
        for sign, start, end in tokens:
            if len(self.stack) > outside or sign not in (b",", b"]"):
                if sign != b",":
                    self._nest(sign)
                continue
            element = self.data[self.start : start].strip()
            if element or inside or sign == b",":
                yield element
            inside, self.start = True, end
            if sign == b"]":
                self.stack.pop()
                return self._leave(tokens)
        raise BrokenError("the file ends within the array")

    def _tokens(self) -> Iterator[Token]:
        """The signs between strings, each with its place in `data` as long as the next is not asked for."""
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
            block = self.stream.read(max(BLOCK, len(self.data) - self.start))
            if not block:
                return
            self.dropped += self.data.count(b"\n", 0, self.start)
            self.data = self.data[self.start :] + block
            at, self.start = at - self.start, 0

    def _nest(self, sign: bytes) -> None:
        if sign in OPENING:
            self.stack.append(OPENING[sign])
        elif sign in CLOSING and (not self.stack or self.stack.pop() != sign):
            raise BrokenError(f"a {sign.decode()} closes nothing")

    def _enter(self, tokens: Iterator[Token]) -> None:
        """Goes to where the first element begins."""
        sign, start, end = next(tokens, (b"", 0, 0))
        blank = not self.data[:start].removeprefix(BOM).strip()
        if not sign and blank:
            raise BrokenError("the file is empty" if not self.data.strip() else "the file holds no array of objects")
        if not blank or sign not in OPENING:
            raise BrokenError("the file holds no array of objects")
        if (sign == b"{") != (self.field is not None):
            raise BrokenError(
                "the file holds " + ("one object, not an array" if sign == b"{" else "an array, not an object")
            )
        self._nest(sign)
        self.start = end
        if self.field is not None:
            self._find(tokens, self.field)

    def _find(self, tokens: Iterator[Token], field: str) -> None:
        """Goes to where the array of a field begins."""
        there = []
        for sign, start, end in tokens:
            if len(self.stack) == 1 and sign in OPENING:
                there.append(_key(self.data[self.start : start]))
                if there[-1] == field and sign == b"[":
                    self._nest(sign)
                    self.start = end
                    return
            self._nest(sign)
            self.start = end
        named = f"; there is {', '.join(filter(None, there))}" if any(there) else ""
        raise BrokenError(f"no array in the field '{field}'{named}")

    def _leave(self, tokens: Iterator[Token]) -> None:
        """Goes to the end of the file, where nothing may follow but the rest of the object."""
        for sign, _, end in tokens:
            if not self.stack:
                raise BrokenError("something follows after the end")
            self._nest(sign)
            self.start = end
        if self.stack:
            raise BrokenError("the file ends too early")
        if self.data[self.start :].strip():
            raise BrokenError("something follows after the end")


def _key(text: bytes) -> str | None:
    """The key in a text such as `"data": `."""
    try:
        return msgspec.json.decode(text.strip().removesuffix(b":"), type=str)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None
