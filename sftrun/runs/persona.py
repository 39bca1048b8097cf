"""The persona of a run: the system prompt that its model was trained with, which a chat must send too."""

from collections.abc import Mapping, Sequence
from typing import Any

from sftrun.recipe.model import Recipe
from sftrun.types import Message

SYSTEM_ROLES = ("system", "developer")


def find_persona(recipe: Recipe, stats: Mapping[str, Any]) -> str | None:
    """Returns the prompt of the transform `style`, or the system prompt of at least half the rows if all have one.

    `stats` are those of `prepared/stats.json`. Returns None if the model was trained on rows without a system prompt.
    """
    styles = [use.with_.get("prompt") for use in recipe.transforms if use.use == "style"]
    if styles:
        return str(styles[-1])
    seen = stats.get("train", {}).get("system_prompts", {})
    if not seen or seen["without"] or not seen["most_frequent"] or 2 * seen["rows_with_it"] < seen["rows"]:
        return None
    return str(seen["most_frequent"])


def add_persona(messages: Sequence[Message], persona: str | None) -> list[Message]:
    """Returns messages that begin with a system prompt: their own one, or the persona."""
    has_own = bool(messages) and isinstance(messages[0], dict) and messages[0].get("role") in SYSTEM_ROLES
    return list(messages) if persona is None or has_own else [{"role": "system", "content": persona}, *messages]
