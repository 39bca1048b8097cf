"""The judge `keyword`."""

import pytest
from sftrun_example.keyword import KeywordJudge, KeywordOptions

from sftrun import Grade, Prompt, kinds, testing

FINE = "all that is required, nothing that is forbidden"


def grade(answer, **options):
    prompt = Prompt("tickets.jsonl:1", [], [1], "Turn it.")
    return KeywordJudge(KeywordOptions(**options)).grade(kinds.Grading(prompt=prompt, answer=answer))


def problems(**options):
    return [problem.message for problem in KeywordJudge(KeywordOptions(**options)).check_recipe(None)]


@pytest.mark.parametrize("options", [{"required": ("please", "kind regards")}, {"forbidden": ("no",), "penalty": 1}])
def test_it_keeps_what_a_judge_promises(options):
    testing.check_judge(KeywordJudge(KeywordOptions(**options)))


def test_the_score_is_the_share_of_required_keywords():
    options = {"required": ("dear", "please", "kind regards", "wheel")}
    assert grade("Dear Ada, please turn the wheel. Kind Regards", **options) == Grade(1.0, FINE)
    assert grade("Please turn the wheel.", **options) == Grade(0.5, "missing: dear, kind regards")
    assert grade("", **options) == Grade(0.0, "missing: dear, please, kind regards, wheel")


def test_each_forbidden_keyword_costs_the_penalty():
    options = {"forbidden": ("refund", "guarantee"), "penalty": 0.4}
    assert grade("No.", **options) == Grade(1.0, FINE)
    assert grade("We refund it.", **options) == Grade(0.6, "forbidden: refund")
    assert grade("A refund, guarantee!", **{**options, "penalty": 0.9}).score == 0


def test_a_keyword_is_whole_words():
    assert grade("That is refundable.", forbidden=("fund", "refund")).score == 1
    assert grade("(c++)", required=("c++",)).score == 1


def test_options_that_make_no_sense_are_said_by_validate():
    assert problems() == ["the judge keyword has no keywords"]
    assert problems(required=("Dear",), forbidden=("dear",)) == ["the keyword 'dear' is both required and forbidden"]
    assert problems(required=("dear",), forbidden=("refund",)) == []
