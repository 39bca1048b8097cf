"""Source `huggingface`: a dataset of the Hugging Face Hub, or one that was saved to disk."""

import functools
import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, NoReturn

import sftrun
import sftrun.hub
from sftrun.builtin.sources import _files, _layout

BATCH = 1000  # rows in memory at a time
AT = ("source", "with", "name")
SAVED = ("dataset_dict.json", "state.json")  # what save_to_disk leaves of several splits, and of one


class HuggingfaceOptions(sftrun.Options):
    """Which dataset, and which of its splits are used for what."""

    name: Annotated[
        sftrun.NameOrPath,
        sftrun.Meta(description="Id of the dataset, such as HuggingFaceTB/smoltalk, or a folder (./…, ../…, /…)."),
    ]
    config: Annotated[str | None, sftrun.Meta(description="Its configuration, where it has several.")] = None
    data_dir: Annotated[
        str | None, sftrun.Meta(description="The folder of it that has the rows, such as data/python; null for all.")
    ] = None
    revision: Annotated[str | None, sftrun.Meta(description="Branch, tag or commit.")] = None
    train: Annotated[str, sftrun.Meta(description="Split to train on; a slice such as train[:1%] works.")] = "train"
    val: Annotated[str | None, sftrun.Meta(description="Split for the validation loss, as a name or slice.")] = None
    test: Annotated[str | None, sftrun.Meta(description="Held-out split, as a name or slice.")] = None
    streaming: Annotated[
        bool, sftrun.Meta(description="Read rows as they arrive, without storing the dataset; slices do not work.")
    ] = False


@sftrun.hookimpl
def register_sources(register: sftrun.Register) -> None:
    register("huggingface", Huggingface, options=HuggingfaceOptions)


class Huggingface:
    """A dataset of the Hugging Face Hub, by its id, or one that datasets saved to a folder."""

    def __init__(self, options: HuggingfaceOptions) -> None:
        self.options = options
        named = {"train": options.train, "val": options.val, "test": options.test}
        self.named = {split: theirs for split, theirs in named.items() if theirs}
        self.loaded: dict[str, Any] = {}

    def check_recipe(self, recipe: sftrun.Recipe) -> Iterator[sftrun.Problem]:
        for split, theirs in self.named.items():
            if self.options.streaming and "[" in theirs:
                hint = "name whole splits, or leave streaming out"
                yield sftrun.Problem(f"streaming cannot read the slice {theirs} as {split}", hint=hint)
            if split != "train" and theirs == self.named["train"]:
                yield sftrun.Problem(f"train and {split} are the same rows: {theirs}", hint="name slices of it")

    def check_machine(self, recipe: sftrun.Recipe) -> Iterator[sftrun.Problem]:
        yield from sftrun.missing_packages("datasets", extra="train", path=("source",), why="the source huggingface")
        folder = Path(self.options.name)
        if folder.is_absolute() and not folder.exists():
            yield _layout.missing(folder, AT)
        useless = ["revision"] if folder.is_dir() else []
        useless += ["config", "data_dir", "streaming"] if self._saved() else []
        for option in useless:
            if getattr(self.options, option):
                yield sftrun.Problem(f"{option} has no effect on the folder {folder}", path=(*AT[:-1], option))

    def splits(self) -> list[str]:
        return list(self.named)

    def rows(self, split: str) -> Iterator[sftrun.Row]:
        for number, data in enumerate(self._records(split), 1):
            yield sftrun.Row(data, f"{self.named[split]}:{number}")

    def fingerprint(self) -> str:
        o, digest = self.options, hashlib.sha256(repr(self.named).encode())
        if not o.streaming:
            digest.update(repr([self._load(split)._fingerprint for split in self.named]).encode())
            return digest.hexdigest()
        digest.update(repr((o.name, o.config, o.data_dir, o.revision, self._commit)).encode())
        for file in sorted(Path(o.name).rglob("*")) if Path(o.name).is_dir() else []:
            if file.is_file():
                _files.add_file(file, digest.update)
        return digest.hexdigest()

    def locate(self, origin: str) -> str:
        return f"{self.options.name} {origin}"

    @functools.cached_property
    def _commit(self) -> str | None:
        return sftrun.hub.check_dataset(self.options.name, self.options.revision, AT)

    def _saved(self) -> bool:
        return any((Path(self.options.name) / name).is_file() for name in SAVED)

    def _records(self, split: str) -> Iterator[dict[str, Any]]:
        batches = self._load(split).iter(BATCH)
        while True:
            try:
                batch = next(batches, None)
            except Exception as error:  # of the network, of a file, of a conversion: the library wraps none of them
                self._fail(self.named[split], error)
            if batch is None:
                return
            for values in zip(*batch.values(), strict=True):
                yield dict(zip(batch, values, strict=True))

    def _load(self, split: str) -> Any:
        if split not in self.loaded:
            load = self._from_disk if self._saved() else self._from_hub
            self.loaded[split] = load(self.named[split])
        return self.loaded[split]

    def _from_hub(self, split: str) -> Any:
        import datasets

        o, revision = self.options, self._commit or self.options.revision
        which = {"name": o.config, "data_dir": o.data_dir, "split": split, "revision": revision}
        try:
            return datasets.load_dataset(o.name, **which, streaming=o.streaming)
        except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
            self._fail(split, error)

    def _from_disk(self, split: str) -> Any:
        import datasets

        try:
            saved = datasets.load_from_disk(self.options.name)
            saved = saved if isinstance(saved, datasets.DatasetDict) else {str(saved.split or "train"): saved}
            sizes = {name: len(each) for name, each in saved.items()}
            parts = datasets.ReadInstruction.from_spec(split).to_absolute(sizes)
            chosen = [saved[part.splitname].select(range(part.from_, part.to)) for part in parts]
        except (OSError, ValueError, AssertionError, datasets.exceptions.DatasetsError) as error:
            self._fail(split, error)
        return datasets.concatenate_datasets(chosen).with_format(None)

    def _fail(self, split: str, error: Exception) -> NoReturn:
        said = str(error).strip().splitlines() or [type(error).__name__]
        problem = sftrun.Problem(
            f"the dataset {self.options.name} (split {split}) cannot be loaded: {said[0]}",
            path=AT,
            hint="check the id and the network, or use a local file with the source jsonl",
        )
        raise sftrun.UserError(problem) from error
