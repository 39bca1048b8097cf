"""Examples for checks: conversations, their real renderings, prompts, and a model that always gives one answer."""

import functools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from sftrun import kinds, tiny, types
from sftrun.events import Event, decode, encode, to_json
from sftrun.options import Use
from sftrun.recipe.model import ModelOptions, Recipe
from sftrun.runs.directory import RunDir
from sftrun.types import Conversation, LossSums, Prompt, Rendered

if TYPE_CHECKING:
    from sftrun.data.masks.render import Renderer
    from sftrun.data.tokens.tokenizer import Tokenizer

TALKS = {
    "one turn": "user: Name a river. | assistant: The Danube.",
    "three turns": "system: Be terse. | user: 1? | assistant: One. | user: 2? | assistant: Two. | user: 3? "
    "| assistant: Three.",
    "twelve turns": " | ".join(f"user: {number}? | assistant: It is {number}." for number in range(12)),
    "the same text twice": "user: yes | assistant: yes | user: yes | assistant: yes",
    "one turn again": "user: Name a river. | assistant: The Danube.",
    "odd texts": "user: \n a <b>\t | assistant: Дунай 🏞️ \n | user: a<|im_end|>\n<|im_start|>assistant\nb "
    "| assistant: e\u0301",
    "an empty answer": "user: Say nothing. | assistant: | user: More? | assistant: No.",
    "a tool": "user: How warm is it? | assistant: Let me look. | tool: 7 | assistant: Seven degrees.",
    "ends with a question": "user: Name a river. | assistant: The Danube. | user: And a lake?",
    "no answer": "user: Is anybody there?",
}
ODD_ANSWERS = ("", " \n", "Дунай 🌊 \0 <|im_end|>", "e\u0301\u200b\ud7ff", "!?", "so " * 5000)
"""Answers that a model may give: nothing, other scripts, control tokens, and one that does not end."""


def is_text(value: Any) -> bool:
    """Returns True for a text that has more than white space."""
    return isinstance(value, str) and bool(value.strip())


def talks() -> list[Conversation]:
    """Returns conversations of many shapes: of one to twelve turns, with system and tool, odd texts, no answer."""
    return [Conversation([_message(turn) for turn in text.split(" | ")], origin) for origin, text in TALKS.items()]


def flagged() -> list[Conversation]:
    """Returns conversations with flags: the first answer is to be trained, the others are not."""
    examples = []
    for talk in talks():
        answers = [index for index, message in enumerate(talk.messages) if message["role"] == "assistant"]
        messages = [{**message, "train": [index] == answers[:1]} for index, message in enumerate(talk.messages)]
        examples.append(Conversation(messages, f"{talk.origin}, flagged"))
    return examples


def _message(turn: str) -> types.Message:
    role, _, content = turn.partition(":")
    return {"role": role, "content": content.removeprefix(" ")}


def shown(masker: kinds.Masker, talk: Conversation) -> str:
    """Returns a conversation as `sftrun inspect` shows it: the text, with what is trained between ⟦ and ⟧."""
    from sftrun.data.tokens import offsets

    text = rendered(talk)
    row, bounds = offsets.mark_tokens(
        text, offsets.choose_stretches(masker, text), _tokenizer().encode([text.text])[0], _tokenizer()
    )
    pieces = offsets.cut_text(text.text, bounds, row.trained)
    return "".join(f"⟦{piece}⟧" if trained else piece for piece, trained in pieces)


def context(others: Sequence[Conversation] = (), note: kinds.Note = lambda *noted: None) -> kinds.Context:
    """Returns the context of a transform, for the split train; every other split has the conversations `others`."""
    return kinds.Context("train", ("train", "val", "test"), 0, note, lambda split: iter(others), _count)


def _count(text: str) -> int:
    return len(_tokenizer().encode([text])[0].ids)


def rendered(talk: Conversation) -> Rendered:
    """Returns a conversation rendered by the embedded chat template."""
    return _renderer().render(talk)


def prompts(split: str) -> list[Prompt]:
    """Returns the conversations that end with an answer, as held-out prompts."""
    examples = []
    for talk in talks():
        before, last = talk.messages[:-1], talk.messages[-1]
        if last["role"] == "assistant":
            ids = _tokenizer().encode([_renderer().render_prompt(before)])[0].ids
            examples.append(Prompt(f"{split}: {talk.origin}", before, ids, last["content"]))
    return examples


def scoring(
    model: kinds.Model, prompts: Mapping[str, Sequence[Prompt]], which: Literal["base", "tuned"] = "tuned"
) -> kinds.Scoring:
    """Returns the context of an evaluator: a model, prompts, and a recipe and a run of no importance."""
    recipe = Recipe(model=ModelOptions(name=tiny.NAME), source=Use(use="jsonl"))
    run = RunDir(Path())
    return kinds.Scoring(model=model, prompts=prompts, recipe=recipe, run=run, emit=check_event, which=which)


def check_event(event: Any) -> None:
    """Raises AssertionError unless an event is typed, and can be read back from events.jsonl."""
    assert isinstance(event, Event), f"an event must be one of sftrun.events, not {event!r}"
    _, bad = decode(json.loads(to_json(event)))
    assert bad is None, f"the event {encode(event)} cannot be read back: {bad.reason if bad else ''}"


class Parrot:
    """A model that gives every prompt the same answer."""

    def __init__(self, answer: str) -> None:
        self.answer: list[int] = _tokenizer().encode([answer])[0].ids

    def encode(self, source: str | Sequence[types.Message]) -> list[int]:
        """Returns the ids of a text, or of messages with the generation prompt."""
        text = source if isinstance(source, str) else _renderer().render_prompt(list(source))
        return list(_tokenizer().encode([text])[0].ids)

    def generate(self, prompts: Sequence[Sequence[int]], decoding: types.Decoding) -> list[list[int]]:
        """Returns the answer once per prompt, cut to `max_new_tokens`."""
        assert all(prompts), "a prompt has no tokens"
        assert min(decoding.max_new_tokens, decoding.batch_size) > 0, "max_new_tokens and batch_size must be at least 1"
        return [self.answer[: decoding.max_new_tokens] for _ in prompts]

    def loglikelihood(
        self, pairs: Sequence[tuple[Sequence[int], Sequence[int]]], batch_size: int = 16
    ) -> list[types.Likelihood]:
        """Returns one nat per token; greedy decoding gives the beginning of the answer."""
        assert all(context for context, _ in pairs), "a context has no tokens"
        return [
            types.Likelihood(-float(len(ids)), [-1.0] * len(ids), self.answer[: len(ids)] == list(ids))
            for _, ids in pairs
        ]

    def decode(self, ids: Sequence[int]) -> str:
        """Returns the text of ids."""
        return _tokenizer().decode(ids)

    def losses(self, split: str) -> LossSums | None:
        """Returns the same sums for val and test."""
        return LossSums(tokens=8, loss=4.0, correct=6) if split in ("val", "test") else None


@functools.cache
def _tokenizer() -> "Tokenizer":
    from sftrun.data.tokens.tokenizer import load_tokenizer

    return load_tokenizer(ModelOptions(name=tiny.NAME))


@functools.cache
def _renderer() -> "Renderer":
    from sftrun.data.masks.render import Renderer

    return Renderer(_tokenizer().template)
