"""Marks on the templates that trl ships, against the `{% generation %}` marks of their training twins."""

import json
import os
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

import pytest

from sftrun.data.render import Renderer
from sftrun.data.template import Template
from sftrun.errors import RowError
from sftrun.types import Conversation, Rendered
from tests.conversations import KINDS, as_lists

trl = pytest.importorskip("trl")
hub = pytest.importorskip("transformers.utils.chat_template_utils")

FOLDER = Path(trl.__file__).parent / "chat_templates"
TWINS = sorted(file.stem.removesuffix("_training") for file in FOLDER.glob("*_training.jinja"))
TOKENS = {"bos_token": "<bos>", "eos_token": "<eos>", "pad_token": "<pad>", "unk_token": "<unk>"}
DOCUMENT = Path(__file__).parent.parent / "docs" / "templates.md"


class Template_(NamedTuple):
    renderer: Renderer
    source: str
    lists: bool


def load(name: str) -> Template_:
    source = (FOLDER / f"{name}.jinja").read_text("utf-8")
    renderer = Renderer(Template(source, TOKENS))
    return Template_(renderer, source, any("only as lists" in problem.message for problem in renderer.check()))


def reference(source: str, talk: Conversation) -> tuple[str, list[tuple[int, int]]]:
    texts, stretches = hub.render_jinja_template(
        [talk.messages], tools=talk.tools, chat_template=source, return_assistant_tokens_mask=True, **TOKENS
    )
    return texts[0], stretches[0]
