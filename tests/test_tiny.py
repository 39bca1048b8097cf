"""The embedded model and the data set that it learns from."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM, AutoTokenizer

import sftrun.tiny

ROOT = Path(__file__).resolve().parent.parent
CHAT = ROOT / "recipes" / "data" / "chat"
SPLITS = ("train", "val", "test")

RAW = Tokenizer.from_file(str(sftrun.tiny.folder() / "tokenizer.json"))
FAST = AutoTokenizer.from_pretrained(sftrun.tiny.folder())


def talks(split: str) -> list[list[dict[str, str]]]:
    lines = (CHAT / f"{split}.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line)["messages"] for line in lines]


def prompts(split: str) -> list[str]:
    return [json.dumps(talk[:-1]) for talk in talks(split)]


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("tiny") / "model"
    sftrun.tiny.save(directory, seed=0)
    return directory


@given(st.text())
def test_any_text_survives_the_tokenizer(text: str) -> None:
    assert RAW.decode(RAW.encode(text).ids, skip_special_tokens=False) == text


@given(st.text())
def test_both_tokenizer_libraries_give_the_same_ids(text: str) -> None:
    assert FAST(text)["input_ids"] == RAW.encode(text).ids


def test_the_saved_tokenizer_gives_the_same_ids(saved: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(saved)
    for talk in talks("test"):
        text = tokenizer.apply_chat_template(talk, tokenize=False)
        assert tokenizer(text)["input_ids"] == RAW.encode(text).ids


def test_a_digit_is_a_token() -> None:
    assert RAW.encode("1977").tokens == list("1977")


def test_special_tokens_are_single_ids() -> None:
    assert RAW.get_vocab_size() == sftrun.tiny.ARCHITECTURE["vocab_size"]
    assert (FAST.pad_token, FAST.pad_token_id) == ("<|endoftext|>", 0)
    assert (FAST.eos_token, FAST.eos_token_id) == ("<|im_end|>", 2)
    assert RAW.encode("<|endoftext|><|im_start|><|im_end|>").ids == [0, 1, 2]


def test_the_template_renders_chatml() -> None:
    talk = [
        {"role": "system", "content": "Be kind."},
        {"role": "user", "content": " Hi "},
        {"role": "assistant", "content": "Hello!"},
        {"role": "user", "content": "Bye"},
    ]
    turns = "<|im_start|>system\nBe kind.<|im_end|>\n<|im_start|>user\n Hi <|im_end|>\n"
    turns += "<|im_start|>assistant\nHello!<|im_end|>\n<|im_start|>user\nBye<|im_end|>\n"
    assert FAST.apply_chat_template(talk, tokenize=False) == turns
    asked = FAST.apply_chat_template(talk, tokenize=False, add_generation_prompt=True)
    assert asked == turns + "<|im_start|>assistant\n"


def test_no_system_prompt_is_added() -> None:
    text = FAST.apply_chat_template([{"role": "user", "content": "Hi"}], tokenize=False)
    assert text == "<|im_start|>user\nHi<|im_end|>\n"


def test_one_seed_makes_one_folder(saved: Path, tmp_path: Path) -> None:
    sftrun.tiny.save(tmp_path, seed=0)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {
        path.name: path.read_bytes() for path in saved.iterdir()
    }


def test_another_seed_makes_other_weights(saved: Path, tmp_path: Path) -> None:
    sftrun.tiny.save(tmp_path, seed=1)
    assert (tmp_path / "model.safetensors").read_bytes() != (saved / "model.safetensors").read_bytes()


def test_saving_leaves_the_random_state_and_the_default_type_out_of_it(saved: Path, tmp_path: Path) -> None:
    torch.manual_seed(123)
    before = torch.random.get_rng_state()
    torch.set_default_dtype(torch.float64)
    try:
        sftrun.tiny.save(tmp_path, seed=0)
    finally:
        torch.set_default_dtype(torch.float32)
    assert torch.equal(before, torch.random.get_rng_state())
    assert (tmp_path / "model.safetensors").read_bytes() == (saved / "model.safetensors").read_bytes()


def test_the_saved_model_loads_whole(saved: Path) -> None:
    model, report = AutoModelForCausalLM.from_pretrained(saved, output_loading_info=True)
    assert not any(report.values()), report
    assert model.dtype == torch.float32
    assert model.num_parameters() < 500_000
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight
    assert model.generation_config.eos_token_id == FAST.eos_token_id
    assert model.generation_config.pad_token_id == FAST.pad_token_id


def test_the_fingerprint_follows_tokenizer_and_architecture(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    first = sftrun.tiny.fingerprint()
    assert first == sftrun.tiny.fingerprint()
    monkeypatch.setitem(sftrun.tiny.ARCHITECTURE, "hidden_size", 256)
    wider = sftrun.tiny.fingerprint()
    for name in sftrun.tiny.TOKENIZER_FILES:
        (tmp_path / name).write_bytes((sftrun.tiny.folder() / name).read_bytes() + b" ")
    monkeypatch.setattr(sftrun.tiny, "folder", lambda: tmp_path)
    assert len({first, wider, sftrun.tiny.fingerprint()}) == 3


def test_nothing_heavy_is_imported_with_the_module() -> None:
    code = "import sys, sftrun.tiny; print([m for m in ('torch', 'transformers', 'tokenizers') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


def make(*arguments: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, str(CHAT / "make.py"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_the_committed_data_is_what_the_script_makes() -> None:
    result = make("--check")
    assert result.returncode == 0, result.stderr


def test_the_committed_tokenizer_is_what_the_script_trains(tmp_path: Path) -> None:
    result = make("--tokenizer", str(tmp_path))
    assert result.returncode == 0, result.stderr
    made: dict[str, Any] = json.loads((tmp_path / "tokenizer.json").read_text(encoding="utf-8"))
    committed = json.loads((sftrun.tiny.folder() / "tokenizer.json").read_text(encoding="utf-8"))
    assert made["model"]["merges"] == committed["model"]["merges"]


def test_no_held_out_prompt_is_trained_on() -> None:
    everything = [prompt for split in SPLITS for prompt in prompts(split)]
    assert len(everything) == len(set(everything)) == 4500


@pytest.mark.parametrize("split", SPLITS)
def test_each_split_has_system_prompts_and_several_turns(split: str) -> None:
    rows = talks(split)
    assert sum(talk[0]["role"] == "system" for talk in rows) > len(rows) // 10
    assert sum(sum(message["role"] == "user" for message in talk) > 1 for talk in rows) > len(rows) // 10
    assert all(talk[-1]["role"] == "assistant" for talk in rows)


@pytest.mark.parametrize("split", SPLITS)
def test_a_row_fits_a_short_context(split: str) -> None:
    assert max(len(RAW.encode(FAST.apply_chat_template(talk, tokenize=False)).ids) for talk in talks(split)) <= 128
