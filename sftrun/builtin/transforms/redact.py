"""Transform `redact`: replaces personal data and secrets in texts."""

import re
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Annotated

import msgspec

import sftrun
from sftrun.builtin.transforms import _finders, _splits, _texts


class RedactOptions(sftrun.Options):
    """The kinds of data to find, and their replacement."""

    kinds: Annotated[
        tuple[_finders.Kind, ...],
        sftrun.Meta(
            description="Kinds of data to replace. key: API keys and private keys; ip: public addresses. "
            "phone needs sftrun[transforms]."
        ),
    ] = ("key", "email", "iban", "card", "phone")
    regions: Annotated[
        tuple[str, ...],
        sftrun.Meta(description="Countries, such as DE, whose phone numbers are found without a leading +."),
    ] = ()
    patterns: Annotated[
        dict[str, str],
        sftrun.Meta(description="Further kinds: a regular expression for each name; they are replaced first."),
    ] = {}  # noqa: RUF012
    replacement: Annotated[str, sftrun.Meta(description="Replacement; {kind} becomes the name of the kind.")] = (
        "[{kind}]"
    )
    splits: _splits.Splits = _splits.ALL_SPLITS


@sftrun.hookimpl
def register_transforms(register: sftrun.Register) -> None:
    register("redact", Redact, options=RedactOptions)


class Redact:
    """Replace e-mail addresses, phone, card and account numbers, keys, and matches of your own patterns."""

    def __init__(self, options: RedactOptions) -> None:
        self.options = options

    def check_recipe(self, recipe: sftrun.Recipe) -> Iterator[sftrun.Problem]:
        options = self.options
        if not options.kinds and not options.patterns:
            yield sftrun.Problem("redact looks for nothing", hint="set kinds or patterns")
        if options.regions and "phone" not in options.kinds:
            yield sftrun.Problem("redact: regions has no effect without the kind phone", hint="add phone to kinds")
        for name, pattern in options.patterns.items():
            if name in _finders.KINDS:
                hint = "give the pattern another name"
                yield sftrun.Problem(f"redact: patterns has {name!r}, which is the name of a kind", hint=hint)
            yield from _check_pattern(name, pattern)

    def check_machine(self, recipe: sftrun.Recipe) -> Iterator[sftrun.Problem]:
        if "phone" not in self.options.kinds:
            return
        why = "redact with the kind phone"
        absent = [*sftrun.missing_packages("phonenumbers", path=("transforms",), why=why, extra="transforms")]
        yield from absent or _check_regions(self.options.regions)

    @_splits.on_chosen_splits
    def apply(
        self, conversations: Iterable[sftrun.Conversation], context: sftrun.kinds.Context
    ) -> Iterator[sftrun.Conversation]:
        finders = {name: _finders.make_pattern_finder(re.compile(text)) for name, text in self.options.patterns.items()}
        finders |= {kind: _finders.make_finder(kind, self.options.regions) for kind in _order_kinds(self.options.kinds)}
        for conversation in conversations:
            found: Counter[str] = Counter()
            messages = [self._redact(message, finders, found) for message in conversation.messages]
            if messages == conversation.messages:
                yield conversation
                continue
            detail = ", ".join(f"{number} {kind}" for kind, number in sorted(found.items()))
            context.note(conversation.origin, "changed", f"redact: {', '.join(sorted(found))}", detail)
            yield msgspec.structs.replace(conversation, messages=messages)

    def _redact(
        self, message: sftrun.Message, finders: dict[str, _finders.Finder], found: Counter[str]
    ) -> sftrun.Message:
        def change(text: str) -> str:
            for kind, finder in finders.items():
                put = self.options.replacement.replace("{kind}", kind)
                text, number = _replace(text, finder, put)
                found.update({kind: number} if number else {})
            return text

        return _texts.rewrite(message, change)


def _replace(text: str, finder: _finders.Finder, put: str) -> tuple[str, int]:
    """Returns a text with everything found replaced, and the number of replacements."""
    parts, done, number = [], 0, 0
    for start, end in finder(text):
        if text[start:end] != put:
            parts += [text[done:start], put]
            done, number = end, number + 1
    return "".join([*parts, text[done:]]), number


def _order_kinds(kinds: Iterable[_finders.Kind]) -> list[_finders.Kind]:
    # specific kinds first: an account number is no phone number
    return sorted(set(kinds), key=_finders.KINDS.index)


def _check_pattern(name: str, pattern: str) -> Iterator[sftrun.Problem]:
    try:
        empty = re.compile(pattern).match("")
    except re.error as error:
        message = f"redact: the pattern {name} is {pattern!r}, which is not a regular expression: {error}"
        yield sftrun.Problem(message, hint="put a \\ before special characters to match them, and quote it in ''")
        return
    if empty:
        yield sftrun.Problem(f"redact: the pattern {name} matches an empty text", hint="use + in place of *")


def _check_regions(regions: Iterable[str]) -> Iterator[sftrun.Problem]:
    import phonenumbers

    for region in regions:
        if region not in phonenumbers.SUPPORTED_REGIONS:
            hint = "two capital letters, such as DE or US"
            yield sftrun.Problem(
                f"redact: {region!r} is no country with phone numbers", path=("transforms",), hint=hint
            )
