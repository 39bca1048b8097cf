"""A row that is longer than the model has positions for is an error that names the limit."""

import json

import pytest
from conftest import talk

import sftrun
from sftrun import tiny
from sftrun.training.positions import position_limit

LONG = [talk("Say x.", "x " * 80), talk("Hi", "Hello")]


@pytest.fixture
def base(tmp_path):
    """Writes a model folder without weights, with any keys in its config."""

    def made(**config):
        folder = tmp_path / "base"
        folder.mkdir(exist_ok=True)
        for name in tiny.TOKENIZER_FILES:
            (folder / name).write_bytes((tiny.folder() / name).read_bytes())
        (folder / "config.json").write_text(json.dumps({"model_type": "llama", **config}))
        return {"name": str(folder), "max_seq_len": 4096}

    return made


def test_a_row_longer_than_the_positions_is_refused_before_training(write, sftrun, base, tmp_path):
    recipe = write(LONG, model=base(max_position_embeddings=64), tuning={"mode": "full"})
    said = sftrun(recipe, "--out", tmp_path / "run")
    assert said.code == 1
    assert "the longest row of train has" in said.out + said.err
    assert "has 64 positions" in said.out + said.err
    assert "set max_seq_len to 64 at most" in said.out + said.err


def test_short_rows_pass_whatever_max_seq_len_allows(write, base, tmp_path):
    recipe = write(LONG[1:], model=base(max_position_embeddings=64), tuning={"mode": "full"})
    sftrun.prepare(recipe, out=tmp_path / "run")


@pytest.mark.parametrize(
    ("config", "limit"),
    [
        ({"max_position_embeddings": 64}, 64),
        ({"n_positions": 64}, 64),
        ({"text_config": {"max_position_embeddings": 64}}, 64),
        ({"max_position_embeddings": 64, "rope_scaling": {"type": "linear", "factor": 4.0}}, 256),
        (
            {
                "max_position_embeddings": 64,
                "rope_scaling": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64},
            },
            256,
        ),
        # the positions of Llama 3.1 and Phi 3 already include the scaling
        (
            {
                "max_position_embeddings": 64,
                "rope_parameters": {"rope_type": "llama3", "factor": 8.0, "original_max_position_embeddings": 16},
            },
            64,
        ),
        (
            {
                "max_position_embeddings": 256,
                "rope_scaling": {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64},
            },
            256,
        ),
        ({"max_position_embeddings": 64, "rope_parameters": {"rope_type": "default", "rope_theta": 1e4}}, 64),
        ({"model_type": "bloom"}, None),
    ],
)
def test_the_limit_includes_rope_scaling(config, limit):
    assert position_limit(config) == limit
