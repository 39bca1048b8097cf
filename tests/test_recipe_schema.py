"""The schema for editors: up to date, valid, and in agreement with the validation."""

import json
import os
from pathlib import Path

import pytest
from jsonschema import Draft202012Validator

from sftrun import options
from sftrun.recipe.load import read_file
from sftrun.recipe.model import Recipe
from sftrun.recipe.schema import recipe_schema
from sftrun.registry import current

ROOT = Path(__file__).parent.parent
COMMITTED = ROOT / "schemas" / "recipe.schema.json"
RECIPES = ROOT / "tests" / "recipes"
VALID = sorted(RECIPES.joinpath("valid").rglob("*.yaml"))

# Recipes that are wrong in what one value may be, which is all that a schema sees.
SEEN_BY_A_SCHEMA = [
    "guides-layout",
    "missing",
    "missing-inside",
    "options",
    "typo",
    "unknown-components",
    "wrong-level",
    "wrong-types",
    "wrong-values",
]


@pytest.fixture(scope="module")
def schema():
    return recipe_schema(current(), only_builtin=True)


def data(path):
    """A recipe's data as an editor sees it: `extends` not followed."""
    from sftrun.recipe.compose import LINE_BREAK, compose
    from sftrun.recipe.document import Origin

    text = path.read_text(encoding="utf-8")
    return compose(text, Origin(str(path), path.parent, LINE_BREAK.split(text)))[0].plain()


def test_the_committed_schema_is_fresh(schema):
    text = json.dumps(schema, indent=2, ensure_ascii=False) + "\n"
    if os.environ.get("SFTRUN_UPDATE"):
        COMMITTED.write_text(text, encoding="utf-8")
    assert COMMITTED.read_text(encoding="utf-8") == text, "write it again: sftrun schema --builtin"


def test_it_is_a_schema(schema):
    Draft202012Validator.check_schema(schema)
    assert schema["$schema"] == "https://json-schema.org/draft/2020-12/schema"


@pytest.mark.parametrize("path", VALID, ids=lambda path: path.stem)
def test_an_editor_accepts_what_is_valid(schema, path):
    errors = [error.message for error in Draft202012Validator(schema).iter_errors(data(path))]
    assert errors == []


@pytest.mark.parametrize("name", SEEN_BY_A_SCHEMA)
def test_an_editor_marks_what_is_wrong(schema, name):
    assert not Draft202012Validator(schema).is_valid(data(RECIPES / "invalid" / f"{name}.yaml"))


def test_a_recipe_that_extends_another_may_leave_anything_out(schema):
    validator = Draft202012Validator(schema)
    assert validator.is_valid({"extends": "base.yaml", "model": {"max_seq_len": 5}, "source": {"with": {"path": "x"}}})
    assert not validator.is_valid({"extends": "base.yaml", "seeed": 1})
    assert not validator.is_valid({"extends": None})


def test_every_key_is_described(schema):
    def undescribed(node, path):
        for name, inner in node.get("properties", {}).items():
            if "description" not in inner:
                yield ".".join([*path, name])
            yield from undescribed(inner, [*path, name])

    assert list(undescribed(schema, [])) == []
    options = [branch["then"] for kind in schema["$defs"].values() for branch in _branches(kind)]
    assert [name for option in options for name in undescribed(option, [])] == []


def _branches(definition):
    return [
        branch
        for choice in definition["anyOf"]
        for branch in choice.get("allOf", [])
        if "description" in branch["then"]["properties"].get("with", {})
    ]


def test_one_valid_recipe_sets_every_key():
    everything = data(RECIPES / "valid" / "everything.yaml")

    def missing(about, given, path):
        for name, inner in about["properties"].items():
            if name not in given:
                yield ".".join([*path, name])
            elif "properties" in inner and "x-component" not in inner:
                yield from missing(inner, given[name], [*path, name])

    assert set(missing(options.schema(Recipe), everything, [])) == {"extends"}, "add what is new to everything.yaml"


def test_an_editor_reads_the_same_data(schema):
    assert data(VALID[0]) == read_file(VALID[0])[0].plain() or "extends" in data(VALID[0])
