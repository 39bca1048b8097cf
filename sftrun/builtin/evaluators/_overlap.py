"""How much a text agrees with a reference: exact match, token F1, BLEU and ROUGE."""

import re
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

METRICS = ("exact_match", "token_f1", "bleu", "rouge_1", "rouge_2", "rouge_l")
PACKAGES = {"bleu": "sacrebleu", "rouge_1": "rouge_score", "rouge_2": "rouge_score", "rouge_l": "rouge_score"}
ROUGE = {"rouge_1": "rouge1", "rouge_2": "rouge2", "rouge_l": "rougeL"}

WORD = re.compile(r"\w+|[^\w\s]")


def exact_match(answer: str, reference: str) -> float:
    """1 when both are the same but for white space at their ends, else 0."""
    return float(answer.strip() == reference.strip())


def token_f1(answer: str, reference: str) -> float:
    """Harmonic mean of precision and recall over words, case ignored, as in SQuAD (Rajpurkar et al., 2016).

    Words are runs of letters and digits, and single punctuation marks; articles are kept.
    """
    given, wanted = Counter(WORD.findall(answer.lower())), Counter(WORD.findall(reference.lower()))
    if not given or not wanted:
        return float(given == wanted)
    shared = (given & wanted).total()
    return 2 * shared / (given.total() + wanted.total())


def compute(names: Sequence[str], answers: Sequence[str], references: Sequence[str]) -> dict[str, float]:
    """Each metric over all pairs, from 0 to 1 (BLEU too: sacrebleu's corpus score divided by 100)."""
    return {name: _metric(name)(answers, references) for name in names}


def _metric(name: str) -> Callable[[Sequence[str], Sequence[str]], float]:
    if name == "bleu":
        return _bleu
    if name in ROUGE:
        return lambda answers, references: _rouge(ROUGE[name], answers, references)
    each = {"exact_match": exact_match, "token_f1": token_f1}[name]
    return lambda answers, references: sum(map(each, answers, references)) / len(answers)


def _bleu(answers: Sequence[str], references: Sequence[str]) -> float:
    import sacrebleu

    return float(sacrebleu.corpus_bleu(list(answers), [list(references)]).score) / 100


def _rouge(name: str, answers: Sequence[str], references: Sequence[str]) -> float:
    from rouge_score.rouge_scorer import RougeScorer

    scorer: Any = RougeScorer([name])
    scores = [
        scorer.score(reference, answer)[name].fmeasure for answer, reference in zip(answers, references, strict=True)
    ]
    return float(sum(scores) / len(scores))
