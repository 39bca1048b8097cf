"""Packing: the algorithm, the file that it is kept in, and what the backend makes of it."""

import json
import pickle
import shutil
from collections import Counter

import numpy as np
import pytest
from conftest import talk
from hypothesis import given, settings
from hypothesis import strategies as st

from sftrun.data import read_packs
from sftrun.data.pack import best_fit, write_packs
from sftrun.kinds import Training

ROWS = [talk("Count!", " ".join(map(str, range(1 + number % 9)))) for number in range(40)]


def naive(lengths, capacity):
    """Best-fit decreasing as the textbook has it: the free spaces of its bins."""
    spaces = []
    for length in sorted(lengths, reverse=True):
        fitting = [(space, number) for number, space in enumerate(spaces) if space >= length]
        if fitting:
            spaces[min(fitting)[1]] -= length
        else:
            spaces.append(capacity - length)
    return spaces


def spaces(packs, lengths, capacity):
    return [capacity - sum(lengths[row] for row in packs.rows(pack)) for pack in range(len(packs))]


@st.composite
def problems(draw):
    capacity = draw(st.integers(1, 60))
    return draw(st.lists(st.integers(1, capacity), max_size=80)), capacity


@given(problems())
@settings(max_examples=300, deadline=None)
def test_packs_have_the_spaces_of_exact_best_fit_decreasing(problem):
    lengths, capacity = problem
    packs = best_fit(np.array(lengths, np.int32), capacity)
    assert Counter(spaces(packs, lengths, capacity)) == Counter(naive(lengths, capacity))


@given(problems())
@settings(deadline=None)
def test_each_sample_is_in_one_pack_and_no_pack_is_too_long(problem):
    lengths, capacity = problem
    packs = best_fit(np.array(lengths, np.int32), capacity)
    assert sorted(packs.order.tolist()) == list(range(len(lengths)))
    assert all(0 <= space < capacity for space in spaces(packs, lengths, capacity))


def test_samples_of_one_length_keep_their_order():
    packs = best_fit(np.array([4, 7, 4, 4, 3]), 12)
    assert [packs.rows(pack).tolist() for pack in range(len(packs))] == [[1, 0], [2, 3, 4]]


def test_a_whole_set_of_short_rows_fills_its_packs():
    lengths = np.clip(np.random.default_rng(0).lognormal(4.3, 0.7, 50_000), 10, 700).astype(np.int32)
    packs = best_fit(lengths, 2048)
    assert lengths.sum() / (len(packs) * 2048) > 0.998


@pytest.mark.parametrize("lengths", [[3, 9], [0, 3]])
def test_a_sample_that_cannot_be_packed_is_an_error(lengths):
    with pytest.raises(ValueError, match="do not fit into 1 to 8"):
        best_fit(np.array(lengths), 8)


def test_packs_are_read_back_as_they_were_written_without_being_loaded(tmp_path):
    packs = best_fit(np.arange(1, 1000), 1000)
    write_packs(tmp_path / "packs.arrow", packs)
    again = read_packs(tmp_path / "packs.arrow")
    assert np.array_equal(again.order, packs.order)
    assert np.array_equal(again.starts, packs.starts)
    assert not again.order.flags.owndata
    write_packs(tmp_path / "none.arrow", best_fit(np.array([], np.int32), 10))
    assert len(read_packs(tmp_path / "none.arrow")) == 0


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    folder = tmp_path_factory.mktemp("packing")
    for split, rows in {"train": ROWS, "val": ROWS[:5]}.items():
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    keys = {
        "model": {"name": "sftrun/tiny", "max_seq_len": 64},
        "source": {"use": "jsonl", "with": {"path": "."}},
        "packing": {"strategy": "best-fit"},
        "tuning": {"mode": "full"},
        "train": {"epochs": 1, "learning_rate": 5e-3, "batch_size": 2, "logging_steps": 1, "save_strategy": "no"},
    }
    (folder / "recipe.yaml").write_text(json.dumps(keys))
    return folder / "recipe.yaml"


@pytest.fixture(scope="module")
def prepared(recipe):
    from sftrun.flow import prepare

    return prepare(recipe, [], recipe.parent / "prepared")


def test_packs_hold_the_prepared_rows_end_to_end(prepared):
    from sftrun.training.rows import PackedRows, Rows

    rows = Rows(prepared.prepared / "train.arrow")
    packs = PackedRows(prepared.prepared / "train.arrow", prepared.prepared / "train.packs.arrow")
    assert len(packs) < len(rows) / 2
    for pack, item in enumerate(packs):
        parts = [rows[row] for row in packs.packs.rows(pack)]
        assert item["seq_lengths"] == [len(part["input_ids"]) for part in parts]
        for name in ("input_ids", "labels"):
            assert item[name].tolist() == [value for part in parts for value in part[name]]


def test_rows_are_those_that_were_prepared_in_every_process_that_loads_them(prepared):
    from sftrun.data import Samples
    from sftrun.training.rows import Rows

    file = prepared.prepared / "train.arrow"
    rows = pickle.loads(pickle.dumps(Rows(file)))
    read = [(row["input_ids"].tolist(), (row["labels"] != -100).tolist()) for row in rows]
    assert read == [(sample.ids, sample.trained) for sample in Samples(file)]
    assert rows.lengths.tolist() == [len(sample.ids) for sample in Samples(file)]


def test_packs_of_other_rows_are_an_error(prepared):
    from sftrun.training.rows import PackedRows

    with pytest.raises(RuntimeError, match="packs 40 samples, but"):
        PackedRows(prepared.prepared / "val.arrow", prepared.prepared / "train.packs.arrow")


def test_a_batch_of_packs_is_one_row_whose_positions_start_again():
    from sftrun.training.batches import flatten_packs

    packs = [
        {"input_ids": np.array([1, 2, 3]), "labels": np.array([1, -100, 3]), "seq_lengths": [2, 1]},
        {"input_ids": np.array([4, 5, 6]), "labels": np.array([4, 5, 6]), "seq_lengths": [3]},
    ]
    assert {name: value.tolist() for name, value in flatten_packs(packs).items()} == {
        "input_ids": [[1, 2, 3, 4, 5, 6]],
        "labels": [[-100, -100, -100, -100, 5, 6]],
        "position_ids": [[0, 1, 0, 0, 1, 2]],
    }


@pytest.mark.slow
@pytest.mark.older
def test_rows_share_sequences_when_the_recipe_says_so(recipe, prepared):
    """A step is of packs, every token is counted, and the model that is saved knows nothing of packing."""
    import sftrun

    run = sftrun.run(recipe, out=recipe.parent / "run")
    steps = [event for event in run.events() if event["event"] == "step"]
    packs = len(read_packs(prepared.prepared / "train.packs.arrow"))
    tokens = run.read_json("prepared/stats.json")["train"]
    assert len(steps) == steps[-1]["steps"] == -(-packs // 2)
    assert steps[-1]["tokens"] == tokens["tokens"]
    assert steps[-1]["trained_tokens"] == tokens["trained_tokens"]
    assert steps[-1]["loss"] < steps[0]["loss"]
    assert "sftrun-packed" not in (run.model / "config.json").read_text()
    apart = sftrun.run(recipe, ["packing.strategy=none"], out=recipe.parent / "apart")
    assert not (apart.prepared / "train.packs.arrow").exists()
    assert [event["steps"] for event in apart.events() if event["event"] == "step"][-1] == 20


def padding(lengths, batch, sampler):
    rows = list(sampler)
    assert sorted(rows) == list(range(len(lengths)))
    batches = [lengths[rows[start : start + batch]] for start in range(0, len(rows), batch)]
    return 1 - lengths.sum() / sum(each.max() * len(each) for each in batches)


def test_rows_of_a_batch_are_of_similar_lengths_and_the_seed_decides_which():
    from sftrun.training.batches import LengthGroupedSampler

    random = np.random.default_rng(0)
    lengths = random.integers(10, 500, 1003)
    sampler = LengthGroupedSampler(lengths, 8, seed=0)
    assert padding(lengths, 8, sampler) < padding(lengths, 8, random.permutation(1003)) / 4
    first = list(sampler)
    sampler.set_epoch(1)
    assert (
        list(sampler)
        != first
        == list(LengthGroupedSampler(lengths, 8, seed=0))
        != list(LengthGroupedSampler(lengths, 8, seed=1))
    )
    assert len(list(LengthGroupedSampler(lengths[:3], 8, seed=0))) == 3


def trained(recipe, name, **changes):
    """Events of a training in this process."""
    import sftrun
    from sftrun.flow import prepare
    from sftrun.training import train

    sets = [
        "train.eval_strategy=no",
        *(f"{key.replace('__', '.')}={json.dumps(value)}" for key, value in changes.items()),
    ]
    events, run = [], prepare(recipe, sets, recipe.parent / name)
    train.train(Training(recipe=sftrun.load(recipe, sets), run=run, emit=events.append))
    return [event for event in events if event["event"] in ("step", "warning")]


@pytest.mark.older
@pytest.mark.parametrize("strategy", ["none", "best-fit"])
def test_each_epoch_has_batches_of_its_own(recipe, strategy):
    """With steps too small to change the model, an epoch is known by the order of its losses."""
    losses = [
        event["loss"]
        for event in trained(
            recipe, f"epochs-{strategy}", packing__strategy=strategy, train__learning_rate=1e-30, train__epochs=3
        )
    ]
    size = len(losses) // 3
    epochs = [losses[start : start + size] for start in range(0, len(losses), size)]
    assert len({tuple(epoch) for epoch in epochs}) == 3


@pytest.mark.older
def test_an_adapter_is_trained_on_packs_too(recipe):
    steps = trained(recipe, "lora", tuning__mode="lora", train__learning_rate=1e-2, train__gradient_checkpointing=True)
    assert steps[-1]["loss"] < steps[0]["loss"]


@pytest.mark.older
def test_a_model_that_cannot_keep_rows_apart_is_refused_before_training(recipe):
    from transformers import BloomConfig, BloomForCausalLM

    import sftrun
    from sftrun import tiny

    folder = recipe.parent / "bloom"
    shutil.copytree(tiny.folder(), folder, ignore=shutil.ignore_patterns("*.py", "__pycache__"))
    BloomForCausalLM(BloomConfig(vocab_size=768, hidden_size=32, n_layer=2, n_head=4)).save_pretrained(folder)
    with pytest.raises(sftrun.UserError, match="cannot be trained on packed rows: a sequence sees its neighbour"):
        trained(recipe, "refused", model__name=str(folder))
    assert trained(recipe, "apart-bloom", model__name=str(folder), packing__strategy="none", train__max_steps=1)


@pytest.mark.older
def test_a_recipe_that_groups_by_length_trains_on_other_batches(recipe):
    losses = [
        [
            event["loss"]
            for event in trained(recipe, f"group-{way}", packing__strategy="none", train__group_by_length=way)
        ]
        for way in (True, False)
    ]
    assert losses[0] != losses[1]
