"""Tests of the masker `final-answer`, with masks as text."""

import pytest
from sftrun_example.final_answer import FinalAnswer, FinalAnswerOptions

from sftrun import Conversation, testing


def trained(turns, **options):
    """Returns the trained stretches of a talk with `turns` answers: a0, a1, …"""
    messages = [
        {"role": role, "content": f"{role[0]}{turn}"} for turn in range(turns) for role in ("user", "assistant")
    ]
    text = testing.shown(FinalAnswer(FinalAnswerOptions(**options)), Conversation(messages))
    return [stretch.split("⟧")[0].removesuffix("<|im_end|>") for stretch in text.split("⟦")[1:]]


@pytest.mark.parametrize("options", [{}, {"answers": 3}, {"skip_turns": 1}, {"answers": 99, "skip_turns": 2}])
def test_it_keeps_what_a_masker_promises(options):
    testing.check_masker(FinalAnswer(FinalAnswerOptions(**options)))


def test_the_last_answer_is_trained_with_its_end_of_turn():
    messages = [
        {"role": "user", "content": "No sound."},
        {"role": "assistant", "content": "I look into it."},
        {"role": "user", "content": "And?"},
        {"role": "assistant", "content": "Turn the wheel."},
    ]
    assert testing.shown(FinalAnswer(FinalAnswerOptions()), Conversation(messages)) == (
        "<|im_start|>user\nNo sound.<|im_end|>\n<|im_start|>assistant\nI look into it.<|im_end|>\n"
        "<|im_start|>user\nAnd?<|im_end|>\n<|im_start|>assistant\n⟦Turn the wheel.<|im_end|>⟧\n"
    )


def test_more_answers_are_counted_from_the_end():
    assert trained(4, answers=2) == ["a2", "a3"]
    assert trained(2, answers=5) == ["a0", "a1"]


def test_answers_at_the_start_are_left_out_even_if_there_is_no_other():
    assert trained(3, answers=9, skip_turns=1) == ["a1", "a2"]
    assert trained(3, answers=1, skip_turns=2) == ["a2"]
    assert trained(2, answers=1, skip_turns=2) == []
