"""A backend names the recipe keys that it acts on; the core refuses every other key, with file and line."""

import pytest

from sftrun import UserError, load, validate
from sftrun.registry import Registered, current

ROWS = [{"user": "hi", "assistant": "ho"}]


class Plain:
    """A backend that acts on three keys."""

    honours = frozenset({"train.epochs", "train.learning_rate", "tuning.mode"})

    def train(self, work):
        """Nothing: it is only validated."""

    def load(self, work):
        """Nothing: it is only validated."""


class Misspelled(Plain):
    """A backend that names a key wrongly."""

    honours = frozenset({"train.epochs", "train.learning_rat"})


class Silent(Plain):
    """A backend that names no keys."""

    honours = frozenset()


@pytest.fixture(autouse=True)
def backends():
    own = {"plain": Plain, "misspelled": Misspelled, "silent": Silent}
    for name, factory in own.items():
        current().components["backend"][name] = Registered("backend", name, factory, None, "", __name__, "tests", "0")
    yield
    for name in own:
        del current().components["backend"][name]


def test_what_a_backend_does_not_act_on_is_refused_where_it_stands(write):
    recipe = write(ROWS, backend="plain", train={"epochs": 1, "tf32": True, "warmup": 0.5}, tuning={"mode": "full"})
    found = validate(recipe)
    assert [(problem.message, problem.where.line) for problem in found] == [
        ("the backend plain does not act on train.tf32: true would have no effect", 16),
        ("the backend plain does not act on train.warmup: 0.5 would have no effect", 17),
    ]


def test_an_override_is_refused_too(write):
    recipe = write(ROWS, backend="plain", tuning={"mode": "full"})
    assert validate(recipe) == []
    with pytest.raises(UserError, match=r"--set packing\.strategy.*plain does not act on packing.strategy"):
        load(recipe, ["packing.strategy=best-fit"])


def test_what_the_core_does_itself_needs_no_backend(write):
    keys = {"train": {"batch_size": 2, "effective_batch_size": 2, "on_oom": "shrink"}, "launch": {"processes": 1}}
    assert validate(write(ROWS, backend="silent", **keys)) == []


def test_a_default_that_is_written_out_is_no_mistake(write):
    assert validate(write(ROWS, backend="silent", train={"tf32": False, "scheduler": "cosine"})) == []


def test_a_key_that_the_recipe_does_not_have_is_the_backends_mistake(write):
    (problem,) = validate(write(ROWS, backend="misspelled"))
    assert problem.message == "the backend misspelled honours 'train.learning_rat', which is no recipe key"
    assert problem.hint == "did you mean 'train.learning_rate'?"


@pytest.mark.parametrize("name", ["hf", "bnb"])
def test_a_key_that_the_core_learns_later_is_refused_until_a_backend_says_that_it_knows_it(name, write, monkeypatch):
    from sftrun.builtin.backends import bnb, hf

    backend = {"hf": hf.Hf, "bnb": bnb.Bnb}[name]
    recipe = write(ROWS, backend=name, train={"tf32": True}, tuning={"mode": "qlora" if name == "bnb" else "lora"})
    assert not [problem for problem in validate(recipe) if "does not act on" in problem.message]
    monkeypatch.setattr(backend, "honours", backend.honours - {"train.tf32"})
    (problem,) = [problem for problem in validate(recipe) if problem.severity == "error"]
    assert problem.message == f"the backend {name} does not act on train.tf32: true would have no effect"
