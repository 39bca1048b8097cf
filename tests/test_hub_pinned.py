"""A model of the Hub whose branch moves during a run: its commit is asked for once, and kept."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from conftest import talk

from sftrun import tiny
from sftrun.runs.directory import RunDir

ROWS = [talk(f"What comes after {number}?", str(number + 1)) for number in range(8)]
TRAIN = {"max_steps": 1, "logging_steps": 1, "eval_strategy": "no", "save_strategy": "no"}
OLD, NEW = "a" * 40, "b" * 40


class Hub:
    """A Hub with one model, `me/model`. Its branch `main` moves from OLD to NEW after it was asked for once."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.asked: list[str] = []
        for seed, commit in enumerate((OLD, NEW)):
            (root / commit).mkdir(parents=True)
            tiny.save(root / commit, seed)
        hub = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                hub.answer(self)

            do_HEAD = do_GET  # noqa: N815 (the name that http.server calls)

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server.server_port}"

    @property
    def asked_for_main(self) -> int:
        return sum(path.endswith("/main") or path == "/api/models/me/model" for path in self.asked)

    def answer(self, request: BaseHTTPRequestHandler) -> None:
        path = request.path.partition("?")[0]
        self.asked.append(path)
        parts = path.strip("/").split("/")
        headers = {}
        if parts[:4] == ["api", "models", "me", "model"]:
            body = json.dumps(self.describe(parts[4:])).encode()
        else:
            commit = parts[3] if len(parts) > 3 and parts[3] in (OLD, NEW) else NEW
            file = self.root / commit / "/".join(parts[4:])
            body = file.read_bytes() if file.is_file() else None
            headers = {"X-Repo-Commit": commit, **({} if body is not None else {"X-Error-Code": "EntryNotFound"})}
        request.send_response(404 if body is None else 200)
        body = body or b""
        headers |= {"ETag": f'"{hashlib.sha256(body).hexdigest()}"', "Content-Length": str(len(body))}
        for name, value in headers.items():
            request.send_header(name, value)
        request.end_headers()
        if request.command == "GET":
            request.wfile.write(body)

    def describe(self, rest: list[str]) -> object:
        """Returns what the Hub says of a model, or of the files of a commit."""
        commit = rest[1] if rest and rest[-1] in (OLD, NEW) else OLD if self.asked_for_main == 1 else NEW
        files = sorted((self.root / commit).iterdir())
        if rest[:1] == ["tree"]:
            about = {"type": "file", "oid": "0" * 40}
            return [{**about, "path": file.name, "size": file.stat().st_size} for file in files]
        return {"id": "me/model", "sha": commit, "siblings": [{"rfilename": file.name} for file in files]}


@pytest.fixture
def hub(tmp_path):
    made = Hub(tmp_path / "hub")
    yield made
    made.server.shutdown()
    made.server.server_close()


@pytest.fixture
def call(hub, tmp_path):
    """Runs a command line in a new process, with a cache of the Hub of its own."""
    env = {**os.environ, "HF_ENDPOINT": hub.address, "HF_HUB_OFFLINE": "0", "HF_HOME": str(tmp_path / "home")}

    def run(*words: object) -> "subprocess.CompletedProcess[str]":
        command = [sys.executable, "-m", "sftrun", *map(str, words)]
        return subprocess.run(command, env=env, capture_output=True, text=True, check=False)

    return run


@pytest.mark.slow
def test_a_run_and_its_resume_keep_the_commit_that_prepare_has_found(write, hub, call, tmp_path):
    file, out = write(ROWS, model={"name": "me/model"}, train=TRAIN, evaluators=["loss"]), tmp_path / "run"
    said = call(file, "--out", out)
    assert said.returncode == 0, said.stderr
    assert hub.asked_for_main == 1
    assert not [path for path in hub.asked if NEW in path]
    run = RunDir(out)
    assert run.read_json("lock.json")["model"] == {"name": "me/model", "revision": None, "commit": OLD}
    assert run.recipe().model.revision == OLD
    assert f'revision="{OLD}"' in (out / "README.md").read_text("utf-8")

    shutil.rmtree(run.model)
    run.mark_undone("train", "evaluate", "report")
    before = len(hub.asked)
    said = call(file, "--out", out, "--resume")
    assert said.returncode == 0, said.stderr
    assert [path for path in hub.asked[before:] if path.startswith("/api/models")] == []
    assert run.read_json("lock.json")["model"]["revision"] is None


def test_pickled_weights_of_the_hub_are_refused_before_anything_is_prepared(write, hub, call, tmp_path):
    for commit in (OLD, NEW):
        (hub.root / commit / "model.safetensors").rename(hub.root / commit / "pytorch_model.bin")
    said = call(write(ROWS, model={"name": "me/model"}, train=TRAIN), "--out", tmp_path / "run")
    assert said.returncode == 1
    assert "the weights of me/model are pickled (pytorch_model.bin)" in said.stderr
    assert not (tmp_path / "run" / "prepared").exists()
