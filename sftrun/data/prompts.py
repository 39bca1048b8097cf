"""Held-out prompts: what a model is asked in an evaluation, and what was expected."""

from pathlib import Path

import msgspec

from sftrun.data.pipeline import Batch, Line, Pair
from sftrun.types import Prompt


class Prompts:
    """Writes the prompts of one split as JSON lines; without any, no file is left."""

    def __init__(self, line: Line, file: Path) -> None:
        self.line = line
        self.file = file
        self.out = file.open("wb")
        self.written = 0

    def add(self, batch: Batch) -> None:
        """Writes one prompt for each conversation of which there is a sample."""
        pairs = [batch.pairs[row] for row in sorted({row for row, _ in batch.of})]
        pairs = [pair for pair in pairs if len(pair[0].messages) > 1]  # a text alone asks nothing
        asked = [self._asked(pair) for pair in pairs]
        for pair, encoding in zip(pairs, self.line.tokenizer.encode(asked), strict=True):
            talk = pair[0]
            prompt = Prompt(talk.origin, talk.messages[:-1], encoding.ids, reference(pair))
            self.out.write(msgspec.json.encode(prompt) + b"\n")
        self.written += len(pairs)

    def _asked(self, pair: Pair) -> str:
        talk = pair[0]
        return self.line.renderer.prompt(talk.messages[:-1], talk.tools, talk.template_kwargs, plain=talk.plain)

    def close(self) -> None:
        self.out.close()
        if not self.written:
            self.file.unlink()


def reference(pair: Pair) -> str:
    """The answer that the last message gives: its content or, where that is no text, what the template writes."""
    talk, rendered = pair
    last = len(talk.messages) - 1
    content = talk.messages[last].get("content")
    if isinstance(content, str) and content and not talk.messages[last].get("tool_calls"):
        return content
    spans = [span for span in rendered.spans if span.message == last and span.generated and not span.end_of_turn]
    return "".join(rendered.text[span.start : span.end] for span in spans)
