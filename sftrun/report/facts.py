"""Reads the files of a run directory; a missing file counts as empty."""

from itertools import islice
from typing import Any

import msgspec

from sftrun.runs import record
from sftrun.runs.directory import RunDir

SPLITS = ("train", "val", "test")
LEDGER_SHOWN = 20


class Facts(msgspec.Struct, frozen=True, kw_only=True):
    """Everything that the report and the model card show of a run."""

    name: str
    resolved: str
    lock: dict[str, Any]
    state: dict[str, dict[str, Any]]
    events: list[dict[str, Any]]
    stats: dict[str, dict[str, Any]]
    proof: dict[str, Any]
    ledger: list[dict[str, Any]]
    scores: dict[str, dict[str, dict[str, Any]]]
    samples: list[dict[str, Any]]
    exports: dict[str, dict[str, Any]]
    trained: bool
    adapter: bool

    def found_in(self, stage: str) -> dict[str, Any]:
        """Returns what a stage has found out, and its status; empty if it has not run."""
        return self.state.get(stage, {})

    @property
    def seconds(self) -> float:
        """The total duration of all stages."""
        return float(sum(stage.get("seconds") or 0 for stage in self.state.values()))

    @property
    def started(self) -> str:
        """The start of the first stage, as ISO text; empty if it is unknown."""
        return min((stage["started"] for stage in self.state.values() if "started" in stage), default="")

    @property
    def failed(self) -> dict[str, str]:
        """Stages that failed, with the reason."""
        stages = self.state.items()
        return {name: str(stage.get("reason", "")) for name, stage in stages if stage.get("status") == "failed"}

    @property
    def warnings(self) -> list[str]:
        """The warnings of the run, each once."""
        # a warning `about` the training is left out: the advice of the report covers it with all numbers
        warnings = (each for each in self.events if each.get("event") == "warning" and not each.get("about"))
        return list(dict.fromkeys(str(event.get("message", "")) for event in warnings))


def gather(run: RunDir) -> Facts:
    """Reads the facts of a run."""
    resolved = run.path / "resolved.yaml"
    return Facts(
        name=run.path.name,
        resolved=resolved.read_text("utf-8") if resolved.is_file() else "",
        lock=run.read_json("lock.json"),
        state=run.read_json("state.json"),
        events=list(record.read_lines(run.path, "events.jsonl")),
        stats=in_order(run.read_json("prepared/stats.json")),
        proof=_ordered_proof(run.read_json("prepared/proof.json")),
        ledger=list(islice(record.read_lines(run.path, "prepared/ledger.jsonl"), LEDGER_SHOWN)),
        scores=run.read_json("eval/scores.json"),
        samples=list(record.read_lines(run.path, "eval/samples.jsonl")),
        exports=run.read_json("export/facts.json"),
        trained=run.model.is_dir(),
        adapter=(run.model / "adapter_config.json").is_file(),
    )


def in_order(splits: dict[str, Any]) -> dict[str, Any]:
    """Returns the same dict in the order train, val, test, others."""
    known = [split for split in SPLITS if split in splits]
    return {split: splits[split] for split in [*known, *(split for split in splits if split not in SPLITS)]}


def _ordered_proof(proof: dict[str, Any]) -> dict[str, Any]:
    return {**proof, "splits": in_order(proof["splits"])} if "splits" in proof else proof
