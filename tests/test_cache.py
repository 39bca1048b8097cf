"""The cache of prepared data: made once, by one process at a time, whole or not at all."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import talk

pytestmark = pytest.mark.slow
MANY = [talk(f"Say {number}.", f"It is {number}.") for number in range(20_000)]


@pytest.fixture
def own_cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("SFTRUN_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "prepared"


def started(recipe: Path, out: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "sftrun", "prepare", str(recipe), "--out", str(out)]
    return subprocess.Popen(command, stderr=subprocess.PIPE, text=True)


def entries(cache: Path) -> list[str]:
    return sorted(path.name for path in cache.iterdir() if path.is_dir())


def test_two_processes_at_once_make_one_entry(write, tmp_path, own_cache):
    recipe = write(MANY)
    processes = [started(recipe, tmp_path / name) for name in "ab"]
    said = [process.communicate(timeout=120)[1] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], said
    assert sorted("from the cache" in text for text in said) == [False, True]
    assert len(entries(own_cache)) == 1
    first, second = ((tmp_path / name / "prepared/train.arrow").read_bytes() for name in "ab")
    assert first == second


def test_what_a_kill_left_half_made_does_not_count(write, sftrun, tmp_path, own_cache):
    recipe = write(MANY)
    process = started(recipe, tmp_path / "killed")
    while not list(own_cache.glob(".making-*/train.arrow")):
        time.sleep(0.01)
        assert process.poll() is None
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert [name.startswith(".making-") for name in entries(own_cache)] == [True]
    said = sftrun("prepare", recipe, "--out", tmp_path / "again")
    assert said.code == 0
    assert "from the cache" not in said.err
    assert [name.startswith(".making-") for name in entries(own_cache)] == [False]


@pytest.mark.parametrize("harm", ["cut", "gone"])
def test_an_entry_that_is_not_whole_is_made_again(write, sftrun, tmp_path, own_cache, harm):
    recipe = write(MANY[:10])
    sftrun("prepare", recipe, "--out", tmp_path / "a")
    file = own_cache / entries(own_cache)[0] / "train.arrow"
    whole = file.read_bytes()
    file.unlink()  # not changed in place: the run has the same file
    if harm == "cut":
        file.write_bytes(whole[:-5])
    said = sftrun("prepare", recipe, "--out", tmp_path / "b")
    assert "from the cache" not in said.err
    assert (tmp_path / "b/prepared/train.arrow").read_bytes() == whole


CHANGES = {
    "data": {"data": {"on_too_long": "truncate"}},
    "length": {"model": {"max_seq_len": 99}},
    "masker": {"masker": "last-reply"},
    "transform": {"transforms": [{"use": "style", "with": {"prompt": "Be kind."}}]},
    "packing": {"packing": {"strategy": "best-fit"}},
}


@pytest.mark.parametrize("change", CHANGES)
def test_what_decides_the_samples_is_part_of_the_key(write, sftrun, tmp_path, own_cache, change):
    sftrun("prepare", write(MANY[:10]), "--out", tmp_path / "a")
    said = sftrun("prepare", write(MANY[:10], **CHANGES[change]), "--out", tmp_path / "b")
    assert said.code == 0, said.err
    assert "from the cache" not in said.err
    assert len(entries(own_cache)) == 2


def test_a_changed_file_of_a_transform_prepares_again(write, sftrun, tmp_path, own_cache):
    benchmark = tmp_path / "benchmark.txt"
    transform = {"use": "decontaminate", "with": {"files": ["benchmark.txt"], "ngram": 2}}
    recipe = write(MANY[:10], transforms=[transform], data={"max_lost": 1})
    for text, rows in (("Say 3. Then 4.", 9), ("nothing of it", 10)):
        benchmark.write_text(text)
        out = tmp_path / text.split()[0]
        assert sftrun("prepare", recipe, "--out", out).code == 0
        assert json.loads((out / "prepared/stats.json").read_text())["train"]["rows"] == rows


def test_the_mask_hash_does_not_depend_on_the_machine_or_the_batch(write, sftrun, tmp_path, own_cache, monkeypatch):
    recipe = write(MANY[:3000])
    hashes = []
    for number, size in enumerate((1024, 7)):
        monkeypatch.setattr("sftrun.data.pipeline.BATCH", size)
        monkeypatch.setenv("SFTRUN_CACHE", str(tmp_path / f"cache{number}"))
        assert sftrun("prepare", recipe, "--out", tmp_path / str(number)).code == 0
        hashes.append(json.loads((tmp_path / str(number) / "prepared/proof.json").read_text())["hash"])
    assert hashes[0] == hashes[1]
    expected = ["--set", f"expect_mask={hashes[0]}"]
    assert sftrun("prepare", recipe, *expected, "--out", tmp_path / "expected").code == 0


def test_another_mask_than_the_expected_one_is_an_error(write, sftrun, tmp_path):
    recipe = write(MANY[:10], expect_mask="0" * 64)
    said = sftrun("prepare", recipe, "--out", tmp_path / "out")
    assert said.code == 1
    assert "recipe.yaml:" in said.err
    assert "not the expected one: rows, template, tokenizer or masker have changed" in said.err
