"""The report: one self-contained HTML page."""

import json
import re
from functools import lru_cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape

from sftrun.recipe.model import Recipe
from sftrun.report import advice, curves, describe, scores
from sftrun.report.facts import Facts
from sftrun.runs import history
from sftrun.runs.numbers import format_duration, format_number, format_share
from sftrun.runs.persona import find_persona

LONGEST = 6000  # characters shown of one text

UNWRITABLE = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\ud800-\udfff]")


def page(recipe: Recipe, facts: Facts) -> str:
    """Returns the report as HTML; the template engine escapes every value."""
    past = history.build_history(facts.events)
    metrics = scores.metrics(facts)
    html = (
        environment()
        .get_template("report.html.jinja")
        .render(
            recipe=recipe,
            facts=facts,
            model=describe.model(recipe),
            tiny=describe.is_tiny(recipe),
            metrics=metrics,
            persona=find_persona(recipe, facts.stats),
            advice=advice.advice(recipe, past, metrics),
            charts=curves.charts(past),
            points=curves.table(past),
            skipped=past.skipped,
            speed=history.measure_speed(facts.events),
            groups=scores.groups(facts),
            is_right=scores.is_right,
            score=scores.score,
        )
    )
    return UNWRITABLE.sub("\ufffd", html)


@lru_cache(maxsize=1)
def environment() -> Environment:
    """Returns the template engine of all pages, which escapes every value."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    filters = {"number": format_number, "duration": format_duration, "moment": describe.moment, "share": format_share}
    filters |= {
        "hardware": describe.hardware,
        "plain": describe.plain,
        "text": visible,
        "message_text": message_text,
        "labels": labels,
    }
    environment.filters.update(filters)
    return environment


def visible(text: Any) -> Markup:
    """Returns a text with marks for line ends and invisible characters."""
    text = str(text)
    escaped = escape(text[:LONGEST])
    marked = Markup(describe.INVISIBLE.sub(_code, escaped)).replace(Markup("\n"), Markup('<i class="nl"></i>\n'))
    more = len(text) - LONGEST
    return marked + Markup('<i class="cut">… {} more characters</i>').format(f"{more:,}") if more > 0 else marked


def _code(match: re.Match[str]) -> str:
    return f'<i class="cc">U+{ord(match[0]):04X}</i>'


def message_text(message: dict[str, Any]) -> str:
    """Returns the text of a message, followed by its other keys (tool calls, names, parts)."""
    content = message.get("content")
    text = content if isinstance(content, str) else _json(content) if content else ""
    rest = {key: value for key, value in message.items() if key not in ("role", "content") and value}
    return "\n".join(part for part in (text, _json(rest) if rest else "") if part)


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, indent=1)


def labels(splits: dict[str, dict[str, Any]], key: str) -> list[str]:
    """Returns all names below a key of any split, in order of appearance."""
    return list(dict.fromkeys(label for split in splits.values() for label in split.get(key) or {}))
