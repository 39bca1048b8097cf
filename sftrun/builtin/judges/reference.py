"""Judge `reference`: agreement with the reference answer, the same on every run."""

import sftrun


@sftrun.hookimpl
def register_judges(register: sftrun.Register) -> None:
    register("reference", Reference)


class Reference:
    """Agreement with the reference answer: 1 for the same words in the same order, else at most their token F1."""

    def grade(self, work: sftrun.kinds.Grading) -> sftrun.Grade:
        answer, reference = work.answer, work.prompt.reference
        given, wanted = answer.lower().split(), reference.lower().split()
        if given == wanted:
            return sftrun.Grade(1.0, "the same words")
        measuring = sftrun.kinds.Measuring(answers=[answer], references=[reference])
        (score,) = sftrun.create("metric", "token_f1").measure(measuring)
        if score == 1.0:
            return sftrun.Grade(0.5, "the same words in another order")
        return sftrun.Grade(score, f"token F1 {score:.2f} with the reference")
