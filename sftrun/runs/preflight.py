"""Checks the components of a recipe before they are used: on this machine, and on the prepared data."""

import platform
from collections.abc import Iterator, Sequence
from typing import Any

from sftrun import gpus
from sftrun.errors import Problem, UserError, missing_packages
from sftrun.hookspecs import KINDS
from sftrun.options import Use
from sftrun.recipe.checks import failed_check, problems_of
from sftrun.recipe.model import Recipe, components
from sftrun.registry import current, plugin_code
from sftrun.runs.directory import RunDir

DATA_KINDS = ("source", "transform", "formatter", "masker")  # the kinds that prepare rows
PACKAGES = ("jinja2", "numpy", "pyarrow", "tokenizers")  # packages for preparing; components name the rest


def check_machine(recipe: Recipe, kinds: Sequence[str] = KINDS) -> list[Problem]:
    """Returns the warnings of components of some kinds about this machine; raises UserError if one cannot work here.

    Nothing heavy may be imported before it, because it names the packages that are missing.
    """
    problems = list(missing_packages(*PACKAGES, extra="train", path=("model",), why="reading text as tokens"))
    problems += _check_platform()
    if "backend" in kinds:
        problems += gpus.check_torch(needed=recipe.launch.processes == "auto")
    for kind, use in components(recipe):
        if kind in kinds:
            problems += _ask(kind, use, "check_machine", recipe)
    return _warnings(problems)


def _check_platform() -> Iterator[Problem]:
    if platform.system() == "Windows":
        hint = "use it in the Windows Subsystem for Linux (WSL 2)"
        yield Problem("sftrun runs on Linux and macOS, not on Windows", hint=hint)
    elif platform.system() == "Darwin":
        message = "sftrun does not use the GPU of a Mac: everything runs on the CPU"
        yield Problem(message, hint="train on Linux with a GPU", severity="warning")


def check_prepared(recipe: Recipe, run: RunDir) -> list[Problem]:
    """Returns the warnings of components about the prepared data; raises UserError if one cannot work with them."""
    problems: list[Problem] = []
    for kind, use in components(recipe):
        problems += _ask(kind, use, "check_prepared", recipe, run)
    return _warnings(problems)


def _ask(kind: str, use: Use, check: str, *given: Any) -> list[Problem]:
    """Returns what an optional check of a component says; a failure of a plugin is one more problem."""
    item = current().get(kind, use.use)
    try:
        with plugin_code() as interrupted:
            return problems_of(current().create(kind, use), check, *given)
    except BaseException as error:
        if interrupted or isinstance(error, UserError) or item.distribution == "sftrun":
            raise
        return [failed_check(item, error, f"running its {check}")]


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


def _warnings(problems: list[Problem]) -> list[Problem]:
    if any(problem.severity == "error" for problem in problems):
        raise UserError(problems)
    return problems
