"""System prompts of the training rows: the common one is the persona, which chats need too."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

from sftrun.types import Message

REMEMBERED = 1000  # different system prompts that are counted one by one, so that memory is bounded


class SystemPrompts:
    """Counts of the system prompts of conversations."""

    def __init__(self) -> None:
        self.rows = 0
        self.without = 0
        self.texts: Counter[str] = Counter()

    def add(self, messages: Sequence[Message]) -> None:
        """Counts the system prompt of one conversation."""
        self.rows += 1
        text = _read_system_prompt(messages)
        if text is None:
            self.without += 1
        elif text in self.texts or len(self.texts) < REMEMBERED:
            self.texts[text] += 1

    def to_json(self) -> dict[str, Any]:
        """Returns the most frequent system prompt, the number of rows with it, and of rows without any."""
        text, count = next(iter(self.texts.most_common(1)), (None, 0))
        return {"rows": self.rows, "without": self.without, "most_frequent": text, "rows_with_it": count}


def _read_system_prompt(messages: Sequence[Message]) -> str | None:
    if not messages or messages[0].get("role") != "system":
        return None
    content = messages[0].get("content")
    if isinstance(content, list):
        content = "".join(str(part.get("text", "")) for part in content if isinstance(part, dict))
    return content if isinstance(content, str) and content.strip() else None
