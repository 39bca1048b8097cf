"""Source `huggingface`: a dataset of the Hugging Face Hub, or one saved to disk."""

import functools
import glob
import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, NoReturn

import sftrun
import sftrun.hub
from sftrun.builtin.sources import _layout, _search

BATCH = 1000  # rows in memory at a time
AT = ("source", "with", "name")  # path in the recipe, for problems
SAVED = ("dataset_dict.json", "state.json")  # files that save_to_disk writes for several splits, and for one


class HuggingfaceOptions(sftrun.Options):
    """A dataset, and its splits for train, val and test."""

    name: Annotated[
        sftrun.NameOrPath,
        sftrun.Meta(description="Id of the dataset, such as HuggingFaceTB/smoltalk, or a folder (./…, ../…, /…)."),
    ]
    config: Annotated[str | None, sftrun.Meta(description="Its configuration, if it has several.")] = None
    data_dir: Annotated[
        str | None, sftrun.Meta(description="Folder of the dataset with the rows, such as data/python; null for all.")
    ] = None
    revision: Annotated[str | None, sftrun.Meta(description="Branch, tag or commit.")] = None
    train: Annotated[str, sftrun.Meta(description="Split to train on; a slice such as train[:1%] works.")] = "train"
    val: Annotated[str | None, sftrun.Meta(description="Split for the validation loss, as a name or slice.")] = None
    test: Annotated[str | None, sftrun.Meta(description="Held-out split, as a name or slice.")] = None
    streaming: Annotated[
        bool,
        sftrun.Meta(description="Read rows while downloading, without storing the dataset; without slices."),
    ] = False


@sftrun.hookimpl
def register_sources(register: sftrun.Register) -> None:
    register("huggingface", Huggingface, options=HuggingfaceOptions)


class Huggingface:
    """A dataset of the Hugging Face Hub, by its id, or one that datasets saved to a folder."""

    def __init__(self, options: HuggingfaceOptions) -> None:
        self.options = options
        named = {"train": options.train, "val": options.val, "test": options.test}
        self.named = {split: dataset_split for split, dataset_split in named.items() if dataset_split}
        self.loaded: dict[str, Any] = {}

    def check_recipe(self, recipe: sftrun.Recipe) -> Iterator[sftrun.Problem]:
        for split, dataset_split in self.named.items():
            if self.options.streaming and "[" in dataset_split:
                hint = "use whole splits, or remove streaming"
                yield sftrun.Problem(f"streaming cannot read the slice {dataset_split} as {split}", hint=hint)
            if split != "train" and dataset_split == self.named["train"]:
                yield sftrun.Problem(
                    f"train and {split} are the same rows: {dataset_split}", hint="use different slices of it"
                )

    def check_machine(self, recipe: sftrun.Recipe) -> Iterator[sftrun.Problem]:
        yield from sftrun.missing_packages("datasets", extra="train", path=("source",), why="the source huggingface")
        folder = Path(self.options.name)
        if folder.is_absolute() and not folder.exists():
            yield _layout.describe_missing(folder, AT)
        useless = ["revision"] if folder.is_dir() else []
        useless += ["config", "data_dir", "streaming"] if self._is_saved() else []
        for option in useless:
            if getattr(self.options, option):
                yield sftrun.Problem(f"{option} has no effect on the folder {folder}", path=(*AT[:-1], option))

    def splits(self) -> list[str]:
        return list(self.named)

    def rows(self, split: str) -> Iterator[sftrun.Row]:
        for number, data in enumerate(self._read_records(split), 1):
            yield sftrun.Row(data, f"{self.named[split]}:{number}")

    def fingerprint(self) -> str:
        o, digest = self.options, hashlib.sha256(repr(self.named).encode())
        if not o.streaming:
            digest.update(repr([self._load(split)._fingerprint for split in self.named]).encode())
            return digest.hexdigest()
        digest.update(repr((o.name, o.config, o.data_dir, o.revision, self._commit)).encode())
        for file in _search.Search(AT).list_below(Path(o.name)) if Path(o.name).is_dir() else []:
            digest.update(sftrun.files.file_digest(file).encode())
        return digest.hexdigest()

    def locate(self, origin: str) -> str:
        return f"{self.options.name} {origin}"

    @functools.cached_property
    def _commit(self) -> str | None:
        return sftrun.hub.check_dataset(self.options.name, self.options.revision, AT)

    def _is_saved(self) -> bool:
        return any((Path(self.options.name) / name).is_file() for name in SAVED)

    def _read_records(self, split: str) -> Iterator[dict[str, Any]]:
        batches = self._load(split).iter(BATCH)
        while True:
            try:
                batch = next(batches, None)
            except Exception as error:  # the library does not wrap errors of the network, of files and of conversions
                self._raise_load_error(self.named[split], error)
            if batch is None:
                return
            for values in zip(*batch.values(), strict=True):
                yield dict(zip(batch, values, strict=True))

    def _load(self, split: str) -> Any:
        if split not in self.loaded:
            load = self._load_from_disk if self._is_saved() else self._load_from_hub
            self.loaded[split] = load(self.named[split])
        return self.loaded[split]

    def _load_from_hub(self, split: str) -> Any:
        import datasets

        o, revision = self.options, self._commit or self.options.revision
        which: dict[str, Any] = {"name": o.config, "data_dir": o.data_dir, "split": split, "revision": revision}
        try:
            which["data_files"] = self._find_files_literally()
            return datasets.load_dataset(o.name, **which, streaming=o.streaming)
        except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
            self._raise_load_error(split, error)

    def _find_files_literally(self) -> dict[str, list[str]] | None:
        """Returns patterns for the files of each split, if datasets would take the folder's own name for a pattern."""
        from datasets.data_files import get_data_patterns

        folder = Path(self.options.name, self.options.data_dir or "").resolve()
        if not folder.is_dir() or glob.escape(str(folder)) == str(folder):
            return None
        card = Path(self.options.name) / "README.md"
        if card.is_file() and "data_files:" in card.read_text("utf-8", errors="replace"):
            raise ValueError("its README.md names the files, and datasets reads brackets in a path as a pattern")
        found = get_data_patterns(glob.escape(str(folder)))
        return {str(split): [f"{glob.escape(str(folder))}/{each}" for each in found[split]] for split in found}

    def _load_from_disk(self, split: str) -> Any:
        import datasets

        try:
            saved = datasets.load_from_disk(self.options.name)
            saved = saved if isinstance(saved, datasets.DatasetDict) else {str(saved.split or "train"): saved}
            sizes = {name: len(each) for name, each in saved.items()}
            parts = datasets.ReadInstruction.from_spec(split).to_absolute(sizes)
            chosen = [saved[part.splitname].select(range(part.from_, part.to)) for part in parts]
        except (OSError, ValueError, AssertionError, datasets.exceptions.DatasetsError) as error:
            self._raise_load_error(split, error)
        return datasets.concatenate_datasets(chosen).with_format(None)

    def _raise_load_error(self, split: str, error: Exception) -> NoReturn:
        lines = str(error).strip().splitlines() or [type(error).__name__]
        problem = sftrun.Problem(
            f"the dataset {self.options.name} (split {split}) cannot be loaded: {lines[0]}",
            path=AT,
            hint="use the source for its files, such as jsonl or parquet, with path"
            if Path(self.options.name).is_dir()
            else "check the id and the network, or use a local file with the source jsonl",
        )
        raise sftrun.UserError(problem) from error
