"""Answers of a run's model to messages."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from sftrun.errors import RowError, UserError
from sftrun.flow import ready
from sftrun.options import as_use
from sftrun.recipe.resolved import from_resolved
from sftrun.registry import current
from sftrun.runs import directory
from sftrun.types import Message

if TYPE_CHECKING:
    from sftrun.data.masks.render import Renderer

Answer = Callable[[Sequence[list[Message]], int, int], list[str]]


def answerer(path: str | Path, which: Literal["base", "tuned"] = "tuned") -> Answer:
    """Loads a run's model; the result takes conversations, max_new_tokens and a batch size, and answers greedily.

    Raises UserError where the run has no model, and for messages that the chat template refuses.
    """
    folder = directory.open_run(Path(path))
    recipe = from_resolved((folder.path / "resolved.yaml").read_text("utf-8"))
    ready(recipe, ("backend",))
    from sftrun.data.masks.render import Renderer
    from sftrun.data.tokens.tokenizer import load_tokenizer

    tokenizer = load_tokenizer(recipe.model)
    if tokenizer.template.missing:
        raise UserError(
            tokenizer.template.missing.message, hint="it was trained on texts, and goes on with those alone"
        )
    model = current().create("backend", as_use(recipe.backend)).load(recipe, folder.path, which)
    renderer = Renderer(tokenizer.template, eot_token=recipe.model.eot_token)

    def answer(talks: Sequence[list[Message]], max_new_tokens: int, batch_size: int) -> list[str]:
        prompts = [encoding.ids for encoding in tokenizer.encode([_prompt(renderer, talk) for talk in talks])]
        return [model.decode(ids).strip() for ids in model.generate(prompts, max_new_tokens, batch_size)]

    return answer


def _prompt(renderer: "Renderer", talk: list[Message]) -> str:
    try:
        return renderer.render_prompt(talk)
    except RowError as error:
        raise UserError(f"these messages cannot be answered: {error}: {str(talk)[:200]}") from error
