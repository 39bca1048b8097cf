"""Metric `token_f1`: the words that an answer and its reference share."""

from collections import Counter

import sftrun
from sftrun.builtin.metrics import _words


@sftrun.hookimpl
def register_metrics(register: sftrun.Register) -> None:
    register("token_f1", TokenF1)


class TokenF1:
    """Harmonic mean of precision and recall over words, case ignored, as in SQuAD (Rajpurkar et al., 2016).

    Words are runs of letters and digits, and single punctuation marks; articles are kept. In scripts without spaces,
    such as Chinese, Japanese and Thai, each character is a word.
    """

    def measure(self, work: sftrun.kinds.Measuring) -> list[float]:
        return [token_f1(answer, reference) for answer, reference in zip(work.answers, work.references, strict=True)]


def token_f1(answer: str, reference: str) -> float:
    """Returns the token F1 of one answer, from 0 to 1."""
    given, wanted = (Counter(_words.split_words(text, punctuation=True)) for text in (answer, reference))
    if not given or not wanted:
        return float(given == wanted)
    shared = (given & wanted).total()
    return 2 * shared / (given.total() + wanted.total())
