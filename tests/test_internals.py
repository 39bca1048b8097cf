"""Private names of the libraries that training relies on: a release without one stops the run, with its name."""

import pytest

import sftrun


def test_a_trainer_without_a_private_name_that_a_resume_needs_is_refused():
    from sftrun.training.keeper import check_internals

    class Renamed:
        _tr_loss = 0.0
        _created_lr_scheduler = True

    with pytest.raises(sftrun.UserError, match="has no _globalstep_last_logged, which sftrun needs"):
        check_internals(Renamed())
