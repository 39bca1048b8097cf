"""Transform `augment`: adds conversations with the same answers and rephrased questions."""

import random
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Annotated, Any

import msgspec

import sftrun
from sftrun.builtin.transforms import _splits, _texts
from sftrun.builtin.transforms._hashes import hash_files, hash_text

HOLE = "{prompt}"


class AugmentOptions(sftrun.Options):
    """A file of phrases, and the number of copies of each conversation."""

    file: Annotated[
        sftrun.PathText,
        sftrun.Meta(
            description="A .txt file with one template a line, such as: Please {prompt}. Or YAML or JSON with the "
            "keys templates (a list) and paraphrases (a mapping of a phrase to a list of phrases)."
        ),
    ]
    copies: Annotated[int, sftrun.Meta(ge=1, description="Largest number of copies of each conversation.")] = 1
    splits: Annotated[tuple[_splits.Split, ...], sftrun.Meta(min_length=1, description="Splits to add to.")] = (
        "train",
    )


class Phrases(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Templates for the first question, and replacements of phrases in any question."""

    templates: list[str] = []
    paraphrases: dict[str, list[str]] = {}


@sftrun.hookimpl
def register_transforms(register: sftrun.Register) -> None:
    register("augment", Augment, options=AugmentOptions)


class Augment:
    """Add conversations whose questions are rephrased, with templates and paraphrases from a file."""

    def __init__(self, options: AugmentOptions) -> None:
        self.options = options
        self.file = Path(options.file)

    def check_machine(self, recipe: sftrun.Recipe) -> Iterator[sftrun.Problem]:
        try:
            _read_phrases(self.file)
        except sftrun.UserError as error:
            yield from (msgspec.structs.replace(problem, path=("transforms",)) for problem in error.problems)

    def fingerprint(self) -> str:
        """Hashes the file, which is part of the cache key."""
        return hash_files(self.file)

    @_splits.on_chosen_splits
    def apply(
        self, conversations: Iterable[sftrun.Conversation], context: sftrun.kinds.Context
    ) -> Iterator[sftrun.Conversation]:
        phrases = _read_phrases(self.file)
        for conversation in conversations:
            yield conversation
            versions = [conversation.messages]
            for copy in range(self.options.copies):
                draw = random.Random(hash_text(f"{context.seed} {conversation.origin} {copy}"))
                messages = _reword(conversation.messages, phrases, draw)
                if messages not in versions:
                    versions.append(messages)
                    context.note(conversation.origin, "added", "augment: a rephrased question")
                    yield msgspec.structs.replace(conversation, messages=messages)


def _reword(messages: list[sftrun.Message], phrases: Phrases, draw: random.Random) -> list[sftrun.Message]:
    """Rephrases questions: paraphrases in each of them, then a template around the first."""
    questions = [index for index, message in enumerate(messages) if message.get("role") == "user"]
    versions = [*messages]
    for index in questions:
        versions[index] = _texts.change_content(
            versions[index], lambda text: _paraphrase(text, phrases.paraphrases, draw)
        )
    if questions and phrases.templates:
        versions[questions[0]] = _wrap(versions[questions[0]], draw.choice(phrases.templates))
    return versions


def _paraphrase(text: str, paraphrases: dict[str, list[str]], draw: random.Random) -> str:
    if not paraphrases:
        return text
    # in one pass, the longest phrase first, so that no replacement changes another one
    choices = "|".join(map(_match_phrase, sorted(paraphrases, key=len, reverse=True)))
    return re.sub(choices, lambda found: draw.choice([*paraphrases[found[0]], found[0]]), text)


def _match_phrase(phrase: str) -> str:
    """Returns a pattern for a phrase that is not part of a longer word."""
    before, after = (r"\b" if re.match(_texts.LETTER, sign) else "" for sign in (phrase[0], phrase[-1]))
    return f"{before}{re.escape(phrase)}{after}"


def _wrap(message: sftrun.Message, template: str) -> sftrun.Message:
    """Returns a message with a template around its text, or around the first text part."""
    waiting = [template]

    def wrap(text: str) -> str:
        return waiting.pop().replace(HOLE, text) if waiting else text

    return _texts.change_content(message, wrap)


def _read_phrases(file: Path) -> Phrases:
    """Reads a file of phrases; raises UserError if it is invalid."""
    if not file.is_file():
        raise sftrun.UserError(f"augment: no such file: {file}")
    try:
        text = file.read_text("utf-8-sig")
    except UnicodeDecodeError:
        raise sftrun.UserError(f"augment: {file} is not UTF-8 text") from None
    if file.suffix == ".txt":
        phrases = Phrases([line.strip() for line in text.split("\n") if line.strip()])
    else:
        phrases = _parse_phrases(text, file)
    _check_phrases(phrases, file)
    return phrases


def _parse_phrases(text: str, file: Path) -> Phrases:
    from ruamel.yaml import YAML
    from ruamel.yaml.error import YAMLError

    try:
        data: Any = YAML(typ="safe", pure=True).load(text)
        return msgspec.convert(data, Phrases)
    except (YAMLError, msgspec.ValidationError) as error:
        hint = "write the keys templates (a list) and paraphrases (a mapping of phrases to lists of phrases)"
        raise sftrun.UserError(f"augment: {file}: {error}", hint) from None


def _check_phrases(phrases: Phrases, file: Path) -> None:
    if not phrases.templates and not phrases.paraphrases:
        raise sftrun.UserError(f"augment: {file} has neither templates nor paraphrases")
    for template in phrases.templates:
        if HOLE not in template:
            raise sftrun.UserError(f"augment: {file}: the template {template!r} has no {HOLE}", f"write {HOLE} in it")
    empty = [phrase for phrase, others in phrases.paraphrases.items() if not phrase or not others]
    if empty:
        raise sftrun.UserError(f"augment: {file}: the phrase {empty[0]!r} has no paraphrases, or no text")
