"""Metric `bleu`: sacrebleu's corpus BLEU."""

from collections.abc import Iterator

import sftrun


@sftrun.hookimpl
def register_metrics(register: sftrun.Register) -> None:
    register("bleu", Bleu)


class Bleu:
    """Corpus BLEU by sacrebleu, from 0 to 1."""

    per_row = False

    def check_machine(self, recipe: sftrun.Recipe) -> Iterator[sftrun.Problem]:
        return sftrun.missing_packages("sacrebleu", extra="eval", path=("evaluators",), why="the metric bleu")

    def measure(self, work: sftrun.kinds.Measuring) -> float:
        import sacrebleu

        return float(sacrebleu.corpus_bleu(list(work.answers), [list(work.references)]).score) / 100
