"""Transform `filter`: keeps conversations that meet rules about length, turns, texts and language."""

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Annotated, Any, Literal, NamedTuple

import sftrun
from sftrun.builtin.transforms import _splits, _texts

ENOUGH = 10_000  # characters of a text that its language is detected from
Explain = Callable[[sftrun.Conversation, Sequence[str]], str]
Count = Annotated[int, sftrun.Meta(ge=0)]
BOUNDS = ("chars", "tokens", "turns")
RULES = (*(f"{end}_{what}" for what in BOUNDS for end in ("min", "max")), "match", "reject", "languages")


class FilterOptions(sftrun.Options):
    """The rules, all of which a conversation must meet."""

    min_chars: Annotated[Count | None, sftrun.Meta(description="Fewest characters of all texts together.")] = None
    max_chars: Annotated[Count | None, sftrun.Meta(description="Most characters of all texts together.")] = None
    min_tokens: Annotated[Count | None, sftrun.Meta(description="Fewest tokens of all texts together.")] = None
    max_tokens: Annotated[Count | None, sftrun.Meta(description="Most tokens of all texts together.")] = None
    min_turns: Annotated[Count | None, sftrun.Meta(description="Fewest messages of the assistant.")] = None
    max_turns: Annotated[Count | None, sftrun.Meta(description="Most messages of the assistant.")] = None
    match: Annotated[
        tuple[str, ...], sftrun.Meta(description="Regular expressions; each must match in one of the texts.")
    ] = ()
    reject: Annotated[
        tuple[str, ...], sftrun.Meta(description="Regular expressions that must not match in any text.")
    ] = ()
    languages: Annotated[
        tuple[str, ...],
        sftrun.Meta(description="ISO 639 codes, such as en, of languages to keep; needs sftrun[transforms]."),
    ] = ()
    language_confidence: Annotated[
        float,
        sftrun.Meta(ge=0, le=1, description="Probability of another language from which a conversation is left out."),
    ] = 0.5
    roles: Annotated[
        tuple[Literal["system", "user", "assistant", "tool"], ...],
        sftrun.Meta(min_length=1, description="Roles of the messages that the rules apply to."),
    ] = ("assistant",)
    splits: _splits.Splits = _splits.ALL_SPLITS


@sftrun.hookimpl
def register_transforms(register: sftrun.Register) -> None:
    register("filter", Filter, options=FilterOptions)


class Filter:
    """Leave out conversations by length, number of turns, regular expressions or language."""

    def __init__(self, options: FilterOptions) -> None:
        self.options = options

    def check_recipe(self, recipe: sftrun.Recipe) -> Iterator[sftrun.Problem]:
        options = self.options
        has_rules = any(getattr(options, name) not in (None, ()) for name in RULES)
        if not has_rules:
            yield sftrun.Problem("filter has no rule, so it keeps everything", hint="add one, such as min_chars: 1")
        for what in BOUNDS:
            low, high = getattr(options, f"min_{what}"), getattr(options, f"max_{what}")
            if None not in (low, high) and low > high:
                yield sftrun.Problem(f"filter keeps nothing: min_{what} {low} is more than max_{what} {high}")
        for key, patterns in (("match", options.match), ("reject", options.reject)):
            for pattern in patterns:
                yield from _check_pattern(key, pattern)
        if not options.languages and options.language_confidence != FilterOptions().language_confidence:
            yield sftrun.Problem("filter: language_confidence has no effect without languages", hint="add languages")

    def check_machine(self, recipe: sftrun.Recipe) -> Iterator[sftrun.Problem]:
        if not self.options.languages:
            return
        absent = [
            *sftrun.missing_packages("py3langid", path=("transforms",), why="filter by language", extra="transforms")
        ]
        yield from absent or _check_languages(self.options.languages)

    @_splits.on_chosen_splits
    def apply(
        self, conversations: Iterable[sftrun.Conversation], context: sftrun.kinds.Context
    ) -> Iterator[sftrun.Conversation]:
        rules = [*_make_rules(self.options, context.count)]
        for conversation in conversations:
            texts = _texts.get_role_texts(conversation, self.options.roles)
            broken = next(((rule.name, why) for rule in rules if (why := rule.explain(conversation, texts))), None)
            if broken:
                context.note(conversation.origin, "filtered", f"filter: {broken[0]}", broken[1])
            else:
                yield conversation


class Rule(NamedTuple):
    """A rule; `explain` returns how a conversation breaks it, or an empty text."""

    name: str
    explain: Explain


def _make_rules(options: FilterOptions, count_tokens: Callable[[str], int]) -> Iterator[Rule]:
    """Yields the rules that are set, cheap ones first."""
    yield from _make_bounds("turns", options.min_turns, options.max_turns, _count_turns)
    yield from _make_bounds("chars", options.min_chars, options.max_chars, lambda _, texts: sum(map(len, texts)))
    for pattern in options.match:
        yield Rule("match", _explain_missing(re.compile(pattern)))
    for pattern in options.reject:
        yield Rule("reject", _explain_found(re.compile(pattern)))
    tokens = options.min_tokens, options.max_tokens
    yield from _make_bounds("tokens", *tokens, lambda _, texts: sum(map(count_tokens, texts)))
    if options.languages:
        yield Rule("languages", _explain_language(options.languages, options.language_confidence))


def _count_turns(conversation: sftrun.Conversation, texts: Sequence[str]) -> int:
    return sum(message.get("role") == "assistant" for message in conversation.messages)


def _make_bounds(
    what: str, low: int | None, high: int | None, measure: Callable[[sftrun.Conversation, Sequence[str]], int]
) -> Iterator[Rule]:
    def explain_low(conversation: sftrun.Conversation, texts: Sequence[str]) -> str:
        size = measure(conversation, texts)
        return f"{size} {what}" if low is not None and size < low else ""

    def explain_high(conversation: sftrun.Conversation, texts: Sequence[str]) -> str:
        size = measure(conversation, texts)
        return f"{size} {what}" if high is not None and size > high else ""

    if low is not None:
        yield Rule(f"min_{what}", explain_low)
    if high is not None:
        yield Rule(f"max_{what}", explain_high)


def _explain_missing(pattern: re.Pattern[str]) -> Explain:
    return lambda _, texts: "" if any(map(pattern.search, texts)) else f"{pattern.pattern} is not found"


def _explain_found(pattern: re.Pattern[str]) -> Explain:
    return lambda _, texts: f"{pattern.pattern} is found" if any(map(pattern.search, texts)) else ""


def _explain_language(languages: Sequence[str], confidence: float) -> Explain:
    model = _load_identifier()

    def explain(conversation: sftrun.Conversation, texts: Sequence[str]) -> str:
        language, probability = model.classify("\n".join(texts)[:ENOUGH])
        return f"{language} ({probability:.2f})" if language not in languages and probability >= confidence else ""

    return explain


def _load_identifier() -> Any:
    """Loads the classifier of languages, which gives probabilities from 0 to 1."""
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)


def _check_pattern(key: str, pattern: str) -> Iterator[sftrun.Problem]:
    try:
        re.compile(pattern)
    except re.error as error:
        message = f"filter: {key} has {pattern!r}, which is not a regular expression: {error}"
        yield sftrun.Problem(message, hint="put a \\ before special characters to match them, and quote it in ''")


def _check_languages(languages: Iterable[str]) -> Iterator[sftrun.Problem]:
    known = _load_identifier().labels
    for language in languages:
        if language not in known:
            hint = f"known are {', '.join(sorted(known))}"
            yield sftrun.Problem(f"filter: no language has the code {language!r}", path=("transforms",), hint=hint)
