"""Prompts with history: writes the recipe's end after each earlier answer, as the rows of training have it."""

from sftrun.types import Rendered


def write_ends(prompt: str, rendered: Rendered, message: int) -> str:
    """Returns a prompt with the ends that `rendered`, the same messages and a last answer, has before that answer."""
    pieces: list[str] = []
    at = 0
    for span in rendered.spans:
        if span.message == message and span.generated:
            break
        text = rendered.text[span.start : span.end]
        if prompt.startswith(text, at):
            at += len(text)
        elif not span.end_of_turn:
            break  # the prompt holds more than the text, as `<think>`
        pieces.append(text)
    return "".join(pieces) + prompt[at:]
