"""Held-out prompts: the conversations of an evaluation without their last answers, and these as references."""

from pathlib import Path

import msgspec

from sftrun.data.pipeline import Batch, Pair, Pipeline
from sftrun.types import Prompt


class PromptWriter:
    """A writer of the prompts of one split, as JSON lines; it removes the file if there are none."""

    def __init__(self, pipeline: Pipeline, file: Path) -> None:
        self.pipeline = pipeline
        self.file = file
        self.out = file.open("wb")
        self.written = 0

    def add(self, batch: Batch) -> None:
        """Writes one prompt for each conversation with a sample in the batch."""
        pairs = [batch.pairs[row] for row in sorted({row for row, _ in batch.cut_from})]
        pairs = [pair for pair in pairs if len(pair[0].messages) > 1]  # a single text has no prompt
        prompts = [self._render_prompt(pair) for pair in pairs]
        for pair, encoding in zip(pairs, self.pipeline.tokenizer.encode(prompts), strict=True):
            conversation = pair[0]
            prompt = Prompt(conversation.origin, conversation.messages[:-1], encoding.ids, extract_reference(pair))
            self.out.write(msgspec.json.encode(prompt) + b"\n")
        self.written += len(pairs)

    def _render_prompt(self, pair: Pair) -> str:
        conversation = pair[0]
        return self.pipeline.choose_template(conversation).renderer.render_prompt(
            conversation.messages[:-1], conversation.tools, conversation.template_kwargs, plain=conversation.plain
        )

    def close(self) -> None:
        """Closes the file."""
        self.out.close()
        if not self.written:
            self.file.unlink()


def extract_reference(pair: Pair) -> str:
    """Returns the last message's answer: its content if that is a text, else its text in the render."""
    conversation, rendered = pair
    last = len(conversation.messages) - 1
    content = conversation.messages[last].get("content")
    if isinstance(content, str) and content and not conversation.messages[last].get("tool_calls"):
        return content
    spans = [span for span in rendered.spans if span.message == last and span.generated and not span.end_of_turn]
    return "".join(rendered.text[span.start : span.end] for span in spans)
