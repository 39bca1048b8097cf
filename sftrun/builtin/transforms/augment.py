"""Transform `augment`: more conversations with the same answers, their questions put in other words."""

import random
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Annotated, Any

import msgspec

import sftrun
from sftrun.builtin.transforms import _texts
from sftrun.builtin.transforms._hashes import fingerprint, number

HOLE = "{prompt}"


class AugmentOptions(sftrun.Options):
    """Where other words come from, and how many conversations are made of one."""

    file: Annotated[
        sftrun.PathText,
        sftrun.Meta(
            description="A .txt file with a template a line, such as: Please {prompt}. Or YAML or JSON with the keys "
            "templates (a list) and paraphrases (a mapping of a phrase to a list of phrases)."
        ),
    ]
    copies: Annotated[int, sftrun.Meta(ge=1, description="Conversations made of one, at most, besides itself.")] = 1
    splits: Annotated[tuple[_texts.Split, ...], sftrun.Meta(min_length=1, description="Splits to add to.")] = ("train",)


class Phrases(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Templates for the first question, and phrases for phrases in any question."""

    templates: list[str] = []
    paraphrases: dict[str, list[str]] = {}


@sftrun.hookimpl
def register_transforms(register: sftrun.Register) -> None:
    register("augment", Augment, options=AugmentOptions)


class Augment:
    """Add conversations whose questions are put in other words, from templates and paraphrases in a file."""

    def __init__(self, options: AugmentOptions) -> None:
        self.options = options
        self.file = Path(options.file)

    def check_machine(self, recipe: sftrun.Recipe) -> Iterator[sftrun.Problem]:
        try:
            _read(self.file)
        except sftrun.UserError as error:
            yield from (msgspec.structs.replace(problem, path=("transforms",)) for problem in error.problems)

    def fingerprint(self) -> str:
        """A hash of the file, which decides as well what is prepared."""
        return fingerprint(self.file)

    def apply(
        self, conversations: Iterable[sftrun.Conversation], context: sftrun.kinds.Context
    ) -> Iterator[sftrun.Conversation]:
        if context.split not in self.options.splits:
            yield from conversations
            return
        phrases = _read(self.file)
        for talk in conversations:
            yield talk
            made = [talk.messages]
            for copy in range(self.options.copies):
                draw = random.Random(number(f"{context.seed} {talk.origin} {copy}"))
                messages = _reworded(talk.messages, phrases, draw)
                if messages not in made:
                    made.append(messages)
                    context.note(talk.origin, "added", "augment: a question in other words")
                    yield msgspec.structs.replace(talk, messages=messages)


def _reworded(messages: list[sftrun.Message], phrases: Phrases, draw: random.Random) -> list[sftrun.Message]:
    """Questions in other words: paraphrases in all of them, then a template around the first."""
    asked = [index for index, message in enumerate(messages) if message.get("role") == "user"]
    made = [*messages]
    for index in asked:
        made[index] = _texts.with_content(made[index], lambda text: _paraphrased(text, phrases.paraphrases, draw))
    if asked and phrases.templates:
        made[asked[0]] = _wrapped(made[asked[0]], draw.choice(phrases.templates))
    return made


def _paraphrased(text: str, paraphrases: dict[str, list[str]], draw: random.Random) -> str:
    if not paraphrases:
        return text
    # all at once, the longest first, so that what one puts in is not changed by another
    choices = "|".join(map(_whole, sorted(paraphrases, key=len, reverse=True)))
    return re.sub(choices, lambda found: draw.choice([*paraphrases[found[0]], found[0]]), text)


def _whole(phrase: str) -> str:
    """A pattern for a phrase that is no part of a longer word."""
    before, after = (r"\b" if _texts.LETTER.match(sign) else "" for sign in (phrase[0], phrase[-1]))
    return f"{before}{re.escape(phrase)}{after}"


def _wrapped(message: sftrun.Message, template: str) -> sftrun.Message:
    """A message with a template around its text, or around the first text part."""
    waiting = [template]

    def wrap(text: str) -> str:
        return waiting.pop().replace(HOLE, text) if waiting else text

    return _texts.with_content(message, wrap)


def _read(file: Path) -> Phrases:
    """What a file of phrases holds; raises UserError where that is not what it should be."""
    if not file.is_file():
        raise sftrun.UserError(f"augment: no such file: {file}")
    try:
        text = file.read_text("utf-8-sig")
    except UnicodeDecodeError:
        raise sftrun.UserError(f"augment: {file} is not UTF-8 text") from None
    if file.suffix == ".txt":
        phrases = Phrases([line.strip() for line in text.splitlines() if line.strip()])
    else:
        phrases = _parsed(text, file)
    _check(phrases, file)
    return phrases


def _parsed(text: str, file: Path) -> Phrases:
    from ruamel.yaml import YAML
    from ruamel.yaml.error import YAMLError

    try:
        data: Any = YAML(typ="safe", pure=True).load(text)
        return msgspec.convert(data, Phrases)
    except (YAMLError, msgspec.ValidationError) as error:
        hint = "it should have the keys templates, a list, and paraphrases, a mapping of phrases to lists of phrases"
        raise sftrun.UserError(f"augment: {file}: {error}", hint) from None


def _check(phrases: Phrases, file: Path) -> None:
    if not phrases.templates and not phrases.paraphrases:
        raise sftrun.UserError(f"augment: {file} has neither templates nor paraphrases")
    for template in phrases.templates:
        if HOLE not in template:
            raise sftrun.UserError(f"augment: {file}: the template {template!r} has no {HOLE}", f"write {HOLE} in it")
    empty = [phrase for phrase, others in phrases.paraphrases.items() if not phrase or not others]
    if empty:
        raise sftrun.UserError(f"augment: {file}: the phrase {empty[0]!r} has no paraphrases, or no text")
