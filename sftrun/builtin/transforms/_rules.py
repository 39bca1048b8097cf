"""The rules of the transform `filter`."""

import re
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import sftrun

if TYPE_CHECKING:
    from sftrun.builtin.transforms.filter import FilterOptions

ENOUGH = 10_000  # characters tell the language of a text


class Rule(NamedTuple):
    """`broken(conversation, texts)` says how a conversation breaks the rule, or nothing."""

    name: str
    broken: Callable[[sftrun.Conversation, Sequence[str]], str]


def rules(options: "FilterOptions", count: Callable[[str], int]) -> Iterator[Rule]:
    """The rules that are set, quick ones first."""
    yield from _bounds("turns", options.min_turns, options.max_turns, lambda talk, texts: _turns(talk))
    yield from _bounds("chars", options.min_chars, options.max_chars, lambda talk, texts: sum(map(len, texts)))
    for pattern in options.match:
        yield Rule("match", _missing(re.compile(pattern)))
    for pattern in options.reject:
        yield Rule("reject", _found(re.compile(pattern)))
    yield from _bounds("tokens", options.min_tokens, options.max_tokens, lambda talk, texts: sum(map(count, texts)))
    if options.languages:
        yield Rule("languages", _foreign(options.languages, options.language_confidence))


def _turns(talk: sftrun.Conversation) -> int:
    return sum(message.get("role") == "assistant" for message in talk.messages)


def _bounds(
    what: str, low: int | None, high: int | None, measure: Callable[[sftrun.Conversation, Sequence[str]], int]
) -> Iterator[Rule]:
    def below(talk: sftrun.Conversation, texts: Sequence[str]) -> str:
        size = measure(talk, texts)
        return f"{size} {what}" if low is not None and size < low else ""

    def above(talk: sftrun.Conversation, texts: Sequence[str]) -> str:
        size = measure(talk, texts)
        return f"{size} {what}" if high is not None and size > high else ""

    if low is not None:
        yield Rule(f"min_{what}", below)
    if high is not None:
        yield Rule(f"max_{what}", above)


def _missing(pattern: re.Pattern[str]) -> Callable[[sftrun.Conversation, Sequence[str]], str]:
    return lambda talk, texts: "" if any(map(pattern.search, texts)) else f"{pattern.pattern} is not found"


def _found(pattern: re.Pattern[str]) -> Callable[[sftrun.Conversation, Sequence[str]], str]:
    return lambda talk, texts: f"{pattern.pattern} is found" if any(map(pattern.search, texts)) else ""


def _foreign(languages: Sequence[str], confidence: float) -> Callable[[sftrun.Conversation, Sequence[str]], str]:
    model = identifier()

    def broken(talk: sftrun.Conversation, texts: Sequence[str]) -> str:
        language, sure = model.classify("\n".join(texts)[:ENOUGH])
        return f"{language} ({sure:.2f})" if language not in languages and sure >= confidence else ""

    return broken


def identifier() -> Any:
    """Tells the language of a text, with how sure it is, from 0 to 1."""
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
