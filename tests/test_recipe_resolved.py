"""resolved.yaml: worker processes read the same recipe that was written."""

from pathlib import Path

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sftrun import Use, UserError
from sftrun.options import schema
from sftrun.recipe.model import ModelOptions, Recipe
from sftrun.recipe.validate import from_resolved, load, resolved_yaml, validate

VALID = sorted(
    path for path in (Path(__file__).parent / "recipes" / "valid").rglob("*.yaml") if not path.name.startswith("_")
)


@pytest.mark.parametrize("path", VALID, ids=lambda path: path.stem)
def test_a_recipe_survives_writing_and_reading(path):
    recipe = load(path)
    assert from_resolved(resolved_yaml(recipe)) == recipe


@pytest.mark.parametrize("path", VALID, ids=lambda path: path.stem)
def test_resolved_yaml_is_itself_a_recipe(path, tmp_path):
    written = tmp_path / "resolved.yaml"
    written.write_text(resolved_yaml(load(path)), encoding="utf-8")
    assert [problem for problem in validate(written) if problem.severity == "error"] == []
    assert load(written) == load(path)


def test_every_key_except_extends_is_written():
    text = resolved_yaml(load(VALID[0]))
    keys = [line.split(":")[0] for line in text.splitlines() if not line.startswith((" ", "#"))]
    assert sorted(keys) == sorted(set(schema(Recipe)["properties"]) - {"extends"})


def test_variables_are_written_as_they_are(tmp_path, monkeypatch):
    monkeypatch.setenv("DATA", "/somewhere/else")
    path = tmp_path / "recipe.yaml"
    path.write_text('model: {name: sftrun/tiny}\nsource: {use: jsonl, with: {path: "${env:DATA}/x"}}\n')
    assert 'path: "${env:DATA}/x"' in resolved_yaml(load(path))


def test_other_text_is_refused():
    for text in ("", "model: {name: x}", "- 1", "seeed: 1\nmodel: {name: x}\nsource: x"):
        with pytest.raises(UserError):
            from_resolved(text)


TEXTS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=20)
SCALARS = st.one_of(
    st.none(), st.booleans(), st.integers(-(2**63), 2**63), st.floats(allow_nan=False, allow_infinity=False), TEXTS
)
DATA = st.recursive(
    SCALARS,
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(TEXTS, inner, max_size=3)),
    max_leaves=6,
)


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(TEXTS, TEXTS, st.dictionaries(TEXTS, DATA, max_size=3), st.lists(st.dictionaries(TEXTS, DATA, max_size=2)))
def test_any_recipe_survives(description, name, options, several):
    recipe = Recipe(
        model=ModelOptions(name=name),
        source=Use(use=name, with_=options),
        evaluators=[Use(use=description, with_=each) for each in several],
        description=description,
    )
    recipe = msgspec.convert(msgspec.to_builtins(recipe), Recipe)
    assert from_resolved(resolved_yaml(recipe)) == recipe
