"""Metric `bleu`: sacrebleu's corpus BLEU."""

from collections.abc import Iterator

import sftrun
from sftrun.builtin.metrics import _words


@sftrun.hookimpl
def register_metrics(register: sftrun.Register) -> None:
    register("bleu", Bleu)


class Bleu:
    """Corpus BLEU by sacrebleu, from 0 to 1, with its tokenizer 13a.

    Chinese, Japanese, Thai, Lao, Khmer, Burmese and Tibetan are cut into characters first; for Chinese, that is
    sacrebleu's tokenizer zh.
    """

    per_row = False

    def check_machine(self, recipe: sftrun.Recipe) -> Iterator[sftrun.Problem]:
        return sftrun.missing_packages("sacrebleu", extra="eval", path=("evaluators",), why="the metric bleu")

    def measure(self, work: sftrun.kinds.Measuring) -> float:
        import sacrebleu

        answers, references = (list(map(_words.space_out, texts)) for texts in (work.answers, work.references))
        return float(sacrebleu.corpus_bleu(answers, [references], tokenize="13a").score) / 100
