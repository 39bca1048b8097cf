"""Backend `unsloth`: unsloth's FastLanguageModel on the prepared samples, in a process that imports it first."""

import os
from collections.abc import Iterator
from typing import Annotated, Any, Literal

import msgspec

import sftrun
from sftrun.training import limits
from sftrun_unsloth import _limits

SFTRUN_API = 1


class UnslothOptions(sftrun.Options):
    """The backend that trains if unsloth cannot."""

    fallback: Annotated[
        Literal["hf", "bnb"] | None,
        sftrun.Meta(description="The backend that trains instead if unsloth cannot; null to stop with the reasons."),
    ] = None


@sftrun.hookimpl
def register_backends(register: sftrun.Register) -> None:
    register("unsloth", Unsloth, options=UnslothOptions)


class Unsloth:
    """Full, LoRA or 4-bit LoRA tuning with unsloth; an explicit fallback if it cannot."""

    # No `estimate`: unsloth's own kernels keep other activations than the backend hf would count.

    def __init__(self, options: UnslothOptions) -> None:
        self.fallback = options.fallback
        self.other: Any = _create(options.fallback) if options.fallback else None
        self.honours = _limits.HONOURS | getattr(self.other, "honours", frozenset())
        self.distributed = bool(getattr(self.other, "distributed", False))  # unsloth itself trains in one process

    def check_recipe(self, recipe: sftrun.Recipe) -> Iterator[sftrun.Problem]:
        yield from _limits.mistakes(recipe)
        found = self._of_recipe(recipe)
        yield from self._soften(found)
        if found:
            yield from self._ask_fallback("check_recipe", recipe)

    def check_machine(self, recipe: sftrun.Recipe) -> Iterator[sftrun.Problem]:
        earlier = self._of_recipe(recipe)
        new = list(_limits.of_machine(recipe))
        yield from self._soften(new)
        if not (self.other and earlier + new):
            yield from sftrun.missing_packages(
                *limits.MODULES, extra="train", path=("backend",), why="the backend unsloth"
            )
            yield from _limits.missing_unsloth(recipe)
            return
        if not earlier:
            yield from self._ask_fallback("check_recipe", recipe)
        yield from self._ask_fallback("check_machine", recipe)

    def check_prepared(self, recipe: sftrun.Recipe, run: sftrun.RunDir) -> Iterator[sftrun.Problem]:
        earlier = [*self._of_recipe(recipe), *_limits.of_machine(recipe)]
        new = list(_limits.of_model(recipe))
        yield from limits.check_data(recipe, run)
        if not self.other:
            yield from new
        elif earlier or new:
            questions = [self._ask_fallback("check_prepared", recipe, run)]
            if not earlier:
                questions += [self._ask_fallback("check_recipe", recipe), self._ask_fallback("check_machine", recipe)]
            # warnings are emitted when training starts
            yield from (found for each in questions for found in each if found.severity == "error")

    def train(self, work: sftrun.kinds.Training) -> None:
        found = self._all_limits(work.recipe)
        if found and not self.other:
            raise sftrun.UserError(found)
        used = self.fallback if found and self.fallback else "unsloth"
        _limits.check_same(work.run, used)
        reasons = [problem.message for problem in found]
        if os.environ.get("RANK", "0") == "0":  # only rank 0 writes
            work.run.add_facts("train", backend={"asked": "unsloth", "used": used, "reasons": reasons})
        if found:
            message = f"trained with {used} instead of unsloth: {'; '.join(reasons)}"
            work.emit(sftrun.events.Warned(message=message))
            self.other.train(work)
            return
        from sftrun_unsloth import _train

        _train.train(work)

    def load(self, work: sftrun.kinds.Loading) -> sftrun.kinds.Model:
        """Loads with the backend that has trained: a run that fell back is evaluated with its fallback too."""
        used = _limits.trained_with(work.run)
        if used != "unsloth":
            other = self.other if used == self.fallback else _create(used)
            model: sftrun.kinds.Model = other.load(work)
            return model
        found = self._all_limits(work.recipe)
        if found:
            raise sftrun.UserError(found)
        from sftrun_unsloth import _model

        return _model.loaded(work)

    def _of_recipe(self, recipe: sftrun.Recipe) -> list[sftrun.Problem]:
        """Returns the limits that the recipe alone shows: keys for the fallback, and values that unsloth refuses."""
        return [*_limits.beyond(recipe, self.honours), *_limits.of_values(recipe)]

    def _all_limits(self, recipe: sftrun.Recipe) -> list[sftrun.Problem]:
        """Returns all limits that can be seen before unsloth is imported."""
        return [*self._of_recipe(recipe), *_limits.of_machine(recipe), *_limits.of_model(recipe)]

    def _soften(self, found: list[sftrun.Problem]) -> Iterator[sftrun.Problem]:
        """Yields limits as errors; with a fallback as warnings."""
        for problem in found:
            hint = f"{self.fallback} trains instead (fallback)"
            yield msgspec.structs.replace(problem, severity="warning", hint=hint) if self.other else problem

    def _ask_fallback(self, question: str, *given: Any) -> Iterator[sftrun.Problem]:
        """Yields the problems that the fallback itself finds."""
        ask = getattr(self.other, question, None)
        if ask is not None:
            yield from ask(*given)


def _create(name: str) -> Any:
    """Returns a fallback backend; raises UserError, with the place of the option, if it is not available."""
    try:
        return sftrun.create("backend", name)
    except sftrun.UserError as error:
        path = ("backend", "with", "fallback")
        raise sftrun.UserError(msgspec.structs.replace(problem, path=path) for problem in error.problems) from error
