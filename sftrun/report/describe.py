"""Formats times, hardware and model names for the report."""

import json
import re
from pathlib import PurePath
from typing import Any

from sftrun import tiny
from sftrun.options import is_path
from sftrun.recipe.model import Recipe
from sftrun.runs.numbers import NOTHING, format_number

IN_A_RUN = ("export", "merged", "model")  # folders of a run directory, whose names do not identify it

# control and direction marks, byte order marks, tag characters, lone surrogates
INVISIBLE = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\xad\u061c\u180e\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f"
    "\ufeff\ufff9-\ufffb\ufffe\uffff\ud800-\udfff\U000e0000-\U000e007f]"
)


def moment(iso: str) -> str:
    """Returns date, hour and minute of an ISO time."""
    return iso[:16].replace("T", " ")


def hardware(facts: dict[str, Any]) -> str:
    """Returns the hardware of a run: `2 CPUs, 24 GB memory, no GPU`."""
    if not facts:
        return NOTHING
    cards = [
        f"{card.get('name', 'GPU')} ({format_number(card.get('memory_gb'))} GB)" for card in facts.get("gpus") or []
    ]
    different = dict.fromkeys(cards)
    gpus = [f"{cards.count(card)} × {card}" if cards.count(card) > 1 else card for card in different]
    memory = f"{format_number(facts.get('memory_gb'))} GB memory"
    return ", ".join([f"{format_number(facts.get('cpus'))} CPUs", memory, *(gpus or ["no GPU"])])


def plain(value: Any) -> str:
    """Returns any JSON value on one line."""
    if isinstance(value, str):
        return value
    return json.dumps(value, ensure_ascii=False) if isinstance(value, (dict, list)) else format_number(value)


def folder(path: str) -> str:
    """Returns the end of a folder's path, from its last distinctive name; the rest is private."""
    parts = PurePath(path).parts
    start = next((index for index in range(len(parts) - 1, 0, -1) if parts[index] not in IN_A_RUN), 0)
    return "/".join(parts[start:])


def model(recipe: Recipe) -> str:
    """Returns the name of the base model, without private parts of its path."""
    name = recipe.model.name
    if is_path(name):
        return f"{folder(name)} (a local folder)"
    return f"{name} at {recipe.model.revision}" if recipe.model.revision else name


def is_tiny(recipe: Recipe) -> bool:
    """Returns True if the base is the embedded model, which knows nothing before it is trained."""
    return recipe.model.name == tiny.NAME
