"""Names of splits: reads the split, the label and the number in the name of a file or folder."""

import re
from pathlib import Path

import msgspec

SPLITS = ("train", "val", "test")
WORDS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "validation", "valid", "dev"), "val"),
    **dict.fromkeys(("test", "testing", "eval", "evaluation", "holdout", "heldout"), "test"),
}
COMPRESSED = (".gz", ".zst")
HUMP = re.compile(r"(?<=[a-z])(?=[A-Z])")  # alpacaTrain is alpaca-Train
WORD = re.compile(rf"(?<![a-z])({'|'.join(sorted(WORDS, key=len, reverse=True))})(?:set|data)?(?![a-z])")
# the number of a file, and the hash that the Hub added to it: -00000-of-00002-2a1df75c6bce91ab
NUMBER = re.compile(
    r"(?:(?:^|[-_. ])(?:(?:part|shard|chunk)[-_. ]?)?(?P<number>\d+)(?:[-_. ]?of[-_. ]?(?P<total>\d+))?)?"
    r"(?:[-_. ](?=[a-f]*\d)[0-9a-f]{8,})?$"
)
SEPARATORS = "-_. "
Label = tuple[str, str]
"""The text before the name of the split, and after it."""


class SplitName(msgspec.Struct, frozen=True):
    """The split that a name has, the word for it, the rest of the name, and the number of a numbered file."""

    split: str
    word: str
    label: Label = ("", "")
    number: int | None = None
    total: int | None = None


def parse_name(stem: str) -> SplitName | None:
    """Parses a name without suffix, such as `alpaca_train-00000-of-00002`; None if it has no split, or several."""
    text = HUMP.sub("-", stem).lower()
    words = list(WORD.finditer(text))
    if len({WORDS[word[1]] for word in words}) != 1:
        return None
    word, rest = words[0], text[words[0].end() :]
    number = NUMBER.search(rest)
    assert number  # matches the empty end
    label = (text[: word.start()].strip(SEPARATORS), rest[: number.start()].strip(SEPARATORS))
    digits = [int(digits) if digits else None for digits in number.groups()]
    return SplitName(WORDS[word[1]], word[1], label, *digits)


def find_splits(path: Path) -> set[str]:
    """Returns every split that a path is named after, in its file or one of its folders."""
    names = [*path.parent.parts, get_bare_name(path)]
    return {WORDS[word[1]] for name in names for word in WORD.finditer(HUMP.sub("-", name).lower())}


def get_bare_name(path: Path) -> str:
    """Returns the name of a file without `.gz` or `.zst` and without the suffix before that."""
    name = path.name.removesuffix(path.suffix) if path.suffix in COMPRESSED else path.name
    return name.rpartition(".")[0] or name


def get_stem(path: Path, suffixes: tuple[str, ...]) -> str | None:
    """Returns the name of a file without its suffixes; None for a file of another kind."""
    name = path.name.removesuffix(path.suffix) if path.suffix in COMPRESSED else path.name
    found = next((suffix for suffix in suffixes if name.endswith(suffix)), None)
    return name.removesuffix(found) if found and not name.startswith(".") else None
