"""Source `huggingface`: a dataset of the Hugging Face Hub."""

from collections.abc import Iterable, Iterator
from typing import Annotated, Any

import sftrun


class HuggingfaceOptions(sftrun.Options):
    """Which dataset, and which of its splits are used for what."""

    name: Annotated[str, sftrun.Meta(description="Id of the dataset, such as HuggingFaceTB/smoltalk.")]
    config: Annotated[str | None, sftrun.Meta(description="Its configuration, where it has several.")] = None
    revision: Annotated[str | None, sftrun.Meta(description="Branch, tag or commit.")] = None
    train: Annotated[str, sftrun.Meta(description="Split to train on; a slice such as train[:1%] works.")] = "train"
    val: Annotated[str | None, sftrun.Meta(description="Split for the validation loss, as a name or slice.")] = None
    test: Annotated[str | None, sftrun.Meta(description="Held-out split, as a name or slice.")] = None


@sftrun.hookimpl
def register_sources(register: sftrun.Register) -> None:
    register("huggingface", Huggingface, options=HuggingfaceOptions)


class Huggingface:
    """A dataset of the Hugging Face Hub, by its id."""

    def __init__(self, options: HuggingfaceOptions) -> None:
        self.options = options
        named = {"train": options.train, "val": options.val, "test": options.test}
        self.named = {split: theirs for split, theirs in named.items() if theirs}
        self.loaded: dict[str, Any] = {}

    def ready(self, recipe: sftrun.Recipe) -> Iterable[sftrun.Problem]:
        yield from sftrun.missing("datasets", extra="train", path=("source",), why="the source huggingface")

    def splits(self) -> list[str]:
        return list(self.named)

    def rows(self, split: str) -> Iterator[sftrun.Row]:
        for number, data in enumerate(self._load(split), 1):
            yield sftrun.Row(data, f"{self.named[split]}:{number}")

    def fingerprint(self) -> str:
        return "".join(str(self._load(split)._fingerprint) for split in self.named)

    def locate(self, origin: str) -> str:
        return f"{self.options.name} {origin}"

    def _load(self, split: str) -> Any:
        if split not in self.loaded:
            self.loaded[split] = self._download(self.named[split])
        return self.loaded[split]

    def _download(self, split: str) -> Any:
        import datasets

        o = self.options
        sftrun.check_dataset(o.name, o.revision, ("source", "with", "name"))
        try:
            return datasets.load_dataset(o.name, o.config, split=split, revision=o.revision)
        except (OSError, ValueError) as error:
            problem = sftrun.Problem(
                f"the dataset {o.name} (split {split}) cannot be loaded: {str(error).splitlines()[0]}",
                path=("source", "with", "name"),
                hint="check the id and the network, or use a local file with the source jsonl",
            )
            raise sftrun.UserError(problem) from error
