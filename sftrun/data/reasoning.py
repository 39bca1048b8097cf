"""Reasoning in contents: moves the thoughts at the beginning of an answer to its `reasoning_content`."""

import re

import msgspec

from sftrun.data.masks.template import REASONING
from sftrun.types import Conversation, Message

_THOUGHTS = re.compile(
    r"\s*(?:<(?P<name>think|thinking|thought|reasoning)>(?P<tagged>.*?)</(?P=name)>|\[THINK\](?P<bracketed>.*?)\[/THINK\])"
    r"\n*(?P<rest>.*)",
    re.DOTALL,
)


def split_reasoning(conversation: Conversation) -> Conversation:
    """Returns a conversation in which contents such as `<think>…</think>answer` are split; others stay as they are."""
    messages = [_split_message(message) for message in conversation.messages]
    return conversation if conversation.plain else msgspec.structs.replace(conversation, messages=messages)


def _split_message(message: Message) -> Message:
    content = message.get("content")
    if message.get("role") != "assistant" or not isinstance(content, str):
        return message
    found = _THOUGHTS.fullmatch(content)
    if found is None or any(message.get(name) for name in REASONING):
        return message
    thoughts = found["tagged"] if found["name"] else found["bracketed"]
    return {**message, "content": found["rest"], REASONING[0]: thoughts.strip("\n")}
