"""Metric `exact_match`: the share of answers that equal their reference."""

import sftrun


@sftrun.hookimpl
def register_metrics(register: sftrun.Register) -> None:
    register("exact_match", ExactMatch)


class ExactMatch:
    """Share of answers that equal their reference, ignoring white space at both ends."""

    def measure(self, work: sftrun.kinds.Measuring) -> list[float]:
        pairs = zip(work.answers, work.references, strict=True)
        return [float(answer.strip() == reference.strip()) for answer, reference in pairs]
