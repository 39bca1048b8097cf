"""Reads files of prompts: JSON lines with `messages` or `prompt`, or one prompt a line."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from sftrun import strict_json
from sftrun.errors import Place, Problem, UserError
from sftrun.files import LONGEST_LINE, iter_lines
from sftrun.types import Message

BOM = b"\xef\xbb\xbf"


class Prompt(NamedTuple):
    """A prompt: the keys of its line, its messages, and its place in the file."""

    row: dict[str, Any]
    messages: list[Message]
    place: Place


def read_prompts(file: Path) -> list[Prompt]:
    """Reads each line of a file that is not blank; raises UserError with all lines that are no prompts.

    A line of a .jsonl file is an object; a line of any other file is a prompt. Only \\n ends a line.
    """
    prompts: list[Prompt] = []
    problems: list[Problem] = []
    for number, line in _iter_lines(file):
        place = Place(str(file), number)
        try:
            prompts.append(_read_json(line, place) if file.suffix == ".jsonl" else _read_text(line, place))
        except ValueError as error:
            problems.append(Problem(str(error), place))
    if problems:
        raise UserError(problems)
    if not prompts:
        raise UserError(Problem("the file has no prompts", Place(str(file))))
    return prompts


def _iter_lines(file: Path) -> Iterator[tuple[int, bytes]]:
    with file.open("rb") as lines:
        for number, line in enumerate(iter_lines(lines), 1):
            if line is None:
                message = f"the line has more than {LONGEST_LINE >> 20} MiB"
                raise UserError(Problem(message, Place(str(file), number)))
            text = (line.removeprefix(BOM) if number == 1 else line).strip()
            if text:
                yield number, text


def _read_text(line: bytes, place: Place) -> Prompt:
    if flaw := strict_json.find_wrong_byte(line):
        raise ValueError(flaw)
    text = line.decode()
    if "\0" in text:
        raise ValueError("contains a NUL character: it is not text, or in another encoding")
    return Prompt({"prompt": text}, [{"role": "user", "content": text}], place)


def _read_json(line: bytes, place: Place) -> Prompt:
    row = strict_json.decode(line)
    if isinstance(row, dict) and isinstance(row.get("prompt"), str):
        return Prompt(row, [{"role": "user", "content": row["prompt"]}], place)
    if not isinstance(row, dict) or not isinstance(row.get("messages"), list) or not row["messages"]:
        raise ValueError('a line needs "messages" (a list) or "prompt" (a string)')
    for index, message in enumerate(row["messages"]):
        if not isinstance(message, dict) or not isinstance(message.get("role"), str):
            raise ValueError(f'message {index} must be an object with "role" and "content"')
        if "content" in message and not isinstance(message["content"], str | list | None):
            raise ValueError(f"message {index} has a content that is a {type(message['content']).__name__}, not a text")
    return Prompt(row, row["messages"], place)
