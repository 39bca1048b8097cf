"""Generates answers of a trained model, for `sftrun chat`, `sftrun generate` and `sftrun.generate`."""

from collections.abc import Callable, Sequence
from typing import Literal

from sftrun.kinds import Loading, Model
from sftrun.recipe.validate import PathLike
from sftrun.registry import current
from sftrun.runs import directory, preflight
from sftrun.runs.persona import add_persona, find_persona
from sftrun.types import Decoding, Message

Answer = Callable[[Sequence[list[Message]], Decoding], list[str]]


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


def load_answerer(run: PathLike, which: Literal["base", "tuned"] = "tuned") -> Answer:
    """Loads a run's model, and returns a function that answers conversations with it; raises as `generate` does."""
    folder = directory.open_run(run)
    recipe = folder.recipe()
    preflight.check_machine(recipe, ("backend",))
    from sftrun.data.asking import prompt_encoder

    encode = prompt_encoder(recipe.model)  # before the weights are loaded: it may refuse
    loading = Loading(recipe=recipe, run=folder, which=which)
    model: Model = current().create("backend", recipe.backend).load(loading)

    def answer(conversations: Sequence[list[Message]], decoding: Decoding) -> list[str]:
        prompts = [encode(messages) for messages in conversations]
        return [model.decode(ids).strip() for ids in model.generate(prompts, decoding)]

    return answer
