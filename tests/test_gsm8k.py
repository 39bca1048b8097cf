"""Real rows in their own shape, mapped by an option of the formatter."""

import json
from pathlib import Path

import pytest

DATA = Path(__file__).parents[2] / "shared/data/gsm8k"
pytestmark = pytest.mark.skipif(not DATA.is_dir(), reason="the GSM8K rows are not beside the repository")

RECIPE = {
    "model": {"name": "sftrun/tiny", "max_seq_len": 1024},
    "source": {"use": "jsonl", "with": {"path": str(DATA)}},
    "formatter": {"use": "chat", "with": {"fields": {"user": "question", "assistant": "answer"}}},
    "tuning": {"mode": "full"},
    "train": {"max_steps": 4, "batch_size": 4, "learning_rate": 3e-3, "eval_strategy": "no", "save_strategy": "no"},
    "evaluators": [{"use": "generation", "with": {"limit": 4, "max_new_tokens": 16}}],
}


def test_gsm8k_goes_from_row_to_report(sftrun, tmp_path):
    (tmp_path / "gsm8k.yaml").write_text(json.dumps(RECIPE))
    said = sftrun(tmp_path / "gsm8k.yaml", "--out", tmp_path / "run")
    assert said.code == 0, said.err
    stats = json.loads((tmp_path / "run/prepared/stats.json").read_text())
    assert stats["train"]["rows_in"] + stats["val"]["rows_in"] == 7473
    assert stats["test"]["rows"] == 1319
    proof = json.loads((tmp_path / "run/prepared/proof.json").read_text())["splits"]["train"]
    assert proof["by_role"]["user"]["trained"] == proof["by_role"]["template"]["trained"] == 0
    assert proof["turns_ended"] == proof["turns"] == stats["train"]["rows"]
    assert "####" in (tmp_path / "run/report.html").read_text()
