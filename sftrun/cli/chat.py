"""`sftrun chat`: talk to the model of a run."""

import sys

import click


@click.command()
@click.argument("run", type=click.Path(exists=True, file_okay=False))
@click.option("--base", is_flag=True, help="Talk to the base model, not the tuned one.")
@click.option("--system", help="A system prompt.")
@click.option("--max-new-tokens", default=256, type=click.IntRange(min=1), show_default=True)
def command(run: str, base: bool, system: str | None, max_new_tokens: int) -> None:
    """Talk to the model of a run directory. An empty line or Ctrl-D ends; /new starts over."""
    from sftrun.tools.generate import answerer
    from sftrun.types import Decoding

    answer = answerer(run, "base" if base else "tuned")
    decoding = Decoding(max_new_tokens=max_new_tokens, batch_size=1)
    begin = [{"role": "system", "content": system}] if system else []
    messages = list(begin)
    while said := _ask():
        if said == "/new":
            messages = list(begin)
            continue
        messages.append({"role": "user", "content": said})
        reply = answer([messages], decoding)[0]
        messages.append({"role": "assistant", "content": reply})
        print(reply, flush=True)


def _ask() -> str:
    if sys.stdin.isatty():
        print("> ", end="", file=sys.stderr, flush=True)
    return sys.stdin.readline().strip()
