"""`sftrun generate`: answers to a file of prompts."""

import json
import sys
from pathlib import Path
from typing import Any

import click

from sftrun.errors import Place, Problem, UserError


@click.command()
@click.argument("run", type=click.Path(exists=True, file_okay=False))
@click.argument("prompts", type=click.Path(exists=True, dir_okay=False))
@click.option("--out", type=click.Path(dir_okay=False), help="Write JSON lines here, not to standard output.")
@click.option("--base", is_flag=True, help="Ask the base model, not the tuned one.")
@click.option("--max-new-tokens", default=256, type=click.IntRange(min=1), show_default=True)
@click.option("--batch-size", default=16, type=click.IntRange(min=1), show_default=True)
def command(run: str, prompts: str, out: str | None, base: bool, max_new_tokens: int, batch_size: int) -> None:
    """Answer each line of PROMPTS with the model of a run directory.

    A .jsonl file holds {"messages": […]} or {"prompt": "…"} a line; any other file one prompt a line.
    """
    from sftrun.tools.generate import answerer
    from sftrun.types import Decoding

    talks = list(_talks(Path(prompts)))
    answer = answerer(run, "base" if base else "tuned")
    decoding = Decoding(max_new_tokens=max_new_tokens, batch_size=batch_size)
    answers = answer([messages for _, messages in talks], decoding)
    lines = [
        json.dumps({**row, "answer": text}, ensure_ascii=False) + "\n"
        for (row, _), text in zip(talks, answers, strict=True)
    ]
    if out:
        Path(out).write_text("".join(lines), "utf-8")
        print(f"{len(lines)} answers: {out}", file=sys.stderr)
    else:
        sys.stdout.write("".join(lines))


def _talks(file: Path) -> list[tuple[dict[str, Any], list[dict[str, Any]]]]:
    try:
        lines = list(enumerate(file.read_text("utf-8").splitlines(), 1))
    except UnicodeDecodeError:
        raise UserError(Problem("not UTF-8 text", Place(str(file)))) from None
    read = _jsonl if file.suffix == ".jsonl" else _plain
    return [read(line, Place(str(file), number)) for number, line in lines if line.strip()]


def _plain(line: str, where: Place) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    return {"prompt": line}, [{"role": "user", "content": line}]


def _jsonl(line: str, where: Place) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    try:
        row = json.loads(line)
    except ValueError as error:
        raise UserError(Problem(f"not valid JSON: {error}", where)) from None
    if isinstance(row, dict) and isinstance(row.get("prompt"), str):
        return row, [{"role": "user", "content": row["prompt"]}]
    if isinstance(row, dict) and isinstance(row.get("messages"), list) and row["messages"]:
        return row, row["messages"]
    raise UserError(Problem('needs "messages" (a list) or "prompt" (a string)', where))
