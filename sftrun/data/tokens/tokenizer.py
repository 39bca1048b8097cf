"""Tokenizer and chat template of a recipe's model, loaded without transformers."""

import hashlib
import json
import re
import shutil
from collections.abc import Iterator, Sequence
from datetime import date
from functools import cached_property, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sftrun import tiny
from sftrun.data.masks.template import Template, move_space
from sftrun.errors import Problem, UserError
from sftrun.files import Signature, read_signature
from sftrun.options import is_path
from sftrun.recipe.model import ModelOptions

if TYPE_CHECKING:
    from tokenizers import Encoding

# files of a model repository that are fetched for its tokenizer and template
FILES = (
    *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "config.json"),
    *("chat_template.jinja", "additional_chat_templates/*.jinja", "generation_config.json"),
)
DEFAULT, TOOL_USE = "default", "tool_use"  # names of templates that transformers chooses by itself
MORE_TEMPLATES = "additional_chat_templates"  # folder of the others, as transformers saves them
BUILT_IN = Path(__file__).parent.parent / "masks" / "templates"
CODE = ("*.py",)  # fetched too with `model.trust_remote_code`
PIECE = 1 << 18  # characters that `count` tokenizes at once
NAME = ("model", "name")  # path in the recipe, for problems


class Tokenizer:
    """The tokenizer of a model, with its chat template.

    `fingerprint` is a hash of the vocabulary, the merges and the special tokens. `folder` has the tokenizer's files;
    for a model of the Hub its name is the commit. `sources` are the chat templates by name, or the one that the recipe
    names. `template` is the default; `tool_template`, for rows with tools, is another if one is named tool_use.
    """

    def __init__(self, folder: Path, model: ModelOptions) -> None:
        from tokenizers import Tokenizer as Engine

        self.folder = folder
        file = folder / "tokenizer.json"
        if not file.is_file():
            raise UserError(
                Problem(
                    f"{folder} has no tokenizer.json",
                    path=NAME,
                    hint="save one with AutoTokenizer.from_pretrained(…).save_pretrained(…)",
                )
            )
        try:
            self.engine = Engine.from_file(str(file))
        except Exception as error:  # the library raises no narrower one
            raise UserError(_make_damage_problem(file, error)) from None
        self.engine.no_truncation()
        self.engine.no_padding()
        self.config: dict[str, Any] = _read_json(folder / "tokenizer_config.json")
        self.special = _read_special_tokens(self.config, _read_json(folder / "special_tokens_map.json"))
        self.sources = _read_sources(folder, self.config, model)
        self.template = _make_template(self.sources, self.special, model)
        self.tool_template = _make_tool_template(self.sources, self.special, self.template)
        self.template.stop_tokens = self.tool_template.stop_tokens = self._read_stop_tokens()
        self.fingerprint = hashlib.sha256(file.read_bytes() + json.dumps(self.special).encode()).hexdigest()

    def _read_stop_tokens(self) -> frozenset[str]:
        """Reads the tokens at which the model stops, from its generation config."""
        found = _read_json(self.folder / "generation_config.json").get("eos_token_id")
        numbers = found if isinstance(found, list) else [found]
        texts = [self.engine.id_to_token(number) for number in numbers if isinstance(number, int) and number >= 0]
        return frozenset(text for text in texts if text)

    def encode(self, texts: Sequence[str]) -> "list[Encoding]":
        """Encodes rendered texts to ids and character offsets, without adding special tokens to them."""
        return self.engine.encode_batch(list(texts), add_special_tokens=False)

    def encode_ids(self, texts: Sequence[str]) -> "list[Encoding]":
        """Encodes texts to ids, faster than `encode`; the offsets are not valid."""
        return self.engine.encode_batch_fast(list(texts), add_special_tokens=False)

    def count(self, text: str) -> int:
        """Counts the tokens of a text; of more than PIECE characters piece by piece, cut at white space.

        So memory is bounded. A cut may change the count by a token or two.
        """
        return sum(len(self.engine.encode(piece, add_special_tokens=False)) for piece in _cut(text))

    @cached_property
    def added(self) -> dict[int, str]:
        """Ids and texts of the added tokens, which are recognised before anything else: `<|im_end|>`, …"""
        return {number: token.content for number, token in self.engine.get_added_tokens_decoder().items()}

    @cached_property
    def added_pattern(self) -> re.Pattern[str]:
        """A pattern of the texts of `added`, the longest first, as the tokenizer matches them."""
        return re.compile("|".join(map(re.escape, sorted(self.added.values(), key=len, reverse=True))) or "(?!)")

    @cached_property
    def _is_added(self) -> Any:
        import numpy as np

        size = max(self.engine.get_vocab_size(with_added_tokens=True), *self.added, 0) + 1
        table = np.zeros(size + 1, dtype=np.bool_)
        table[list(self.added)] = True
        return table

    def is_added(self, ids: Any) -> Any:
        """Returns for each id of an array if it is one of `added`."""
        import numpy as np

        return self._is_added[np.minimum(ids, len(self._is_added) - 1)]

    def find_bounds(self, encoding: "Encoding", text: str) -> tuple[Any, Any]:
        """Returns the first and last character (exclusive) of each token, [tokens]; added tokens without spaces."""
        import numpy as np

        offsets = np.asarray(encoding.offsets, dtype=np.int64).reshape(-1, 2)
        starts, ends = offsets[:, 0].copy(), offsets[:, 1].copy()
        ids = encoding.ids  # a new list each time
        for index in np.flatnonzero(self.is_added(np.asarray(ids, dtype=np.int64))):
            content = self.added[ids[index]]
            at = text.find(content, starts[index], ends[index])
            if at >= 0:
                starts[index], ends[index] = at, at + len(content)
        return starts, ends

    @cached_property
    def adds_bos(self) -> bool:
        """True if the tokenizer itself puts its BOS before a text."""
        ids = self.engine.encode("x").ids
        return bool(ids) and self.id_of("bos_token") == ids[0]

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = True) -> str:
        """Returns the text of ids."""
        return self.engine.decode(list(ids), skip_special_tokens=skip_special_tokens)

    def save(self, folder: Path) -> None:
        """Copies the tokenizer's files to a model folder, with the chat templates, or the one named in the recipe."""
        for name in ("tokenizer.json", "special_tokens_map.json"):
            if (self.folder / name).is_file():
                shutil.copyfile(self.folder / name, folder / name)
        config = {key: value for key, value in self.config.items() if key != "chat_template"}
        (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2, ensure_ascii=False), "utf-8")
        for name, source in self.sources.items():
            file = folder / ("chat_template.jinja" if name == DEFAULT else f"{MORE_TEMPLATES}/{name}.jinja")
            file.parent.mkdir(exist_ok=True)
            file.write_text(source, "utf-8")

    def id_of(self, name: str) -> int | None:
        """Returns the id of a special token by its role (`eos_token`), or None."""
        token = self.special.get(name)
        return None if token is None else self.engine.token_to_id(token)


def _cut(text: str) -> Iterator[str]:
    """Yields the pieces of a text, each of at most PIECE characters, cut where white space begins if there is any."""
    start = 0
    while len(text) - start > PIECE:
        spaces = (text.rfind(space, start + PIECE // 2, start + PIECE) for space in (" ", "\n", "\t"))
        end = max(spaces)
        end = end if end > start else start + PIECE
        yield text[start:end]
        start = end
    yield text[start:]


def load_tokenizer(model: ModelOptions) -> Tokenizer:
    """Loads the tokenizer of a recipe's model, once for the same files; raises UserError if it is not available."""
    folder = find_folder(model)
    template = Path(model.chat_template or "").expanduser()
    files = [template, *(folder / name for name in FILES)]
    return _load(folder, model, (date.today(), *map(_stamp, files)))  # templates may print the date


@lru_cache(maxsize=4)
def _load(folder: Path, model: ModelOptions, stamps: tuple[Any, ...]) -> Tokenizer:
    return Tokenizer(folder, model)


def _stamp(file: Path) -> Signature | None:
    """Returns what changes if a file is written again; None if there is no such file."""
    return read_signature(file) if file.is_file() else None


def find_folder(model: ModelOptions) -> Path:
    """Returns a local folder with the tokenizer's files, fetched from the Hub if needed."""
    if model.name == tiny.NAME:
        return tiny.folder()
    if is_path(model.name):
        return _check_folder(model.name)
    return _fetch_from_hub(model)


def _check_folder(name: str) -> Path:
    path = Path(name).expanduser()
    if path.is_dir():
        return path
    raise UserError(
        Problem(f"no such model folder: {path}", path=NAME, hint="correct the path, or train that model first")
    )


def _fetch_from_hub(model: ModelOptions) -> Path:
    from sftrun.hub import fetch

    return fetch(model.name, model.revision, (*FILES, *CODE) if model.trust_remote_code else FILES, NAME)


def _read_json(file: Path) -> dict[str, Any]:
    if not file.is_file():
        return {}
    try:
        return dict(json.loads(file.read_text("utf-8")))
    except (ValueError, TypeError) as error:
        raise UserError(_make_damage_problem(file, error)) from None


def _read_source(file: Path) -> str:
    try:
        return file.read_text("utf-8")
    except UnicodeDecodeError as error:
        raise UserError(_make_damage_problem(file, error)) from None


def _make_damage_problem(file: Path, error: Exception) -> Problem:
    hint = "fetch or save the file again; text files are in UTF-8"
    return Problem(f"{file} cannot be read: {error}", path=NAME, hint=hint)


def _read_special_tokens(config: dict[str, Any], older: dict[str, Any]) -> dict[str, str]:
    both = {**older, **config}
    named = {key: value for key, value in both.items() if key.endswith("_token") and not key.startswith("add_")}
    texts = {key: value["content"] if isinstance(value, dict) else value for key, value in named.items()}
    return {key: text for key, text in texts.items() if isinstance(text, str)}


def _template_name(model: ModelOptions) -> str:
    return f"of {model.name}" if model.chat_template is None else model.chat_template


def _make_template(sources: dict[str, str], special: dict[str, str], model: ModelOptions) -> Template:
    """Makes the template; if the model has none, its render raises, because plain text needs none."""
    template = Template(sources.get(DEFAULT, ""), special, name=_template_name(model))
    if DEFAULT not in sources:
        choices = ", ".join(sorted([*_list_built_in(), *sources]))
        named = "no default chat template" if sources else "no chat template"
        message = f"{model.name} has {named} to render messages with"
        template.missing = Problem(message, path=NAME, hint=f"set model.chat_template to a .jinja file, or {choices}")
    return template


def _make_tool_template(sources: dict[str, str], special: dict[str, str], other: Template) -> Template:
    """Makes the template of rows with tools, as transformers chooses it, with the clock of the other template."""
    if TOOL_USE not in sources:
        return other
    return Template(sources[TOOL_USE], special, other.now, name=f"{TOOL_USE} {other.name}")


def _read_sources(folder: Path, config: dict[str, Any], model: ModelOptions) -> dict[str, str]:
    """Returns the templates of a model by name, or the one that the recipe names as the default."""
    files = sorted((folder / MORE_TEMPLATES).glob("*.jinja"))
    if (folder / "chat_template.jinja").is_file():
        files.append(folder / "chat_template.jinja")
    own = config.get("chat_template")
    if files:
        found = {DEFAULT if file.parent == folder else file.stem: _read_source(file) for file in files}
    elif isinstance(own, list):
        found = {each["name"]: each["template"] for each in own}
    else:
        found = {DEFAULT: own} if isinstance(own, str) else {}
    if model.chat_template is not None:
        found = {DEFAULT: _read_named_template(model.chat_template, found)}
    return {name: move_space(source) for name, source in found.items()} if model.space_to_answer else found


def _list_built_in() -> dict[str, Path]:
    return {file.stem: file for file in BUILT_IN.glob("*.jinja")}


def _read_named_template(name: str, own: dict[str, str]) -> str:
    file = _list_built_in().get(name, Path(name).expanduser())
    if file.is_file():
        return _read_source(file)
    if name in own:
        return own[name]
    raise UserError(
        Problem(
            f"no such chat template: {name}",
            path=("model", "chat_template"),
            hint=f"set it to a .jinja file, or one of {', '.join(sorted([*_list_built_in(), *own]))}",
        )
    )
