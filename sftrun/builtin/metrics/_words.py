"""Words of texts in any script: runs of letters and digits, or single characters in scripts without spaces."""

import re
import unicodedata

# Chinese, Japanese, Thai, Lao, Tibetan, Burmese and Khmer
UNSPACED = "\u0e00-\u0fff\u1000-\u109f\u1780-\u17ff\u2e80-\u2fdf\u3005-\u3007\u3021-\u3029\u3031-\u3035\u303b\u303c"
UNSPACED += "\u3040-\u30ff\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\uff66-\uff9d\U00020000-\U0003ffff"
WIDE_MARKS = "\u3000-\u303f\uff00-\uffef"  # punctuation of Chinese and Japanese
_is_unspaced = re.compile(f"[{UNSPACED}]").match
_TO_SPACE = re.compile(f"[{UNSPACED}{WIDE_MARKS}]")


def split_words(text: str, punctuation: bool = False) -> list[str]:
    """Returns the words of a text in lower case; with `punctuation` also its punctuation marks, except underscores.

    For English text, these are the words of rouge-score, and with `punctuation` the matches of `\\w+|[^\\w\\s]`.
    """
    words: list[str] = []
    is_open = False  # the next letter belongs to the last word
    has_base = False  # the next combining mark belongs to the last word
    for char in unicodedata.normalize("NFC", text).lower():
        category = unicodedata.category(char)
        if category == "Cf" or (category[0] == "M" and not has_base):
            continue
        if category[0] in "MLN" or (punctuation and char == "_"):
            unspaced = _is_unspaced(char) is not None
            if category[0] == "M" or (is_open and not unspaced):
                words[-1] += char
            else:
                words.append(char)
                is_open = not unspaced
            has_base = True
        else:
            is_open = has_base = False
            if punctuation and not char.isspace():
                words.append(char)
    return words


def space_out(text: str) -> str:
    """Returns a text with spaces around the characters of scripts without spaces, and their combining marks.

    For Chinese, a tokenizer by spaces and punctuation then gives the tokens of sacrebleu's tokenizer `zh`.
    """
    spaced: list[str] = []
    for char in unicodedata.normalize("NFC", text):
        is_mark = unicodedata.category(char)[0] == "M"
        if is_mark and spaced and spaced[-1].endswith(" "):
            spaced[-1] = spaced[-1][:-1] + char + " "
        else:
            spaced.append(f" {char} " if _TO_SPACE.match(char) else char)
    return "".join(spaced)
