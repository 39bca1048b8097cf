"""Plain text: renders conversations without a template, by joining their contents."""

from collections.abc import Sequence
from functools import lru_cache

from sftrun.data.masks.skeleton import Skeleton, Tile, make_rendered
from sftrun.data.masks.stand_ins import PRIVATE, MarkedText
from sftrun.errors import RowError
from sftrun.types import Conversation, Message, Rendered

TEXT = "text"
"""Role of a message of the formatter `text`; all of its text is generated, at any position."""

SPACES = " \t"

Shape = tuple[tuple[str, bool], ...]


def render_plain(conversation: Conversation, bos: str, eos: str | None, space_to_answer: bool = False) -> Rendered:
    """Joins the contents between `bos`, which may be empty, and `eos`, with spans that tile the text.

    With `space_to_answer`, the spaces at the end of a prompt belong to the text after it.
    """
    if conversation.tools or conversation.template_kwargs:
        raise RowError("plain text is rendered without a template, so it must not have tools or template_kwargs")
    if not eos:
        raise RowError("plain text ends with the tokenizer's eos_token, but it has none; set model.eot_token")
    texts = get_contents(conversation.messages)
    if space_to_answer and len(texts) > 1:
        texts[-2:] = move_space(texts[-2], texts[-1])
    roles = [str(message["role"]) for message in conversation.messages]
    skeleton = _make_skeleton(tuple(zip(roles, map(bool, texts), strict=True)), bos, eos)
    filled = [text for text in texts if text]
    return make_rendered(skeleton, skeleton.fill(filled), list(map(len, filled)), None)


def move_space(prompt: str, answer: str) -> tuple[str, str]:
    """Moves the spaces at the end of a prompt to the beginning of its answer."""
    kept = prompt.rstrip(SPACES)
    return kept, prompt[len(kept) :] + answer


def get_contents(messages: Sequence[Message]) -> list[str]:
    """Returns the texts of messages; raises RowError for a message with other fields than a text."""
    for index, message in enumerate(messages):
        if not isinstance(message.get("content"), str):
            raise RowError(f"message {index} ({message['role']}): in plain text, its content must be a string")
        more = next((name for name in message if name not in ("role", "content")), None)
        if more is not None:
            raise RowError(
                f"message {index} ({message['role']}): in plain text, its {more} cannot be rendered; remove it"
            )
    return [message["content"] for message in messages]


@lru_cache(maxsize=1024)
def _make_skeleton(shape: Shape, bos: str, eos: str) -> Skeleton:
    """Makes the skeleton of messages, each given as its role and a flag that is set if its text is not empty."""
    count, last = sum(has_text for _, has_text in shape), len(shape) - 1
    slots = [(len(bos) + index, index) for index in range(count)]
    skeleton = Skeleton(MarkedText(bos + chr(PRIVATE[0][0]) * count + eos, slots))
    texts = [
        Tile(0, 1, index, role, generated=index == last or role == TEXT)
        for index, (role, has_text) in enumerate(shape)
        if has_text
    ]
    end = Tile(len(eos), 0, last, shape[last][0], generated=True, end_of_turn=True)
    skeleton.set_tiles([*([Tile(len(bos), 0, -1, "template")] if bos else []), *texts, end])
    return skeleton
