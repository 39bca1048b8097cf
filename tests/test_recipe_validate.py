"""Validation of recipes: golden messages, places, paths, variables, and checks of components."""

import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import sftrun
from sftrun.cli import main, show
from sftrun.recipe.validate import check_file, load, load_with_places, validate

ROOT = Path(__file__).parent.parent
RECIPES = ROOT / "tests" / "recipes"
INVALID = sorted(path for path in (RECIPES / "invalid").glob("*.yaml") if not path.name.startswith("_"))
VALID = sorted(path for path in (RECIPES / "valid").rglob("*.yaml") if not path.name.startswith("_"))

SMALL = "model: {name: sftrun/tiny}\nsource: {use: jsonl, with: {path: data}}\n"


@pytest.fixture
def recipe(tmp_path, monkeypatch):
    """Writes recipe.yaml, the smallest recipe with additions, into the current directory."""
    monkeypatch.chdir(tmp_path)

    def write(added="", name="recipe.yaml"):
        (tmp_path / name).write_text(SMALL + added)
        return name

    return write


@pytest.mark.parametrize("path", INVALID, ids=lambda path: path.stem)
def test_a_wrong_recipe_is_reported(path, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    main.run(["validate", str(path.relative_to(ROOT))])
    messages = capsys.readouterr().err
    golden = path.with_suffix(".txt")
    if os.environ.get("SFTRUN_UPDATE"):
        golden.write_text(messages, encoding="utf-8")
    assert messages == golden.read_text(encoding="utf-8")


def test_every_golden_text_has_its_recipe():
    assert {path.stem for path in (RECIPES / "invalid").glob("*.txt")} == {path.stem for path in INVALID}


@pytest.mark.parametrize("path", VALID, ids=lambda path: path.stem)
def test_a_valid_recipe_has_no_problems(path):
    assert validate(path) == []
    assert isinstance(load(path), sftrun.Recipe)


def test_load_raises_with_all_problems(recipe):
    with pytest.raises(sftrun.UserError) as raised:
        load(recipe("seeed: 1\ntrain: {epochs: x}\n"))
    assert [problem.where.line for problem in raised.value.problems] == [3, 4]


def test_a_warning_does_not_stop_a_recipe(recipe):
    loaded = load_with_places(recipe("tuning: {mode: full, lora: {r: 4}}\n"))
    assert [problem.severity for problem in loaded.warnings] == ["warning"]
    assert loaded.recipe.tuning.mode == "full"


def test_the_typed_recipe_has_every_component_in_long_form_with_all_options(recipe, tmp_path):
    made = load(recipe("evaluators: [loss, judge]\n"))
    assert made.masker.with_ == {"reasoning": True, "tool_calls": True, "end_of_turn": True}
    assert made.source.with_ == {"path": str(tmp_path / "data"), "val_share": 0.05}
    assert made.evaluators[1].with_["judge"] == {"use": "reference", "with": {}}


def test_a_learning_rate_that_is_not_given_stays_null(recipe):
    assert load(recipe()).train.learning_rate is None


def test_paths_are_relative_to_the_file_that_has_them():
    made = load(RECIPES / "valid" / "more" / "extends.yaml")
    assert made.source.with_ == {"path": str(RECIPES / "valid" / "base-data"), "val_share": 0.2}
    assert (made.train.epochs, made.train.learning_rate, made.model.max_seq_len) == (2, 1e-3, 256)
    assert [use.use for use in made.evaluators] == ["loss"]
    assert made.extends is None


def test_another_component_keeps_no_options():
    made = load(RECIPES / "valid" / "more" / "replaces.yaml")
    assert made.source.use == "huggingface"
    assert "val_share" not in made.source.with_


def test_names_stay_and_paths_become_absolute(recipe, tmp_path):
    made = load(recipe(), ["model.name=Qwen/Qwen2.5-3B-Instruct", "model.chat_template=chatml"])
    assert (made.model.name, made.model.chat_template) == ("Qwen/Qwen2.5-3B-Instruct", "chatml")
    made = load(recipe(), ["model.name=./mine", "model.chat_template=sub/mine.jinja"])
    assert (made.model.name, made.model.chat_template) == (str(tmp_path / "mine"), str(tmp_path / "sub/mine.jinja"))
    assert load(recipe(), ["model.name=~/mine"]).model.name == os.path.expanduser("~/mine")


def test_a_url_is_not_a_path(recipe):
    assert load(recipe(), ["source.with.path=s3://bucket/rows"]).source.with_["path"] == "s3://bucket/rows"


def test_a_variable_stays_as_written_and_need_not_be_set(recipe, monkeypatch):
    monkeypatch.delenv("SFTRUN_NO_SUCH", raising=False)
    made = load(recipe(), ["source.with.path=${env:SFTRUN_NO_SUCH}/x"])
    assert made.source.with_["path"] == "${env:SFTRUN_NO_SUCH}/x"


def test_yaml_1_2_is_what_is_read():
    made = load(RECIPES / "valid" / "yaml12.yaml")
    assert (made.description, made.model.name, made.model.revision) == ("no", "on", "2e-4")
    assert (made.train.learning_rate, made.train.max_steps, made.train.batch_size) == (2e-4, 15, 16)
    assert made.train.save_strategy == "no"


def test_anchors_and_merge_keys_are_followed():
    made = load(RECIPES / "valid" / "anchors.yaml")
    assert made.model.eot_token == "some text"
    first, second = (use.with_ for use in made.evaluators)
    assert (first["limit"], second["limit"]) == (10, 20)
    assert first["max_new_tokens"] == second["max_new_tokens"] == 8


def test_an_integer_may_have_an_exponent():
    assert load(RECIPES / "valid" / "everything.yaml").model.max_seq_len == 1000


def test_the_document_knows_where_each_value_is(recipe):
    document = load_with_places(recipe("train:\n  epochs: 2\n"), ["train.batch_size=8"]).document
    assert str(document.place(("train", "epochs"))) == "recipe.yaml:4:11"
    assert str(document.key_place(("train", "epochs"))) == "recipe.yaml:4:3"
    assert str(document.place(("train", "batch_size"))) == "--set train.batch_size=8"
    assert str(document.place(("train", "warmup"))) == "recipe.yaml:3:1"


def test_problems_come_in_the_order_of_the_file(recipe):
    messages = validate(recipe("b: 1\ntrain: {x: 1, epochs: a}\na: 1\n"), ["c=1"])
    assert [str(problem.where) for problem in messages] == [
        "recipe.yaml:3:1",
        "recipe.yaml:4:9",
        "recipe.yaml:4:23",
        "recipe.yaml:5:1",
        "--set c=1",
    ]


YAML_LIKE = st.text(st.sampled_from("model: {name}[]source&a*a-!|>'\"#%@`,?\n\t \\0123456789.eE<~é日\0"), max_size=80)


@settings(deadline=None)
@given(
    st.one_of(st.binary(max_size=60), YAML_LIKE.map(str.encode), YAML_LIKE.map(lambda text: (SMALL + text).encode()))
)
def test_no_bytes_give_a_traceback(tmp_path_factory, content):
    path = tmp_path_factory.getbasetemp() / "any.yaml"
    path.write_bytes(content)
    found = check_file(path)
    assert found.recipe is not None or found.problems
    for problem in found.problems:
        assert show.text(problem)


SCALARS = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False, allow_infinity=False), st.text(max_size=5)
)
KEYS = st.sampled_from(["model", "source", "train", "evaluators", "use", "with", "judge", "lora", "epochs", "backend"])
TREES = st.recursive(
    SCALARS,
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(KEYS, inner, max_size=4)),
    max_leaves=8,
)


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])  # generating, on the first try
@given(st.dictionaries(KEYS, TREES, max_size=5))
def test_no_data_give_a_traceback(tmp_path_factory, data):
    import json

    path = tmp_path_factory.getbasetemp() / "data.yaml"
    path.write_text(json.dumps(data, allow_nan=False) if data else "{}")
    for problem in check_file(path).problems:
        assert problem.where
        assert show.text(problem)
