"""`--set` and `SFTRUN_SET__…`: set any key, typed by the schema, with the same errors as in a file."""

import json

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from sftrun.cli import show
from sftrun.recipe.validate import check_file, load

ANY = settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
SMALL = "model: {name: sftrun/tiny}\nsource: {use: jsonl, with: {path: data}}\nevaluators: [loss, generation]\n"


@pytest.fixture
def recipe(tmp_path, monkeypatch):
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "recipe.yaml").write_text(SMALL)
    monkeypatch.chdir(tmp_path)
    return "folder/recipe.yaml"


def messages(recipe, *overrides):
    return [str(problem) for problem in check_file(recipe, overrides).problems]


@pytest.mark.parametrize(
    ("override", "read", "value"),
    [
        ("train.epochs=1", lambda r: r.train.epochs, 1.0),
        ("train.learning_rate=2e-4", lambda r: r.train.learning_rate, 2e-4),
        ("train.learning_rate=null", lambda r: r.train.learning_rate, None),
        ("train.max_steps=", lambda r: r.train.max_steps, None),
        ("train.max_steps=1e3", lambda r: r.train.max_steps, 1000),
        ("train.gradient_checkpointing=true", lambda r: r.train.gradient_checkpointing, True),
        ("train={epochs: 1, batch_size: 2}", lambda r: (r.train.epochs, r.train.batch_size), (1.0, 2)),
        ("tuning.lora.target_modules=[q, v]", lambda r: r.tuning.lora.target_modules, ["q", "v"]),
        ("tuning.lora.target_modules=[1, 2]", lambda r: r.tuning.lora.target_modules, ["1", "2"]),
        ("description=1", lambda r: r.description, "1"),
        ("description=true", lambda r: r.description, "true"),
        ("description=", lambda r: r.description, ""),
        ("description=a: b", lambda r: r.description, "a: b"),
        ("description=[draft] this # one", lambda r: r.description, "[draft] this # one"),
        ("description=a # b", lambda r: r.description, "a # b"),
        ("description='a # b'", lambda r: r.description, "a # b"),
        ("description=a=b", lambda r: r.description, "a=b"),
        ("model.revision=1e5", lambda r: r.model.revision, "1e5"),
        ("model.eot_token=<|im_end|>", lambda r: r.model.eot_token, "<|im_end|>"),
        ("evaluators.0=generation", lambda r: [use.use for use in r.evaluators], ["generation", "generation"]),
        ("evaluators.2=judge", lambda r: [use.use for use in r.evaluators], ["loss", "generation", "judge"]),
        ("evaluators.1.with.limit=5", lambda r: r.evaluators[1].with_["limit"], 5),
        ("evaluators=[]", lambda r: r.evaluators, []),
        ("exporters.0=merged", lambda r: [use.use for use in r.exporters], ["merged"]),
        ("source.with.val_share=0", lambda r: r.source.with_["val_share"], 0.0),
    ],
)
def test_a_value_takes_the_type_of_its_key(recipe, override, read, value):
    assert read(load(recipe, [override])) == value


def test_paths_in_overrides_are_relative_to_the_current_directory(recipe, tmp_path):
    assert load(recipe).source.with_["path"] == str(tmp_path / "folder" / "data")
    assert load(recipe, ["source.with.path=data"]).source.with_["path"] == str(tmp_path / "data")


def test_another_component_keeps_no_options(recipe):
    made = load(recipe, ["source=huggingface", "source.with.name=org/set"])
    assert (made.source.use, made.source.with_["name"]) == ("huggingface", "org/set")
    made = load(recipe, ["source.use=huggingface", "source.with.name=org/set"])
    assert made.source.use == "huggingface"


def test_later_overrides_win_and_options_win_over_variables(recipe, monkeypatch):
    monkeypatch.setenv("SFTRUN_SET__TRAIN__EPOCHS", "5")
    monkeypatch.setenv("SFTRUN_SET__source__With__VAL_SHARE", "0.5")
    assert load(recipe).train.epochs == 5
    assert load(recipe).source.with_["val_share"] == 0.5
    assert load(recipe, ["train.epochs=6", "train.epochs=7"]).train.epochs == 7


def test_a_typo_is_the_error_of_a_file_with_a_caret(recipe):
    (problem,) = check_file(recipe, ["train.epohcs=1"]).problems
    assert show.text(problem) == (
        "--set train.epohcs=1: error: unknown key 'epohcs' in train; did you mean 'epochs'?\n"
        "      | --set train.epohcs=1\n"
        "      |             ^^^^^^"
    )


def test_a_typo_in_a_variable_names_the_variable(recipe, monkeypatch):
    monkeypatch.setenv("SFTRUN_SET__TRAIN__EPOHCS", "1")
    (problem,) = check_file(recipe).problems
    assert show.text(problem) == (
        "SFTRUN_SET__TRAIN__EPOHCS=1: error: unknown key 'epohcs' in train; did you mean 'epochs'?\n"
        "      | SFTRUN_SET__TRAIN__EPOHCS=1\n"
        "      |                    ^^^^^^"
    )


def test_a_wrong_value_is_underlined_where_it_is(recipe):
    (problem,) = check_file(recipe, ["train={epochs: x, batch_size: 1}"]).problems
    assert show.text(problem).endswith("      | --set train={epochs: x, batch_size: 1}\n      |                      ^")


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("train.epochs", "an override must be KEY=VALUE; write, for example, --set train.epochs=1"),
        ("=1", "an override must be KEY=VALUE"),
        ("a." * 5000 + "a=1", "an override must be KEY=VALUE"),
        ("train..epochs=1", "an override must be KEY=VALUE"),
        ("train.epochs=many", "train.epochs must be a number, not the string 'many'"),
        ("train.epochs.x=1", "train.epochs must be a number, not a mapping"),
        ("evaluators.7=loss", "evaluators has no item 7: its length is 2; items are numbered from 0; 2 appends one"),
        ("evaluators.last=loss", "evaluators must be a list, not a mapping"),
        ("backend=hff", "unknown backend 'hff'; did you mean 'hf'?"),
        ("extends=base.yaml", "extends can only be written in a recipe file"),
        ("seed=${env:SEED}", "${env:…} is not allowed in seed"),
        ("description=\x1b[31m", "an override must not contain control characters"),
        ("description=\udcff", "an override must not contain control characters"),
        ("train.epochs=.inf", "train.epochs must be a number, not the string '.inf'"),
        ("train.epochs=[1", "train.epochs must be a number, not the string '[1'"),
    ],
)
def test_a_wrong_override_is_reported(recipe, override, expected):
    (problem,) = messages(recipe, override)
    assert problem.startswith("--set ")
    assert expected in problem


def test_all_wrong_overrides_are_reported_at_once(recipe):
    assert len(messages(recipe, "x=1", "y", "train.epochs=no")) == 3


@ANY
@given(st.text(st.characters(blacklist_categories=["Cs", "Cc"], blacklist_characters="\ufffe\uffff"), max_size=30))
def test_any_text_survives_quoted(recipe, text):
    assume("${env:" not in text)
    assert load(recipe, [f"description={json.dumps(text, ensure_ascii=False)}"]).description == text


@ANY
@given(st.floats(min_value=1e-300, max_value=1e300), st.integers(min_value=1, max_value=2**31))
def test_any_number_survives(recipe, rate, steps):
    made = load(recipe, [f"train.learning_rate={rate!r}", f"train.max_steps={steps}"])
    assert (made.train.learning_rate, made.train.max_steps) == (rate, steps)


@ANY
@given(st.text(max_size=40))
def test_no_override_gives_a_traceback(recipe, text):
    for problem in check_file(recipe, [text, f"description={text}", f"{text}=1"]).problems:
        assert show.text(problem)
