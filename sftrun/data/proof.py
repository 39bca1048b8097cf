"""The mask proof: what is trained, counted on the samples themselves, and the checks it must pass."""

import hashlib
from typing import Any

import msgspec
import numpy as np

from sftrun.data.ledger import LOST, Ledger
from sftrun.data.pipeline import Item
from sftrun.data.tokenizer import Tokenizer
from sftrun.errors import Problem

EXAMPLES = 5


class SplitProof(msgspec.Struct):
    """Counts of one split."""

    rows: int = 0
    tokens: int = 0
    trained: int = 0
    by_role: dict[str, dict[str, int]] = msgspec.field(default_factory=dict)
    turns: int = 0
    turns_ended: int = 0
    turns_cut: int = 0
    rows_without_trained: int = 0
    double_bos: int = 0
    straddling: int = 0
    lengths: list[int] = msgspec.field(default_factory=list)
    examples: list[dict[str, Any]] = msgspec.field(default_factory=list)
    hash: str = ""


class Proof:
    """Counts every sample as it is stored."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        self.bos = tokenizer.id_of("bos_token")
        self.splits: dict[str, SplitProof] = {}
        self.ends: set[str] = set()

    def add(self, split: str, item: Item) -> None:
        """Counts one stored sample."""
        proof = self.splits.setdefault(split, SplitProof())
        ids, trained = item.sample.ids, sum(item.sample.trained)
        proof.rows += 1
        proof.tokens += len(ids)
        proof.trained += trained
        proof.rows_without_trained += not trained
        proof.double_bos += self.bos is not None and ids[:2] == [self.bos, self.bos]
        proof.turns += item.counts.turns
        proof.turns_ended += item.counts.turns_ended
        proof.turns_cut += item.counts.turns_cut
        proof.straddling += item.counts.straddling
        proof.lengths.append(len(ids))
        text = item.rendered.text
        self.ends.update(text[span.start : span.end] for span in item.rendered.spans if span.end_of_turn)
        for role, number in item.counts.tokens.items():
            counts = proof.by_role.setdefault(role, {"tokens": 0, "trained": 0})
            counts["tokens"] += number
            counts["trained"] += item.counts.trained.get(role, 0)
        if len(proof.examples) < EXAMPLES:
            proof.examples.append({"origin": item.sample.origin, "pieces": item.pieces})

    def finish(self, split: str, digest: str) -> None:
        """Takes the hash of a split's ids and masks."""
        self.splits.setdefault(split, SplitProof()).hash = digest

    def problems(self) -> list[Problem]:
        """What makes these masks unfit to train on."""
        train = self.splits.get("train", SplitProof())
        found = []
        if not train.rows:
            found.append(Problem("there is no row to train on", path=("source",)))
        for split, proof in self.splits.items():
            if proof.rows_without_trained:
                found.append(Problem(f"{split}: {proof.rows_without_trained} rows train on nothing", path=("masker",)))
            if proof.double_bos:
                hint = "take it out of the chat template, or out of the rows"
                found.append(Problem(f"{split}: {proof.double_bos} rows begin with two BOS tokens", hint=hint))
            missed = proof.turns - proof.turns_ended - proof.turns_cut
            if missed:
                found.append(Problem(f"{split}: the end of {missed} of {proof.turns} trained turns is not trained"))
        return found

    def result(self) -> dict[str, Any]:
        """The proof, with a hash over the ids and masks of every split, and the texts that end a turn."""
        splits = {split: msgspec.to_builtins(proof) for split, proof in self.splits.items()}
        for split in splits.values():
            del split["lengths"]
        together = "".join(f"{split}:{proof.hash}\n" for split, proof in sorted(self.splits.items()))
        return {
            "hash": hashlib.sha256(together.encode()).hexdigest(),
            "template": self.tokenizer.template.fingerprint,
            "tokenizer": self.tokenizer.fingerprint,
            "end_of_turn": {end: self.tokenizer.encode([end])[0].ids for end in sorted(self.ends)},
            "splits": splits,
        }

    def stats(self, rows_in: dict[str, int], ledger: Ledger) -> dict[str, Any]:
        """Rows in and out, what was lost or changed and why, tokens, trained share, lengths; per split."""
        return {split: _stats(proof, split, rows_in[split], ledger) for split, proof in self.splits.items()}


def _stats(proof: SplitProof, split: str, rows_in: int, ledger: Ledger) -> dict[str, Any]:
    lengths = np.asarray(proof.lengths or [0])
    counts = dict(ledger.counts.get(split, {}))
    return {
        "rows_in": rows_in,
        "rows": proof.rows,
        "lost": {label: number for label, number in counts.items() if label.startswith(LOST)},
        "changed": {label: number for label, number in counts.items() if not label.startswith(LOST)},
        "tokens": proof.tokens,
        "trained_tokens": proof.trained,
        "tokens_lost": ledger.tokens[split],
        "trained_tokens_lost": ledger.trained[split],
        "by_role": proof.by_role,
        "length": {
            "mean": round(float(lengths.mean()), 1),
            "p50": int(np.quantile(lengths, 0.5)),
            "p95": int(np.quantile(lengths, 0.95)),
            "max": int(lengths.max()),
        },
    }
