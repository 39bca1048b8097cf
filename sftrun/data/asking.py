"""Encodes messages as the prompt of a model."""

from collections.abc import Callable, Sequence

from sftrun.data.masks.render import Renderer
from sftrun.data.tokens.tokenizer import load_tokenizer
from sftrun.errors import RowError, UserError
from sftrun.recipe.model import ModelOptions
from sftrun.types import Message


def prompt_encoder(model: ModelOptions) -> Callable[[Sequence[Message]], list[int]]:
    """Returns a function from messages to the token ids of their render, with the generation prompt at the end.

    Raises UserError if the tokenizer has no chat template; the function raises it for messages that the template
    refuses.
    """
    tokenizer = load_tokenizer(model)
    if tokenizer.template.missing:
        hint = "it was trained on plain texts, and can only continue texts"
        raise UserError(tokenizer.template.missing.message, hint=hint)
    renderer = Renderer(tokenizer.template, eot_token=model.eot_token)

    def encode(messages: Sequence[Message]) -> list[int]:
        try:
            text = renderer.render_prompt(list(messages))
        except RowError as error:
            raise UserError(f"these messages cannot be answered: {error}: {str(messages)[:200]}") from error
        return list(tokenizer.encode([text])[0].ids)

    return encode
