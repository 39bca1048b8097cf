"""Checks the components of a recipe before they are used: on this machine, and on the prepared data."""

from collections.abc import Iterator, Sequence
from typing import Any

from sftrun.errors import Problem, UserError, missing_packages
from sftrun.hookspecs import KINDS
from sftrun.recipe.model import Recipe, components
from sftrun.registry import current
from sftrun.runs.directory import RunDir

DATA_KINDS = ("source", "transform", "formatter", "masker")  # the kinds that prepare rows
PACKAGES = ("jinja2", "numpy", "pyarrow", "tokenizers")  # packages for preparing; components name the rest


def check_machine(recipe: Recipe, kinds: Sequence[str] = KINDS) -> list[Problem]:
    """Returns the warnings of components of some kinds about this machine; raises UserError if one cannot work here.

    Nothing heavy may be imported before it, because it names the packages that are missing.
    """
    problems = list(missing_packages(*PACKAGES, extra="train", path=("model",), why="reading text as tokens"))
    for kind, component in _created(recipe):
        check = getattr(component, "check_machine", None)
        if kind in kinds and check:
            problems += check(recipe)
    return _warnings(problems)


def check_prepared(recipe: Recipe, run: RunDir) -> list[Problem]:
    """Returns the warnings of components about the prepared data; raises UserError if one cannot work with them."""
    problems: list[Problem] = []
    for _, component in _created(recipe):
        check = getattr(component, "check_prepared", None)
        if check:
            problems += check(recipe, run)
    return _warnings(problems)


def check_tokenizer(recipe: Recipe, run: RunDir) -> None:
    """Raises UserError if the base has another tokenizer or chat template than the run was prepared with."""
    from sftrun.data.tokens.tokenizer import load_tokenizer

    before = run.facts("prepare").get("prepared")
    if not before:
        return
    tokenizer = load_tokenizer(recipe.model)
    now = {"tokenizer": tokenizer.fingerprint, "chat template": tokenizer.template.fingerprint}
    then = {"tokenizer": before["tokenizer"], "chat template": before["template"]}
    changed = [name for name, fingerprint in now.items() if fingerprint != then[name]]
    if changed:
        message = f"the {' and the '.join(changed)} of {recipe.model.name} changed since the run was prepared"
        raise UserError(Problem(message, path=("model",), hint="restore the files of the base, or start a new run"))


def _created(recipe: Recipe) -> Iterator[tuple[str, Any]]:
    return ((kind, current().create(kind, use)) for kind, use in components(recipe))


def _warnings(problems: list[Problem]) -> list[Problem]:
    if any(problem.severity == "error" for problem in problems):
        raise UserError(problems)
    return problems
