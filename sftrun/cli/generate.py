"""`sftrun generate`: answers a file of prompts."""

import json
import sys
from pathlib import Path
from typing import Any

import click

from sftrun.cli.options import choose_system_prompt
from sftrun.errors import Place, Problem, UserError

Prompt = tuple[dict[str, Any], list[dict[str, Any]]]
"""The keys of a line, and its messages."""


@click.command()
@click.argument("run", type=click.Path(exists=True, file_okay=False))
@click.argument("prompts", type=click.Path(exists=True, dir_okay=False))
@click.option("--out", type=click.Path(dir_okay=False), help="Write JSON lines to this file, not to standard output.")
@click.option("--base", is_flag=True, help="Use the base model instead of the tuned one.")
@click.option("--no-system", is_flag=True, help="Do not add the system prompt of the training to prompts without one.")
@click.option(
    "--max-new-tokens", default=256, type=click.IntRange(min=1), show_default=True, help="Longest answer, in tokens."
)
@click.option(
    "--batch-size", default=16, type=click.IntRange(min=1), show_default=True, help="Prompts answered at the same time."
)
def command(
    run: str, prompts: str, out: str | None, base: bool, no_system: bool, max_new_tokens: int, batch_size: int
) -> None:
    """Answer each line of PROMPTS with the model of a run directory.

    Each line of a .jsonl file is {"messages": […]} or {"prompt": "…"}; each line of any other file is a prompt. The
    answers are JSON lines: the line's keys, and the answer.
    """
    from sftrun.runs.persona import add_persona
    from sftrun.tools.generate import load_answerer
    from sftrun.types import Decoding

    system = choose_system_prompt(run, None, no_system)
    prompted = _read_prompts(Path(prompts))
    answer = load_answerer(run, "base" if base else "tuned")
    decoding = Decoding(max_new_tokens=max_new_tokens, batch_size=batch_size)
    answers = answer([add_persona(messages, system) for _, messages in prompted], decoding)
    lines = [
        json.dumps({**row, "answer": text}, ensure_ascii=False) + "\n"
        for (row, _), text in zip(prompted, answers, strict=True)
    ]
    if out:
        Path(out).write_text("".join(lines), "utf-8")
        print(f"{len(lines)} answers: {out}", file=sys.stderr)
    else:
        sys.stdout.write("".join(lines))


def _read_prompts(file: Path) -> list[Prompt]:
    try:
        lines = list(enumerate(file.read_text("utf-8").splitlines(), 1))
    except UnicodeDecodeError:
        raise UserError(Problem("not UTF-8 text", Place(str(file)), hint="save the file as UTF-8")) from None
    if file.suffix == ".jsonl":
        return [_json_prompt(line, Place(str(file), number)) for number, line in lines if line.strip()]
    return [_text_prompt(line) for _, line in lines if line.strip()]


def _text_prompt(line: str) -> Prompt:
    return {"prompt": line}, [{"role": "user", "content": line}]


def _json_prompt(line: str, where: Place) -> Prompt:
    try:
        row = json.loads(line)
    except ValueError as error:
        raise UserError(Problem(f"not valid JSON: {error}", where)) from None
    if isinstance(row, dict) and isinstance(row.get("prompt"), str):
        return row, [{"role": "user", "content": row["prompt"]}]
    if isinstance(row, dict) and isinstance(row.get("messages"), list) and row["messages"]:
        return row, row["messages"]
    raise UserError(Problem('a line needs "messages" (a list) or "prompt" (a string)', where))
