"""Backend `unsloth`: unsloth's FastLanguageModel on the prepared samples, in a process that imports it first."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec

import sftrun
from sftrun.training import limits
from sftrun_unsloth import _limits

SFTRUN_API = 1


class UnslothOptions(sftrun.Options):
    """What to do if unsloth cannot train."""

    fallback: Annotated[
        Literal["hf", "bnb"] | None,
        sftrun.Meta(description="The backend that trains if unsloth cannot; null to stop with the reasons."),
    ] = None


@sftrun.hookimpl
def register_backends(register: sftrun.Register) -> None:
    register("unsloth", Unsloth, options=UnslothOptions)


class Unsloth:
    """Full, LoRA or 4-bit LoRA tuning with unsloth; an explicit fallback where it cannot."""

    distributed = True  # for a fallback that can; unsloth itself refuses many processes
    # No `estimate`: unsloth's own kernels keep other activations than the backend hf counts.

    def __init__(self, options: UnslothOptions) -> None:
        self.options = options

    def check_recipe(self, recipe: sftrun.Recipe) -> Iterator[sftrun.Problem]:
        yield from _limits.mistakes(recipe)
        try:
            self._other()
        except sftrun.UserError as error:
            path = ("backend", "with", "fallback")
            yield from (msgspec.structs.replace(problem, path=path) for problem in error.problems)
            return
        found = list(_limits.of_recipe(recipe))
        yield from self._said(found)
        if found:
            yield from self._asked("check", recipe)

    def check_machine(self, recipe: sftrun.Recipe) -> Iterator[sftrun.Problem]:
        earlier, new = list(_limits.of_recipe(recipe)), list(_limits.of_machine(recipe))
        yield from self._said(new)
        if not (self.options.fallback and earlier + new):
            yield from sftrun.missing_packages(
                *limits.MODULES, extra="train", path=("backend",), why="the backend unsloth"
            )
            yield from _limits.not_installed(recipe)
            return
        if not earlier:
            yield from self._asked("check", recipe)
        yield from self._asked("ready", recipe)

    def check_prepared(self, recipe: sftrun.Recipe, run: sftrun.RunDir) -> Iterator[sftrun.Problem]:
        earlier = [*_limits.of_recipe(recipe), *_limits.of_machine(recipe)]
        new = list(_limits.of_model(recipe))
        yield from limits.check_data(recipe, run)
        if not self.options.fallback:
            yield from new
        elif earlier or new:
            questions = [self._asked("prepared", recipe, run)]
            if not earlier:
                questions += [self._asked("check", recipe), self._asked("ready", recipe)]
            # what is only a warning is said when training starts
            yield from (found for each in questions for found in each if found.severity == "error")

    def train(self, recipe: sftrun.Recipe, run: Path, emit: sftrun.kinds.Emit) -> None:
        found = _limits.all_of(recipe)
        if found and not self.options.fallback:
            raise sftrun.UserError(found)
        used = self.options.fallback if found else "unsloth"
        _limits.check_same(sftrun.RunDir(run), used)
        reasons = [problem.message for problem in found]
        about = {"asked": "unsloth", "used": used, "reasons": reasons}
        if os.environ.get("RANK", "0") == "0":  # of many processes, only the first one writes
            sftrun.RunDir(run).merge_json("lock.json", {"backend": about})
        if found:
            emit({"event": "warning", "message": f"trained with {used} instead of unsloth: {'; '.join(reasons)}"})
            self._other().train(recipe, run, emit)
            return
        from sftrun_unsloth import _train

        _train.train(recipe, run, emit)

    def load(self, recipe: sftrun.Recipe, run: Path, which: Literal["base", "tuned"]) -> Any:
        """With what has trained: a run that fell back is evaluated with its fallback too."""
        if _limits.used(run) != "unsloth":
            return self._other().load(recipe, run, which)
        found = _limits.all_of(recipe)
        if found:
            raise sftrun.UserError(found)
        from sftrun_unsloth import _model

        return _model.loaded(recipe, run, which)

    def _other(self) -> Any:
        return sftrun.create("backend", self.options.fallback or "hf")

    def _said(self, found: list[sftrun.Problem]) -> Iterator[sftrun.Problem]:
        """The limits as errors; with a fallback as warnings."""
        fallback = self.options.fallback
        for problem in found:
            hint = f"{fallback} trains instead (fallback)"
            yield msgspec.structs.replace(problem, severity="warning", hint=hint) if fallback else problem

    def _asked(self, question: str, *given: Any) -> Iterator[sftrun.Problem]:
        """What the fallback itself has to say."""
        ask = getattr(self._other(), question, None) if self.options.fallback else None
        if ask is not None:
            yield from ask(*given)
