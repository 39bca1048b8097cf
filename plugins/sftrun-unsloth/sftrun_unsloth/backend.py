"""Backend `unsloth`: unsloth's FastLanguageModel on the prepared samples, in a process that imports it first."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec

import sftrun
from sftrun_unsloth import _limits

SFTRUN_API = 1
MODULES = ("torch", "transformers", "trl", "peft", "datasets", "accelerate", "tensorboard")


class UnslothOptions(sftrun.Options):
    """How the model is loaded, and what happens where unsloth cannot train it."""

    load_in_4bit: Annotated[
        bool | None,
        sftrun.Meta(description="Keep the frozen base in 4 bits, under an adapter; null for what tuning.mode says."),
    ] = None
    fallback: Annotated[
        Literal["hf", "bnb"] | None,
        sftrun.Meta(description="The backend that trains instead, where unsloth cannot; null to stop with the reasons."),
    ] = None


@sftrun.hookimpl
def register_backends(register: sftrun.Register) -> None:
    register("unsloth", Unsloth, options=UnslothOptions)


class Unsloth:
    """Full, LoRA or 4-bit LoRA tuning with unsloth; an explicit fallback where it cannot."""

    def __init__(self, options: UnslothOptions) -> None:
        self.options = options

    def check(self, recipe: sftrun.Recipe) -> Iterator[sftrun.Problem]:
        yield from _limits.contradictions(recipe, self.four_bit(recipe), self.options.load_in_4bit)
        yield from self._said(recipe, list(_limits.of_recipe(recipe)), "check", recipe)

    def ready(self, recipe: sftrun.Recipe) -> Iterator[sftrun.Problem]:
        limits = [*_limits.of_recipe(recipe), *_limits.of_machine()]
        if not (limits and self.options.fallback):
            yield from sftrun.missing(*MODULES, extra="train", path=("backend",), why="the backend unsloth")
            yield from _limits.not_installed(self.four_bit(recipe))
        yield from self._said(recipe, limits, "ready", recipe)

    def prepared(self, recipe: sftrun.Recipe, run: Path) -> Iterator[sftrun.Problem]:
        said = self._said(recipe, _limits.all_of(recipe), "prepared", recipe, run)
        yield from (problem for problem in said if problem.severity == "error")

    def train(self, recipe: sftrun.Recipe, run: Path, emit: sftrun.Emit) -> None:
        limits = _limits.all_of(recipe)
        if limits and not self.options.fallback:
            raise sftrun.UserError(limits)
        used = self.options.fallback if limits else "unsloth"
        reasons = [problem.message for problem in limits]
        sftrun.RunDir(run).merge_json("lock.json", {"backend": {"asked": "unsloth", "used": used, "reasons": reasons}})
        if limits:
            emit({"event": "warning", "message": f"trained with {used} instead of unsloth: {'; '.join(reasons)}"})
            self._other().train(recipe, run, emit)
            return
        from sftrun_unsloth import _train

        _train.train(recipe, run, emit, self.four_bit(recipe))

    def load(self, recipe: sftrun.Recipe, run: Path, which: Literal["base", "tuned"]) -> Any:
        """With what has trained: a run that fell back is evaluated with its fallback too."""
        if _limits.used(run) != "unsloth":
            return self._other().load(recipe, run, which)
        limits = _limits.all_of(recipe)
        if limits:
            raise sftrun.UserError(limits)
        from sftrun_unsloth import _model

        return _model.UnslothModel(recipe, run, which, self.four_bit(recipe))

    def four_bit(self, recipe: sftrun.Recipe) -> bool:
        """Whether the base is kept in 4 bits."""
        asked = self.options.load_in_4bit
        return str(recipe.tuning.mode) == "qlora" if asked is None else asked

    def _other(self) -> Any:
        return sftrun.create("backend", self.options.fallback or "hf")

    def _said(
        self, recipe: sftrun.Recipe, limits: list[sftrun.Problem], asked: str, *given: Any
    ) -> Iterator[sftrun.Problem]:
        """The limits as errors; with a fallback as warnings, and what the fallback itself has to say."""
        fallback = self.options.fallback
        if not (fallback and limits):
            yield from limits
            return
        for problem in limits:
            yield msgspec.structs.replace(problem, severity="warning", hint=f"backend {fallback} trains instead")
        try:
            other = self._other()
        except sftrun.UserError as error:
            yield from error.problems
            return
        questions: Iterable[sftrun.Problem] = getattr(other, asked)(*given) if hasattr(other, asked) else ()
        yield from questions
