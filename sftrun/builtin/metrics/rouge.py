"""Metrics `rouge_1`, `rouge_2` and `rouge_l`: overlap of words, of pairs of words, and of the longest common
subsequence.
"""

import functools
from collections.abc import Iterator
from typing import Any

import sftrun
from sftrun.builtin.metrics import _words

NAMES = {
    "rouge_1": "rouge1",
    "rouge_2": "rouge2",
    "rouge_l": "rougeL",
}  # name of the metric: name in the package rouge-score
WORDS = "Words of all scripts; characters where a script has no spaces, as Chinese and Thai."


@sftrun.hookimpl
def register_metrics(register: sftrun.Register) -> None:
    for name, kind in NAMES.items():
        register(name, functools.partial(Rouge, name), description=f"{kind} of rouge-score (F-measure). {WORDS}")


class Rouge:
    """F-measure of a ROUGE score (Lin, 2004) by the package rouge-score, with words of all scripts.

    The package's own words are of the Latin letters without accents; other texts would have a score of 0.
    """

    def __init__(self, name: str) -> None:
        self.name = name

    def check_machine(self, recipe: sftrun.Recipe) -> Iterator[sftrun.Problem]:
        return sftrun.missing_packages("rouge_score", extra="eval", path=("evaluators",), why=f"the metric {self.name}")

    def measure(self, work: sftrun.kinds.Measuring) -> list[float]:
        from rouge_score.rouge_scorer import RougeScorer

        kind = NAMES[self.name]
        scorer: Any = RougeScorer([kind], tokenizer=_Tokenizer())
        pairs = zip(work.answers, work.references, strict=True)
        return [float(scorer.score(reference, answer)[kind].fmeasure) for answer, reference in pairs]


class _Tokenizer:
    """A tokenizer as rouge-score takes it."""

    def tokenize(self, text: str) -> list[str]:
        """Returns the words of a text."""
        return _words.split_words(text)
