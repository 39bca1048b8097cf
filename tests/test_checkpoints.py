"""A checkpoint counts only when it is whole; the newest and the best are kept; full disks lose nothing."""

import json
import os

import pytest

from sftrun import UserError
from sftrun.training import checkpoints


def written(folder, step, loss=None, finished=False):
    made = checkpoints.begin(folder) / f"checkpoint-{step}"
    (made / "inner").mkdir(parents=True)
    (made / "optimizer.pt").write_bytes(b"moments" * step)
    (made / "inner" / "weights").write_bytes(b"weights" * step)
    return checkpoints.seal(made, step=step, loss=loss, finished=finished, progress={"tokens": step})


def steps(folder):
    return [each.step for each in checkpoints.complete_checkpoints(folder)]


def test_what_was_sealed_is_read_back(tmp_path):
    written(tmp_path, 5, 1.5, finished=True)
    (found,) = checkpoints.complete_checkpoints(tmp_path)
    assert (found.step, found.loss, found.finished, found.progress) == (5, 1.5, True, {"tokens": 5})
    assert set(found.files) == {"optimizer.pt", "inner/weights"}
    assert found.broken_file() is None
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-5"]


@pytest.mark.parametrize("lost", ["optimizer.pt", "inner/weights", "whole.json"])
def test_a_checkpoint_that_misses_a_file_does_not_count(tmp_path, lost):
    written(tmp_path, 5)
    (written(tmp_path, 10) / lost).unlink()
    assert steps(tmp_path) == [5]


def test_a_checkpoint_that_is_still_written_does_not_count(tmp_path):
    written(tmp_path, 5)
    made = checkpoints.begin(tmp_path) / "checkpoint-10"
    made.mkdir()
    (made / "optimizer.pt").write_bytes(b"half")
    assert steps(tmp_path) == [5]
    assert checkpoints.latest_intact(tmp_path, print).step == 5
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-5"]


@pytest.mark.parametrize("marker", ["", "{}", "[]", '{"files": {}}', '{"files": {"x": 1}}', '{"files": []}', "{\x00"])
def test_a_marker_that_cannot_be_read_is_none(tmp_path, marker):
    (written(tmp_path, 5) / "whole.json").write_text(marker)
    assert steps(tmp_path) == []


def test_a_byte_that_has_changed_is_found_and_the_one_before_is_taken(tmp_path):
    written(tmp_path, 5)
    file = written(tmp_path, 10) / "optimizer.pt"
    content = bytearray(file.read_bytes())
    content[3] ^= 1
    file.write_bytes(content)
    said = []
    assert checkpoints.latest_intact(tmp_path, said.append).step == 5
    assert "checkpoint-10 is not used: optimizer.pt has changed since it was written" in said[0]["message"]
    assert steps(tmp_path) == [5]


def test_the_newest_are_kept_and_the_best_besides(tmp_path):
    for step, loss in [(5, 3.0), (10, 1.0), (15, None), (20, 2.0), (25, 1.0)]:
        written(tmp_path, step, loss)
        checkpoints.prune(tmp_path, 2)
    assert steps(tmp_path) == [10, 20, 25]
    assert checkpoints.best(tmp_path).step == 10


def test_without_a_limit_all_are_kept(tmp_path):
    for step in range(1, 6):
        written(tmp_path, step)
        checkpoints.prune(tmp_path, None)
    assert steps(tmp_path) == [1, 2, 3, 4, 5]


@pytest.mark.parametrize("at", range(14))
def test_a_kill_at_any_write_leaves_the_checkpoint_before_it(tmp_path, monkeypatch, at):
    """Every call that changes the disk while the second checkpoint is made, in turn, is the last one."""

    class Killed(BaseException):
        pass

    written(tmp_path, 5)
    left = [at]

    def counted(call):
        def dying(*args, **kwargs):
            left[0] -= 1
            if left[0] < 0:
                raise Killed
            return call(*args, **kwargs)

        return dying

    with monkeypatch.context() as patched:
        for name in ("fsync", "rename", "replace", "rmdir", "unlink", "mkdir"):
            patched.setattr(os, name, counted(getattr(os, name)))
        try:
            written(tmp_path, 10)
            checkpoints.prune(tmp_path, 1)
        except Killed:
            pass
    assert steps(tmp_path) in ([5], [10], [5, 10])
    assert checkpoints.latest_intact(tmp_path, print).broken_file() is None
    written(tmp_path, 15)  # and the next one finds its place
    assert steps(tmp_path)[-1] == 15


@pytest.mark.parametrize(
    "error",
    [
        OSError(28, "No space left on device"),
        OSError(122, "Disk quota exceeded"),
        RuntimeError("[enforce fail at inline_container.cc:664] . PytorchStreamWriter failed writing file data/1"),
        ValueError("Error while serializing: I/O error: No space left on device (os error 28)"),
    ],
)
def test_a_full_disk_is_said_with_the_last_whole_checkpoint(tmp_path, error):
    written(tmp_path, 5)
    (checkpoints.begin(tmp_path) / "half").write_bytes(b"x")
    told = pytest.raises(UserError, match=r"step 10 could not be written: .*checkpoint-5; make room")
    with told, checkpoints.disk_errors("the checkpoint of step 10", tmp_path):
        raise error
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-5"]


def test_another_error_stays_what_it_is(tmp_path):
    with pytest.raises(KeyError), checkpoints.disk_errors("it", tmp_path):
        raise KeyError("a bug")


def test_the_marker_is_json_that_others_can_read(tmp_path):
    import hashlib

    folder = written(tmp_path, 5)
    marker = json.loads((folder / "whole.json").read_text())
    size, digest = marker["files"]["optimizer.pt"]
    assert size == 35
    assert digest == hashlib.sha256((folder / "optimizer.pt").read_bytes()).hexdigest()
