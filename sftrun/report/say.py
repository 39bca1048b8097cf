"""Numbers, times and places as people read them."""

import json
import math
import re
from pathlib import PurePath
from typing import Any

from sftrun import tiny
from sftrun.recipe.model import Recipe

NOTHING = "–"
IN_A_RUN = ("export", "merged", "model")  # folders of a run directory, whose names tell nothing

# control and direction marks, byte order marks, tag characters, halves of pairs: what an eye would miss
INVISIBLE = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\xad\u061c\u180e\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f"
    "\ufeff\ufff9-\ufffb\ufffe\uffff\ud800-\udfff\U000e0000-\U000e007f]"
)


def number(value: Any) -> str:
    """A value for a table: four significant digits, thousands apart; a dash where there is none."""
    if value is None:
        return NOTHING
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    return _decimal(value) if isinstance(value, float) else str(value)


def _decimal(value: float) -> str:
    if math.isnan(value):
        return "not a number"
    if math.isinf(value):
        return "∞" if value > 0 else "−∞"
    if value and not 1e-4 <= abs(value) < 1e7:
        text = f"{value:.3g}"
    else:
        text = f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
    return text.replace("-", "−", 1) if value < 0 else text


def share(part: Any, whole: Any) -> str:
    """A part of a whole in per cent."""
    return f"{100 * part / whole:.1f} %" if part is not None and whole else NOTHING


def duration(seconds: float) -> str:
    """Seconds as `1 h 02 min`, `3 min 20 s` or `12 s`."""
    if not math.isfinite(seconds):
        return NOTHING
    if 0 < seconds < 10:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes:02} min"
    return f"{minutes} min {rest:02} s" if minutes else f"{rest} s"


def moment(iso: str) -> str:
    """Date, hour and minute of an ISO time."""
    return iso[:16].replace("T", " ")


def hardware(found: dict[str, Any]) -> str:
    """What a run ran on: `2 CPUs, 24 GB memory, no GPU`."""
    if not found:
        return NOTHING
    cards = [f"{card.get('name', 'GPU')} ({number(card.get('memory_gb'))} GB)" for card in found.get("gpus") or []]
    different = dict.fromkeys(cards)
    gpus = [f"{cards.count(card)} × {card}" if cards.count(card) > 1 else card for card in different]
    memory = f"{number(found.get('memory_gb'))} GB memory"
    return ", ".join([f"{number(found.get('cpus'))} CPUs", memory, *(gpus or ["no GPU"])])


def plain(value: Any) -> str:
    """Any JSON value on one line."""
    if isinstance(value, str):
        return value
    return json.dumps(value, ensure_ascii=False) if isinstance(value, (dict, list)) else number(value)


def is_local(name: str) -> bool:
    """Whether a model's name is a folder rather than an id on the Hub."""
    return name.startswith((".", "/", "~"))


def folder(path: str) -> str:
    """The end of a folder's path, from its last telling name on; the rest is nobody's business."""
    parts = PurePath(path).parts
    telling = next((index for index in range(len(parts) - 1, 0, -1) if parts[index] not in IN_A_RUN), 0)
    return "/".join(parts[telling:])


def model(recipe: Recipe) -> str:
    """The base model, for a reader elsewhere."""
    name = recipe.model.name
    if is_local(name):
        return f"{folder(name)} (a local folder)"
    return f"{name} at {recipe.model.revision}" if recipe.model.revision else name


def is_tiny(recipe: Recipe) -> bool:
    """Whether the base is the embedded model, which knows nothing before it is trained."""
    return recipe.model.name == tiny.NAME
