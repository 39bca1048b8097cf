"""Plain text: conversations without a template, their contents joined as they are."""

from collections.abc import Sequence
from functools import lru_cache

from sftrun.data.masks.skeleton import Skeleton, Tile, rendered
from sftrun.data.masks.stand_ins import PRIVATE, Marked
from sftrun.errors import RowError
from sftrun.types import Conversation, Message, Rendered

TEXT = "text"
"""The role of a message that is a text by itself, generated wherever it stands."""

Shape = tuple[tuple[str, bool], ...]


def render(conversation: Conversation, bos: str, eos: str | None) -> Rendered:
    """The contents between `bos`, which may be empty, and `eos`, with spans that tile them."""
    if conversation.tools or conversation.template_kwargs:
        raise RowError("plain text has no template, so it takes no tools and no template_kwargs")
    if not eos:
        raise RowError("the tokenizer has no eos_token to end plain text with; set model.eot_token to one")
    texts = contents(conversation.messages)
    roles = [str(message["role"]) for message in conversation.messages]
    skeleton = _skeleton(tuple(zip(roles, map(bool, texts), strict=True)), bos, eos)
    filled = [text for text in texts if text]
    return rendered(skeleton, skeleton.fill(filled), list(map(len, filled)), None)


def contents(messages: Sequence[Message]) -> list[str]:
    """The texts of messages; raises RowError for one that is more than a text."""
    for index, message in enumerate(messages):
        if not isinstance(message.get("content"), str):
            raise RowError(f"message {index} ({message['role']}): in plain text, its content must be a string")
        more = next((name for name in message if name not in ("role", "content")), None)
        if more is not None:
            raise RowError(f"message {index} ({message['role']}): in plain text, there is no place for its {more}")
    return [message["content"] for message in messages]


@lru_cache(maxsize=1024)
def _skeleton(shape: Shape, bos: str, eos: str) -> Skeleton:
    """The skeleton of messages of which each has a role and a text that is there or empty."""
    count, last = sum(has_text for _, has_text in shape), len(shape) - 1
    slots = [(len(bos) + index, index) for index in range(count)]
    skeleton = Skeleton(Marked(bos + chr(PRIVATE[0][0]) * count + eos, slots))
    texts = [
        Tile(0, 1, index, role, generated=index == last or role == TEXT)
        for index, (role, has_text) in enumerate(shape)
        if has_text
    ]
    end = Tile(len(eos), 0, last, shape[last][0], generated=True, end_of_turn=True)
    skeleton.add([*([Tile(len(bos), 0, -1, "template")] if bos else []), *texts, end])
    return skeleton
