"""docs/recipes.md: generated tables, real messages, valid recipes; the recipes of the other pages are valid too."""

import json
import os
import re
from pathlib import Path

import pytest

from sftrun.options import schema
from sftrun.recipe import words
from sftrun.recipe.model import Recipe
from sftrun.recipe.validate import check_file
from sftrun.recipe.walk import alternatives, kind_of
from sftrun.registry import current

PAGE = Path(__file__).parent.parent / "docs" / "recipes.md"
TEXT = PAGE.read_text(encoding="utf-8")
FORMATS = {"path": "a path", "name-or-path": "a name or a path", "secret": "a secret"}
SIGNS = {"minimum": "≥", "maximum": "≤", "exclusiveMinimum": ">", "exclusiveMaximum": "<"}


def kind_of_value(about):
    """Returns the allowed values of a key, for a table cell."""
    kind = kind_of(about)
    if kind:
        return f"list of {kind}s" if about.get("type") == "array" else kind
    choices = alternatives(about)
    said = []
    for choice in choices:
        limits = " ".join(f"{sign} {choice[name]}" for name, sign in SIGNS.items() if name in choice)
        values = ", ".join(f"`{value}`" for value in choice.get("enum", []))
        items = choice.get("items", {})
        inner = f" of {kind_of_value(items)}" if items else ""
        plain = FORMATS.get(choice.get("format")) or words.allowed_values([choice], None)
        said.append(values or f"{plain}{inner} {limits}".strip())
    return " or ".join(said)


def rows(properties, required, prefix=""):
    """Yields one row per key; the keys of a mapping follow it."""
    for name, about in properties.items():
        default = "required" if name in required else f"`{json.dumps(about.get('default'), ensure_ascii=False)}`"
        nested = about.get("properties", {})
        cells = [f"`{prefix}{name}`", kind_of_value(about), "" if nested else default, about["description"]]
        yield "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"
        yield from rows(nested, about.get("required", []), f"{prefix}{name}.")


def table(about, prefix="", *, deep=True):
    properties = about["properties"]
    if not deep:
        properties = {name: {k: v for k, v in inner.items() if k != "properties"} for name, inner in properties.items()}
    lines = rows(properties, about.get("required", []), prefix)
    return "\n".join(["| key | value | default | meaning |", "|---|---|---|---|", *lines])


def keys(section):
    whole = schema(Recipe)
    if section:
        return table(whole["properties"][section], f"{section}.")
    shown = {
        name: {**about, "default": {}} if about.get("type") == "object" else about
        for name, about in whole["properties"].items()
    }
    return table({**whole, "properties": shown}, deep=False)


def components():
    parts = []
    for kind, items in current().components.items():
        for name, item in sorted(items.items()):
            if item.distribution == "sftrun":
                about = item.schema()
                options = table(about) if about["properties"] else "No options."
                parts.append(f"### {kind} `{name}`\n\n{item.description}\n\n{options}")
    return "\n\n".join(parts)


def fresh(text):
    text = re.sub(
        r"<!-- keys: ?(\w*) -->\n.*?<!-- end -->",
        lambda found: f"<!-- keys: {found[1]} -->\n{keys(found[1])}\n<!-- end -->".replace(":  -->", ": -->"),
        text,
        flags=re.DOTALL,
    )
    written = f"<!-- components -->\n{components()}\n<!-- end -->"
    return re.sub(r"<!-- components -->\n.*?<!-- end -->", lambda _: written, text, flags=re.DOTALL)


def test_the_tables_are_fresh():
    text = fresh(TEXT)
    if os.environ.get("SFTRUN_UPDATE"):
        PAGE.write_text(text, encoding="utf-8")
    assert PAGE.read_text(encoding="utf-8") == text, (
        "write them again: SFTRUN_UPDATE=1 pytest tests/test_recipe_docs.py"
    )


DATA = (PAGE.parent / "data.md").read_text(encoding="utf-8")
TRAINING = (PAGE.parent / "training.md").read_text(encoding="utf-8")
CLUSTER = (PAGE.parent / "cluster.md").read_text(encoding="utf-8")
TRACKERS = (PAGE.parent / "trackers.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```yaml\n(.*?)```", TEXT + DATA + TRAINING + CLUSTER + TRACKERS, flags=re.DOTALL)


@pytest.mark.parametrize("block", [block for block in BLOCKS if "model:" in block], ids=lambda block: block[:20])
def test_the_recipes_of_the_pages_are_valid(block, tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text(block)
    assert check_file(path).problems == []


def test_the_message_of_the_page_is_real(tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text("model: {name: sftrun/tiny}\nsource: jsonl\ntrain: {learning_rte: 2e-4}\n")
    messages = [f"{problem.severity}: {problem.message}; {problem.hint}" for problem in check_file(path).problems]
    assert any(text in TEXT for text in messages)
