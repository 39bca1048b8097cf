"""`sftrun generate`: answers a file of prompts."""

import contextlib
import json
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import IO, TYPE_CHECKING

import click

from sftrun.cli.options import choose_system_prompt
from sftrun.errors import Interrupted, UserError

if TYPE_CHECKING:
    from sftrun.tools.prompts import Prompt


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
    answers are JSON lines: the line's keys, and the answer. They are written batch by batch; Ctrl-C keeps what is
    written.
    """
    from sftrun.runs.persona import add_persona
    from sftrun.tools.generate import load_answerer
    from sftrun.tools.prompts import read_prompts
    from sftrun.types import Decoding

    if out and Path(out).exists() and Path(out).samefile(prompts):
        raise UserError(f"--out {out} is the file of prompts, which it would replace", hint="name another file")
    system = choose_system_prompt(run, None, no_system)
    prompted = read_prompts(Path(prompts))
    stdout = sys.stdout
    with contextlib.redirect_stdout(sys.stderr):  # standard output has the answers alone, whatever a backend prints
        answer = load_answerer(run, "base" if base else "tuned")
        decoding = Decoding(max_new_tokens=max_new_tokens, batch_size=batch_size)
        conversations = [add_persona(each.messages, system) for each in prompted]
        batches = answer.in_batches(conversations, decoding, [each.place for each in prompted])
        with Path(out).open("w", encoding="utf-8") if out else contextlib.nullcontext(stdout) as lines:
            _write_answers(prompted, batches, lines, out)


def _write_answers(prompted: "list[Prompt]", batches: Iterable[list[str]], lines: IO[str], out: str | None) -> None:
    """Writes the answers of each batch once they are made; says how many there are if something ends it early."""
    written = 0
    try:
        for answers in batches:
            for prompt, text in zip(prompted[written:], answers, strict=False):
                lines.write(json.dumps({**prompt.row, "answer": text}, ensure_ascii=False) + "\n")
            lines.flush()
            written += len(answers)
    except BrokenPipeError:  # nobody reads standard output any more
        raise
    except BaseException as error:
        count = f"{written} of {len(prompted)} answers are written{f': {out}' if out else ''}"
        if isinstance(error, KeyboardInterrupt):
            raise Interrupted(count) from error
        print(count, file=sys.stderr)
        raise
    if out:
        print(f"{written} answers: {out}", file=sys.stderr)
