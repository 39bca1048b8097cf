"""Generates answers of a trained model, for `sftrun chat`, `sftrun generate` and `sftrun.generate`."""

import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Literal

import msgspec

from sftrun.errors import Place, Problem, UserError
from sftrun.kinds import Loading, Model
from sftrun.recipe.validate import PathLike
from sftrun.registry import current
from sftrun.runs import directory, preflight
from sftrun.runs.persona import add_persona, find_persona
from sftrun.types import Decoding, Message


class Answerer:
    """A loaded model that answers conversations."""

    def __init__(self, model: Model, encode: Callable[[Sequence[Message]], list[int]]) -> None:
        self.model, self.encode = model, encode

    def __call__(self, conversations: Sequence[list[Message]], decoding: Decoding) -> list[str]:
        """Returns one answer per conversation."""
        return self._answer([self.encode(messages) for messages in conversations], decoding)

    def in_batches(
        self, conversations: Sequence[list[Message]], decoding: Decoding, places: Sequence[Place] = ()
    ) -> Iterator[list[str]]:
        """Yields the answers of one batch after the other; every conversation is encoded before the first one.

        Raises UserError for conversations that cannot be encoded, with the `places` that they were read from.
        """
        prompts: list[list[int]] = []
        problems: list[Problem] = []
        for messages, place in itertools.zip_longest(conversations, places):
            try:
                prompts.append(self.encode(messages))
            except UserError as error:
                problems += [msgspec.structs.replace(each, where=each.where or place) for each in error.problems]
        if problems:
            raise UserError(problems)
        for start in range(0, len(prompts), decoding.batch_size):
            yield self._answer(prompts[start : start + decoding.batch_size], decoding)

    def _answer(self, prompts: Sequence[list[int]], decoding: Decoding) -> list[str]:
        return [self.model.decode(ids).strip() for ids in self.model.generate(prompts, decoding)]


def generate(
    run: PathLike,
    conversations: Sequence[list[Message]],
    decoding: Decoding = Decoding(),  # noqa: B008  (frozen)
    which: Literal["base", "tuned"] = "tuned",
    persona: bool = True,
) -> list[str]:
    """Returns one answer per conversation, of the base or the tuned model of a run.

    A conversation without a system prompt gets the one of the training, if there is one, unless `persona` is False.
    Raises UserError if the run has no model, and for messages that its chat template refuses.
    """
    system = load_persona(run) if persona else None
    return load_answerer(run, which)([add_persona(each, system) for each in conversations], decoding)


def load_persona(run: PathLike) -> str | None:
    """Returns the system prompt that a run's model was trained with; None if it had none, or no common one."""
    folder = directory.open_run(run)
    return find_persona(folder.recipe(), folder.read_json("prepared/stats.json"))


def needs_system_prompt(run: PathLike) -> bool:
    """Returns True if every row that a run's model was trained on had a system prompt."""
    seen = directory.open_run(run).read_json("prepared/stats.json").get("train", {}).get("system_prompts", {})
    return bool(seen) and bool(seen["rows"]) and not seen["without"]


def load_answerer(run: PathLike, which: Literal["base", "tuned"] = "tuned") -> Answerer:
    """Loads the model of a run; raises as `generate` does."""
    folder = directory.open_run(run)
    recipe = folder.recipe()
    folder.check(("prepared/proof.json", "model") if which == "tuned" else ("prepared/proof.json",))
    preflight.check_machine(recipe, ("backend",))
    preflight.check_tokenizer(recipe, folder)
    from sftrun.data.asking import prompt_encoder

    encode = prompt_encoder(recipe.model)  # before the weights are loaded: it may refuse
    loading = Loading(recipe=recipe, run=folder, which=which)
    model: Model = current().create("backend", recipe.backend).load(loading)
    return Answerer(model, encode)
