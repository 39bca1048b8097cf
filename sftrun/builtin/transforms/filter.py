"""Transform `filter`: keep the conversations that meet rules about their length, turns, texts and language."""

import re
from collections.abc import Iterable, Iterator
from typing import Annotated, Literal

import sftrun
from sftrun.builtin.transforms import _rules, _texts

Count = Annotated[int, sftrun.Meta(ge=0)]
BOUNDS = ("chars", "tokens", "turns")
RULES = (*(f"{end}_{what}" for what in BOUNDS for end in ("min", "max")), "match", "reject", "languages")


class FilterOptions(sftrun.Options):
    """The rules; a conversation has to meet all of them."""

    min_chars: Annotated[Count | None, sftrun.Meta(description="Fewest characters of its texts together.")] = None
    max_chars: Annotated[Count | None, sftrun.Meta(description="Most characters of its texts together.")] = None
    min_tokens: Annotated[Count | None, sftrun.Meta(description="Fewest tokens of its texts together.")] = None
    max_tokens: Annotated[Count | None, sftrun.Meta(description="Most tokens of its texts together.")] = None
    min_turns: Annotated[Count | None, sftrun.Meta(description="Fewest messages of the assistant.")] = None
    max_turns: Annotated[Count | None, sftrun.Meta(description="Most messages of the assistant.")] = None
    match: Annotated[
        tuple[str, ...], sftrun.Meta(description="Regular expressions that must each be found in one of its texts.")
    ] = ()
    reject: Annotated[
        tuple[str, ...], sftrun.Meta(description="Regular expressions that must not be found in any of its texts.")
    ] = ()
    languages: Annotated[
        tuple[str, ...],
        sftrun.Meta(description="ISO 639 codes, such as en, of languages to keep. Needs the extra sftrun[transforms]."),
    ] = ()
    language_confidence: Annotated[
        float,
        sftrun.Meta(ge=0, le=1, description="How sure another language must be for a conversation to be left out."),
    ] = 0.5
    roles: Annotated[
        tuple[Literal["system", "user", "assistant", "tool"], ...],
        sftrun.Meta(min_length=1, description="Whose messages are the texts that the rules are about."),
    ] = ("assistant",)
    splits: _texts.Splits = _texts.ALL_SPLITS


@sftrun.hookimpl
def register_transforms(register: sftrun.Register) -> None:
    register("filter", Filter, options=FilterOptions)


class Filter:
    """Leave out conversations by length, number of turns, regular expressions or language."""

    def __init__(self, options: FilterOptions) -> None:
        self.options = options

    def check_recipe(self, recipe: sftrun.Recipe) -> Iterator[sftrun.Problem]:
        options = self.options
        ruled = any(getattr(options, name) not in (None, ()) for name in RULES)
        if not ruled:
            yield sftrun.Problem("filter has no rule, so it keeps everything", hint="add one, such as min_chars: 1")
        for what in BOUNDS:
            low, high = getattr(options, f"min_{what}"), getattr(options, f"max_{what}")
            if None not in (low, high) and low > high:
                yield sftrun.Problem(f"filter keeps nothing: min_{what} {low} is more than max_{what} {high}")
        for key, patterns in (("match", options.match), ("reject", options.reject)):
            for pattern in patterns:
                yield from _irregular(key, pattern)
        if not options.languages and options.language_confidence != FilterOptions().language_confidence:
            yield sftrun.Problem("filter: language_confidence has no effect without languages", hint="add languages")

    def check_machine(self, recipe: sftrun.Recipe) -> Iterator[sftrun.Problem]:
        if not self.options.languages:
            return
        absent = [
            *sftrun.missing_packages("py3langid", path=("transforms",), why="filter by language", extra="transforms")
        ]
        yield from absent or _unknown(self.options.languages)

    def apply(
        self, conversations: Iterable[sftrun.Conversation], context: sftrun.kinds.Context
    ) -> Iterator[sftrun.Conversation]:
        if context.split not in self.options.splits:
            yield from conversations
            return
        rules = [*_rules.rules(self.options, context.count)]
        for talk in conversations:
            texts = _texts.of_roles(talk, self.options.roles)
            broken = next(((rule.name, why) for rule in rules if (why := rule.broken(talk, texts))), None)
            if broken:
                context.note(talk.origin, "filtered", f"filter: {broken[0]}", broken[1])
            else:
                yield talk


def _irregular(key: str, pattern: str) -> Iterator[sftrun.Problem]:
    try:
        re.compile(pattern)
    except re.error as error:
        message = f"filter: {key} has {pattern!r}, which is not a regular expression: {error}"
        yield sftrun.Problem(message, hint="put a \\ before signs that stand for themselves, and quote it in ''")


def _unknown(languages: Iterable[str]) -> Iterator[sftrun.Problem]:
    known = _rules.identifier().labels
    for language in languages:
        if language not in known:
            hint = f"known are {', '.join(sorted(known))}"
            yield sftrun.Problem(f"filter: no language has the code {language!r}", path=("transforms",), hint=hint)
