"""Judge `reference`: agreement with the reference answer, the same on every run."""

import sftrun
from sftrun.builtin.evaluators._overlap import token_f1


@sftrun.hookimpl
def register_judges(register: sftrun.Register) -> None:
    register("reference", Reference)


class Reference:
    """Agreement with the reference answer: 1 for the same words in the same order, else at most their token F1."""

    def grade(self, prompt: sftrun.Prompt, answer: str) -> sftrun.Grade:
        given, wanted = answer.lower().split(), prompt.reference.lower().split()
        if given == wanted:
            return sftrun.Grade(1.0, "the same words")
        score = token_f1(answer, prompt.reference)
        if score == 1.0:
            return sftrun.Grade(0.5, "the same words in another order")
        return sftrun.Grade(score, f"token F1 {score:.2f} with the reference")
