"""The cache gives back what was put into it, byte for byte, or makes it again; and it can be shared."""

import importlib
import json
import os
import traceback
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import talk

import sftrun as package
from sftrun import events, files
from sftrun.data import store

ROWS = [talk(f"Say {number}.", f"It is {number}.") for number in range(20)]
NOBODY = 65534


@pytest.fixture
def own_cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("SFTRUN_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def flip(file: Path) -> None:
    """Changes one byte of a file in place."""
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)


def entry(cache: Path) -> Path:
    (found,) = (path for path in (cache / "prepared").iterdir() if path.is_dir())
    return found


def test_what_happens_to_the_files_of_a_run_does_not_reach_the_cache(write, sftrun, tmp_path, own_cache):
    recipe = write(ROWS)
    sftrun("prepare", recipe, "--out", tmp_path / "a")
    original = (tmp_path / "a/prepared/train.arrow").read_bytes()
    flip(tmp_path / "a/prepared/train.arrow")
    said = sftrun("prepare", recipe, "--out", tmp_path / "b")
    assert "from the cache" in said.err
    assert (tmp_path / "b/prepared/train.arrow").read_bytes() == original


@pytest.mark.parametrize("name", ["train.arrow", "proof.json", store.DONE])
def test_a_changed_byte_in_the_cache_is_seen_and_the_data_are_prepared_again(write, sftrun, tmp_path, own_cache, name):
    recipe = write(ROWS)
    sftrun("prepare", recipe, "--out", tmp_path / "a")
    flip(entry(own_cache) / name)
    said = sftrun("prepare", recipe, "--out", tmp_path / "b")
    assert said.code == 0
    assert "from the cache" not in said.err
    assert (f"{name} in the cache has changed" in said.err) == (name != store.DONE)
    for file in ("train.arrow", "proof.json"):
        assert (tmp_path / "a/prepared" / file).read_bytes() == (tmp_path / "b/prepared" / file).read_bytes()


def test_a_cache_that_was_copied_is_hashed_once_and_used(write, sftrun, tmp_path, own_cache, monkeypatch):
    recipe = write(ROWS)
    sftrun("prepare", recipe, "--out", tmp_path / "a")
    file = entry(own_cache) / "train.arrow"
    copy = file.with_name("copy")
    files.copy_file(file, copy)
    copy.replace(file)  # the same bytes in another inode
    assert "from the cache" in sftrun("prepare", recipe, "--out", tmp_path / "b").err
    listed = json.loads((entry(own_cache) / store.DONE).read_text())
    assert listed["train.arrow"]["signature"] == list(files.read_signature(file))


def test_rows_that_are_rewritten_while_they_are_read_are_an_error_and_not_cached(write, tmp_path, own_cache):
    recipe = write(ROWS)

    def rewrite(event):
        if isinstance(event, events.Prepare) and event.cached is False:
            write(list(reversed(ROWS)))

    with pytest.raises(package.UserError, match="files of the source changed while they were read"):
        package.prepare(recipe, out=tmp_path / "a", watch=rewrite)
    assert not [path for path in (own_cache / "prepared").iterdir() if path.is_dir()]


def test_raising_the_budget_of_lost_rows_does_not_prepare_again(write, sftrun, tmp_path, own_cache):
    long = talk("Count.", " ".join(map(str, range(500))))
    recipe = write([*ROWS[:3], long])
    said = sftrun("prepare", recipe, "--out", tmp_path / "a")
    assert said.code == 1
    assert "1 of 4 rows are lost" in said.err
    assert "train.jsonl:4" in said.err
    said = sftrun("prepare", recipe, "--set", "data.max_lost=0.5", "--out", tmp_path / "b")
    assert said.code == 0
    assert "from the cache" in said.err
    assert sftrun("prepare", recipe, "--out", tmp_path / "c").code == 1


@pytest.mark.slow
def test_the_embedded_model_is_made_again_if_a_byte_of_it_has_changed(own_cache):
    from sftrun.training import base_model

    recipe = package.load(Path(__file__).parent.parent / "recipes/chat.yaml")
    weights = Path(base_model.location(recipe)) / "model.safetensors"
    original = weights.read_bytes()
    assert weights.parent.stat().st_mode & 0o777 == 0o777 & ~current_umask()
    flip(weights)
    assert Path(base_model.location(recipe)) == weights.parent
    assert weights.read_bytes() == original


def current_umask() -> int:
    umask = os.umask(0)
    os.umask(umask)
    return umask


def test_what_a_killed_preparation_has_left_is_listed_and_cleared(sftrun, own_cache):
    left = own_cache / f"prepared/{store.MAKING}{'0' * 64}.abcd"
    left.mkdir(parents=True)
    (left / "train.arrow").write_bytes(b"1" * 5000)
    listed = [line.split() for line in sftrun("cache").err.splitlines()]
    assert ["left", "behind", "1"] in [words[:3] for words in listed]
    with store.entry_lock("0" * 64, lambda: None):
        assert "0 removed" in sftrun("cache", "--clear").err
    assert "1 removed" in sftrun("cache", "--clear").err
    assert not list((own_cache / "prepared").iterdir())


def test_a_cache_that_is_a_file_is_one_message(write, sftrun, tmp_path, monkeypatch):
    (tmp_path / "cache").write_text("")
    monkeypatch.setenv("SFTRUN_CACHE", str(tmp_path / "cache/below"))
    assert f"below {tmp_path / 'cache'}, a file; set SFTRUN_CACHE" in sftrun("cache").err
    monkeypatch.setenv("SFTRUN_CACHE", str(tmp_path / "cache"))
    for words in (("prepare", write(ROWS), "--out", tmp_path / "a"), ("cache",), ("cache", "--clear")):
        said = sftrun(*words)
        assert said.code == 1
        assert said.err.count("\n") <= 2
        assert f"SFTRUN_CACHE is {tmp_path / 'cache'}, a file; set SFTRUN_CACHE to a folder" in said.err


def as_user(user: int, call: Callable[[], object]) -> None:
    """Calls a function as another user, who has no home, in a process that has imported all modules already."""
    child = os.fork()
    if child:
        assert os.waitpid(child, 0)[1] == 0
        return
    try:
        os.environ.pop("HOME", None)
        os.setgroups([])
        os.setgid(user)
        os.setuid(user)
        call()
    except BaseException:
        traceback.print_exc()
        os._exit(1)
    os._exit(0)


@pytest.mark.skipif(os.geteuid() != 0, reason="needs another user")
def test_a_user_without_a_home_is_told_to_name_a_cache(monkeypatch):
    monkeypatch.delenv("SFTRUN_CACHE")

    def ask():
        with pytest.raises(package.UserError, match="has no home folder for the cache; set SFTRUN_CACHE"):
            files.cache_folder()

    as_user(4_242, ask)


@pytest.mark.skipif(os.geteuid() != 0, reason="needs another user")
@pytest.mark.parametrize("writable", [True, False])
def test_another_user_takes_prepared_data_from_a_shared_cache(write, sftrun, tmp_path, own_cache, writable):
    for folder in (tmp_path, *list(tmp_path.parents)[:-2]):
        folder.chmod(0o755)
    recipe = write(ROWS)
    assert sftrun("prepare", recipe, "--out", tmp_path / "a").code == 0
    if writable:
        for folder in (own_cache, own_cache / "prepared"):
            folder.chmod(0o777)
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs").chmod(0o777)
    cached = []

    def prepare():
        package.prepare(recipe, out=tmp_path / "theirs/run", watch=cached.append)
        assert [event.cached for event in cached if isinstance(event, events.Prepare)] == [True]

    as_user(NOBODY, prepare)
    assert (tmp_path / "theirs/run/prepared/train.arrow").is_file()


def test_the_code_of_a_plugin_is_its_whole_package_and_nothing_else(tmp_path, monkeypatch):
    from sftrun.registry import Registered, source_files

    for name in (
        "inner_package/__init__.py",
        "inner_package/deep/__init__.py",
        "inner_package/deep/rules.py",
        "other.py",
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("")
    monkeypatch.syspath_prepend(tmp_path)
    found = {}
    for module in ("inner_package.deep", "other"):
        importlib.import_module(module)
        item = Registered("masker", "x", "", None, "", module, "not-installed", "1")
        found[module] = {str(file.relative_to(tmp_path)) for file in source_files(item)}
    assert found["inner_package.deep"] == {
        f"inner_package/{name}" for name in ("__init__.py", "deep/__init__.py", "deep/rules.py")
    }
    assert found["other"] == {"other.py"}
