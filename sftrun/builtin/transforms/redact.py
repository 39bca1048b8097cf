"""Transform `redact`: nothing that belongs to one person, and no secret, is learned."""

import re
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Annotated

import msgspec

import sftrun
from sftrun.builtin.transforms import _finders, _texts


class RedactOptions(sftrun.Options):
    """What is found, and what stands in its place."""

    kinds: Annotated[
        tuple[_finders.Kind, ...],
        sftrun.Meta(
            description="What is found. key: API keys and private keys; ip: public addresses. "
            "phone needs the extra sftrun[transforms]."
        ),
    ] = ("key", "email", "iban", "card", "phone")
    regions: Annotated[
        tuple[str, ...],
        sftrun.Meta(description="Countries, such as DE, whose phone numbers are found without a + before them."),
    ] = ()
    patterns: Annotated[
        dict[str, str], sftrun.Meta(description="More kinds: a regular expression for each name. They go first.")
    ] = {}  # noqa: RUF012
    replacement: Annotated[
        str, sftrun.Meta(description="What stands in its place; {kind} becomes the name of the kind.")
    ] = "[{kind}]"
    splits: _texts.Splits = _texts.ALL_SPLITS


@sftrun.hookimpl
def register_transforms(register: sftrun.Register) -> None:
    register("redact", Redact, options=RedactOptions)


class Redact:
    """Replace e-mail addresses, phone, card and account numbers, keys, and what patterns of one's own find."""

    def __init__(self, options: RedactOptions) -> None:
        self.options = options

    def check_recipe(self, recipe: sftrun.Recipe) -> Iterator[sftrun.Problem]:
        options = self.options
        if not options.kinds and not options.patterns:
            yield sftrun.Problem("redact looks for nothing", hint="name kinds or patterns")
        if options.regions and "phone" not in options.kinds:
            yield sftrun.Problem("redact: regions has no effect without the kind phone", hint="add phone to kinds")
        for name, pattern in options.patterns.items():
            if name in _finders.KINDS:
                hint = "give the pattern another name"
                yield sftrun.Problem(f"redact: patterns has {name!r}, which is the name of a kind", hint=hint)
            yield from _unfit(name, pattern)

    def check_machine(self, recipe: sftrun.Recipe) -> Iterator[sftrun.Problem]:
        if "phone" not in self.options.kinds:
            return
        why = "redact with the kind phone"
        absent = [*sftrun.missing_packages("phonenumbers", path=("transforms",), why=why, extra="transforms")]
        yield from absent or _unknown(self.options.regions)

    def apply(
        self, conversations: Iterable[sftrun.Conversation], context: sftrun.kinds.Context
    ) -> Iterator[sftrun.Conversation]:
        if context.split not in self.options.splits:
            yield from conversations
            return
        finders = {name: _finders.pattern(re.compile(text)) for name, text in self.options.patterns.items()}
        finders |= {kind: _finders.of_kind(kind, self.options.regions) for kind in _ordered(self.options.kinds)}
        for talk in conversations:
            found: Counter[str] = Counter()
            messages = [self._redacted(message, finders, found) for message in talk.messages]
            if messages == talk.messages:
                yield talk
                continue
            detail = ", ".join(f"{number} {kind}" for kind, number in sorted(found.items()))
            context.note(talk.origin, "changed", f"redact: {', '.join(sorted(found))}", detail)
            yield msgspec.structs.replace(talk, messages=messages)

    def _redacted(
        self, message: sftrun.Message, finders: dict[str, _finders.Finder], found: Counter[str]
    ) -> sftrun.Message:
        def change(text: str) -> str:
            for kind, finder in finders.items():
                put = self.options.replacement.replace("{kind}", kind)
                text, number = _replaced(text, finder, put)
                found.update({kind: number} if number else {})
            return text

        return _texts.rewritten(message, change)


def _replaced(text: str, finder: _finders.Finder, put: str) -> tuple[str, int]:
    """A text with what is found replaced, and how often it was."""
    parts, done, number = [], 0, 0
    for start, end in finder(text):
        if text[start:end] != put:
            parts += [text[done:start], put]
            done, number = end, number + 1
    return "".join([*parts, text[done:]]), number


def _ordered(kinds: Iterable[_finders.Kind]) -> list[_finders.Kind]:
    # the particular before the general: an account number is no phone number
    return sorted(set(kinds), key=_finders.KINDS.index)


def _unfit(name: str, pattern: str) -> Iterator[sftrun.Problem]:
    try:
        empty = re.compile(pattern).match("")
    except re.error as error:
        message = f"redact: the pattern {name} is {pattern!r}, which is not a regular expression: {error}"
        yield sftrun.Problem(message, hint="put a \\ before signs that stand for themselves, and quote it in ''")
        return
    if empty:
        yield sftrun.Problem(f"redact: the pattern {name} fits where there is nothing", hint="use + in place of *")


def _unknown(regions: Iterable[str]) -> Iterator[sftrun.Problem]:
    import phonenumbers

    for region in regions:
        if region not in phonenumbers.SUPPORTED_REGIONS:
            hint = "two capital letters, such as DE or US"
            yield sftrun.Problem(
                f"redact: {region!r} is no country with phone numbers", path=("transforms",), hint=hint
            )
