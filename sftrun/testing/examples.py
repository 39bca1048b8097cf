"""What components are tried on: conversations, their real renderings, prompts, and a model that says one thing."""

import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from sftrun import kinds, tiny, types
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


def talks() -> list[Conversation]:
    """Conversations of many shapes: one turn and twelve, with and without system and tool, odd texts, no answer."""
    return [Conversation([_message(turn) for turn in text.split(" | ")], origin) for origin, text in TALKS.items()]


def flagged() -> list[Conversation]:
    """Conversations whose messages say whether they are trained: the first answer is, the others are not."""
    found = []
    for talk in talks():
        answers = [index for index, message in enumerate(talk.messages) if message["role"] == "assistant"]
        messages = [{**message, "train": [index] == answers[:1]} for index, message in enumerate(talk.messages)]
        found.append(Conversation(messages, f"{talk.origin}, flagged"))
    return found


def _message(turn: str) -> types.Message:
    role, _, content = turn.partition(":")
    return {"role": role, "content": content.removeprefix(" ")}


def shown(masker: kinds.Masker, talk: Conversation) -> str:
    """A conversation as `sftrun inspect` shows it: the text that a model reads, what is trained between ⟦ and ⟧."""
    from sftrun.data.tokens import offsets

    text = rendered(talk)
    row, bounds = offsets.tokens(
        text, offsets.stretches(masker, text), _tokenizer().encode([text.text])[0], _tokenizer()
    )
    pieces = offsets.pieces(text.text, bounds, row.trained)
    return "".join(f"⟦{piece}⟧" if trained else piece for piece, trained in pieces)


def context(others: Sequence[Conversation] = (), note: kinds.Note = lambda *noted: None) -> kinds.Context:
    """What a transform works in, for the split train; every other split has the conversations `others`."""
    return kinds.Context("train", ("train", "val", "test"), 0, note, lambda split: iter(others), _count)


def _count(text: str) -> int:
    return len(_tokenizer().encode([text])[0].ids)


def rendered(talk: Conversation) -> Rendered:
    """What the embedded chat template makes of a conversation."""
    return _renderer().render(talk)


def prompts(split: str) -> list[Prompt]:
    """The conversations that end with an answer, as held-out prompts."""
    found = []
    for talk in talks():
        before, last = talk.messages[:-1], talk.messages[-1]
        if last["role"] == "assistant":
            ids = _tokenizer().encode([_renderer().prompt(before)])[0].ids
            found.append(Prompt(f"{split}: {talk.origin}", before, ids, last["content"]))
    return found


def scoring(model: kinds.Model, prompts: Mapping[str, Sequence[Prompt]]) -> kinds.Scoring:
    """What an evaluator is given: a model, prompts, and a recipe and a run of no importance."""
    recipe = Recipe(model=ModelOptions(name=tiny.NAME), source=Use(use="jsonl"))
    return kinds.Scoring(model=model, prompts=prompts, recipe=recipe, run=RunDir(Path()), emit=lambda event: None)


class Parrot:
    """A model that gives every prompt the same answer."""

    def __init__(self, answer: str) -> None:
        self.answer: list[int] = _tokenizer().encode([answer])[0].ids

    def encode(self, source: str | Sequence[types.Message]) -> list[int]:
        """The ids of a text, or of messages with the generation prompt."""
        text = source if isinstance(source, str) else _renderer().prompt(list(source))
        return list(_tokenizer().encode([text])[0].ids)

    def generate(self, prompts: Sequence[Sequence[int]], decoding: types.Decoding) -> list[list[int]]:
        """The answer, cut where it is too long."""
        assert all(prompts), "a prompt has no tokens"
        assert min(decoding.max_new_tokens, decoding.batch_size) > 0, "max_new_tokens and batch_size must be at least 1"
        return [self.answer[: decoding.max_new_tokens] for _ in prompts]

    def loglikelihood(
        self, pairs: Sequence[tuple[Sequence[int], Sequence[int]]], batch_size: int = 16
    ) -> list[types.Likelihood]:
        """One nat a token; greedy is the beginning of the answer."""
        assert all(context for context, _ in pairs), "a context has no tokens"
        return [
            types.Likelihood(-float(len(ids)), [-1.0] * len(ids), self.answer[: len(ids)] == list(ids))
            for _, ids in pairs
        ]

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ids."""
        return _tokenizer().decode(ids)

    def losses(self, split: str) -> LossSums | None:
        """Made up, for val and test."""
        return LossSums(tokens=8, loss=4.0, correct=6) if split in ("val", "test") else None


@functools.cache
def _tokenizer() -> "Tokenizer":
    from sftrun.data.tokens.tokenizer import load_tokenizer

    return load_tokenizer(ModelOptions(name=tiny.NAME))


@functools.cache
def _renderer() -> "Renderer":
    from sftrun.data.masks.render import Renderer

    return Renderer(_tokenizer().template)
