"""Promises of a judge."""

import copy

from sftrun import kinds
from sftrun.testing import examples
from sftrun.testing.examples import is_text
from sftrun.types import Grade


def check_judge(judge: kinds.Judge) -> None:
    """Raises AssertionError unless each answer has a grade from 0 to 1 with a reason, the same each time.

    The prompt must stay as it is.
    """
    prompt = examples.prompts("test")[0]
    before = copy.deepcopy(prompt)
    for answer in (prompt.reference, prompt.reference.upper(), "no", *examples.ODD_ANSWERS):
        what = f"for the answer {answer[:20]!r}"
        work = kinds.Grading(prompt=prompt, answer=answer, seed=1)
        grade = judge.grade(work)
        assert isinstance(grade, Grade), f"grade() must return a Grade, not {type(grade).__name__}, {what}"
        assert 0 <= grade.score <= 1, f"the score must be from 0 to 1, not {grade.score}, {what}"
        assert is_text(grade.reason), f"there must be a reason {what}"
        assert judge.grade(work) == grade, f"not the same grade a second time {what}"
        assert prompt == before, f"the prompt was changed in place {what}"
