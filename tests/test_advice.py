"""Warnings during training, and the history of a resumed run, which has each step once."""

from sftrun.events import decode, encode
from sftrun.recipe.model import typed_recipe
from sftrun.runs import history
from sftrun.runs.advice import Watch


def recipe(**train):
    return typed_recipe({"model": {"name": "sftrun/tiny"}, "source": "jsonl", "train": train})


def step(number, loss, of=200, **more):
    return {"event": "step", "step": number, "steps": of, "loss": loss, "learning_rate": 1e-4, **more}


def said(events, before=(), **train):
    """Returns the warnings of a training, each with the event before it."""
    seen = []
    watch = Watch(recipe(**train), list(before), lambda event: seen.append(encode(event)))
    for event in events:
        watch(decode(event)[0])
    assert [event for event in seen if event["event"] != "warning"] == list(events)
    return [(seen[at - 1], event["message"]) for at, event in enumerate(seen) if event["event"] == "warning"]


def overfitting():
    for number in range(10, 210, 10):
        yield step(number, 5 / number)
        if number % 50 == 0:
            yield {"event": "eval", "step": number, "loss": {50: 2.0, 100: 1.0, 150: 1.5, 200: 2.5}[number]}


def test_overfitting_is_reported_once_at_the_evaluation_that_shows_it():
    ((event, message),) = said(list(overfitting()))
    assert event == {"event": "eval", "step": 150, "loss": 1.5}
    assert message.startswith("Overfitting: the validation loss was lowest at step 100 (1) and rose to 1.5")
    assert "train.early_stopping, or fewer train.epochs; train.keep_best: true keeps the best" in message


def test_the_advice_knows_what_the_recipe_does_already():
    ((_, message),) = said(list(overfitting()), early_stopping={"patience": 9})
    assert "lower its patience; the model has the lowest loss" in message


def test_a_flat_loss_is_reported_half_way():
    ((event, message),) = said([step(number, 6.2) for number in range(10, 210, 10)])
    assert event["step"] == 100
    assert "flat and high" in message
    assert "Raise train.learning_rate" in message


def test_a_falling_loss_gives_no_warning():
    assert said([step(number, 6 / number) for number in range(10, 210, 10)]) == []


def test_after_a_resume_repeated_steps_do_not_count():
    before = [event for event in overfitting() if event["step"] <= 150]
    resumed = {"event": "resumed", "step": 100}
    events = [resumed, step(110, 0.04), {"event": "eval", "step": 150, "loss": 0.9}]
    assert said(events, before) == []


def test_repeated_steps_count_once():
    counts = {"tokens": 100, "trained_tokens": 50, "tokens_per_s": 10.0}
    first = [step(number, 1.0, **{**counts, "tokens": 10 * number}) for number in (10, 20, 30)]
    first += [{"event": "eval", "step": 25, "loss": 1.0}, {"event": "eval", "step": 30, "loss": 1.0}]
    again = [{"event": "resumed", "step": 25}, step(30, 2.0, **{**counts, "tokens": 300})]
    past = history.build_history(first + again)
    assert past.loss == [(10, 1.0), (20, 1.0), (30, 2.0)]
    assert past.validation == [(25, 1.0)]
    assert history.measure_speed(first + again).tokens == 300


def test_a_resume_from_the_start_forgets_all_points():
    past = history.build_history([step(10, 1.0), step(20, 1.0), {"event": "resumed", "step": 0}, step(10, 3.0)])
    assert past.loss == [(10, 3.0)]
