"""Outputs of two models are compared on prepared rows, with little memory; a difference that is NaN is refused."""

import math

import pytest
import torch

from sftrun import UserError
from sftrun.training import model as public
from sftrun.training.model import merge

ROWS = [[1, 2, 3], list(range(100))]


class Shifted(torch.nn.Module):
    """A model whose logits are those of another one, moved at one token of the vocabulary."""

    device = torch.device("cpu")

    def __init__(self, shift=0.0):
        super().__init__()
        self.shift = shift

    def forward(self, input_ids, use_cache):
        logits = torch.nn.functional.one_hot(input_ids, 128).float()
        logits[..., 0] += self.shift
        return type("Made", (), {"logits": logits})


def compared(shift):
    return merge.compare_log_probabilities(merge.outputs(Shifted(), ROWS), merge.outputs(Shifted(shift), ROWS))


def test_equal_models_have_no_difference():
    assert compared(0.0) == {"rows": 2, "max_difference": 0.0, "same_argmax": 1.0, "same_argmax_rows": 2}


def test_a_difference_is_measured_and_refused_with_the_hint():
    facts = compared(5.0)
    assert 1 < facts["max_difference"] < 5
    assert (facts["same_argmax"], facts["same_argmax_rows"]) == (round(1 / 103, 4), 0)
    merge.check_difference(facts, 5.0, "serve it")
    with pytest.raises(UserError, match=r"more than 0\.1; it was not written; serve it"):
        merge.check_difference(facts, 0.1, "serve it")


@pytest.mark.parametrize("rows", [ROWS, ROWS[::-1]])
def test_a_difference_that_is_nan_is_refused_wherever_it_stands(rows):
    broken = [merge.Outputs(each.argmax, each.log_probabilities * math.nan) for each in merge.outputs(Shifted(), rows)]
    whole = list(merge.outputs(Shifted(), rows))
    facts = merge.compare_log_probabilities(whole, [broken[0], whole[1]])
    assert math.isnan(facts["max_difference"])
    with pytest.raises(UserError, match="differs from the adapter by nan"):
        merge.check_difference(facts, 1e9, "serve it")


def test_log_probabilities_are_kept_of_a_few_positions_from_the_first_to_the_last():
    short, long = merge.outputs(Shifted(), ROWS)
    assert [short.log_probabilities.shape[0], long.log_probabilities.shape[0]] == [3, merge.POSITIONS]
    assert long.log_probabilities.argmax(-1)[[0, -1]].tolist() == [0, 99]
    assert len(long.argmax) == 100


def test_what_is_public_is_there():
    assert all(callable(getattr(public, name)) for name in public.__all__)
    with pytest.raises(AttributeError, match="has no attribute 'unmerge'"):
        public.unmerge  # noqa: B018
