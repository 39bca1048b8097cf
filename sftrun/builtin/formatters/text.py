"""Formatter `text`: plain texts, trained from end to end."""

from collections.abc import Iterator
from typing import Annotated

import sftrun
from sftrun.builtin.formatters import _columns, _media

ASSISTANT_MASKERS = ("assistant", "last-reply", "spans")
"""Maskers that only train answers of assistants."""


class TextOptions(sftrun.Options):
    """The column of the text."""

    field: Annotated[str, sftrun.Meta(description="Column of the text.")] = "text"


@sftrun.hookimpl
def register_formatters(register: sftrun.Register) -> None:
    register("text", Text, options=TextOptions)


class Text:
    """Rows with a text, trained as it is, without a chat template; for masker `all`."""

    def __init__(self, options: TextOptions) -> None:
        self.field = options.field

    def check_recipe(self, recipe: sftrun.Recipe) -> Iterator[sftrun.Problem]:
        masker = recipe.masker.use if isinstance(recipe.masker, sftrun.Use) else recipe.masker
        if masker in ASSISTANT_MASKERS:
            yield sftrun.Problem(
                f"the formatter text writes no assistant turns, and the masker {masker} trains nothing else",
                path=("masker",),
                hint="set masker: all",
            )

    def format(self, row: sftrun.Row) -> sftrun.Conversation:
        _media.check_media(row.data, (self.field,))
        content = _columns.get_answer(row.data, self.field)
        return sftrun.Conversation([{"role": "text", "content": content}], row.origin, plain=True)
