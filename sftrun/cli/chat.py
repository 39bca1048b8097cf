"""`sftrun chat`: a chat with the model of a run."""

import contextlib
import sys

import click


@click.command()
@click.argument("run", type=click.Path(exists=True, file_okay=False))
@click.option("--base", is_flag=True, help="Chat with the base model instead of the tuned one.")
@click.option("--system", help="System prompt of the chat; by default the one of the training.")
@click.option("--no-system", is_flag=True, help="Send no system prompt, not the one of the training either.")
@click.option(
    "--max-new-tokens",
    default=256,
    type=click.IntRange(min=1),
    show_default=True,
    help="Longest answer, in tokens.",
)
def command(run: str, base: bool, system: str | None, no_system: bool, max_new_tokens: int) -> None:
    """Chat with the model of a run directory. An empty line or Ctrl-D ends the chat; /new starts a new one."""
    from sftrun.cli.options import choose_system_prompt
    from sftrun.tools.generate import load_answerer
    from sftrun.types import Decoding

    system = choose_system_prompt(run, system, no_system)
    answer = load_answerer(run, "base" if base else "tuned")
    decoding = Decoding(max_new_tokens=max_new_tokens, batch_size=1)
    opening = [{"role": "system", "content": system}] if system else []
    messages = list(opening)
    if hasattr(sys.stdin, "reconfigure"):
        sys.stdin.reconfigure(errors="surrogateescape")  # a typing error is no reason to end the chat
    while line := _read_line():
        if line == "/new":
            messages = list(opening)
            continue
        messages.append({"role": "user", "content": line})
        reply = answer([messages], decoding)[0]
        messages.append({"role": "assistant", "content": reply})
        print(reply, flush=True)


def _read_line() -> str:
    while True:
        if sys.stdin.isatty():
            print("> ", end="", file=sys.stderr, flush=True)
        line = sys.stdin.readline().strip()
        with contextlib.suppress(UnicodeEncodeError):
            line.encode()
            return line
        print("this line is not text in the terminal's encoding, and was not sent", file=sys.stderr)
