"""Chat templates, compiled once: render the same text as transformers' `apply_chat_template`, without transformers."""

import hashlib
import itertools
import json
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from datetime import datetime
from functools import cached_property
from typing import Any, Literal, NoReturn

import jinja2
import jinja2.ext
import jinja2.nodes
import jinja2.utils

from sftrun.data.masks import limits
from sftrun.errors import Place, Problem, RowError, UserError
from sftrun.types import Message

REASONING = ("reasoning_content", "thinking", "reasoning")
"""Keys of a message for its reasoning, the usual one first."""

RESERVED = frozenset({"messages", "tools", "add_generation_prompt"})
"""Variables of a template that only the renderer may set."""

REFUSES = "the chat template refuses: "
NAMELESS = "chat template"
PIECES = 4096  # pieces of text that a render writes between two looks at its size

PartsUse = Literal["reads", "fails", "prints"]
"""What a template does with a content that is a list of parts; `prints`: as text that looks like a list."""


def move_space(source: str) -> str:
    """Returns a template that ends its generation prompts without spaces, and writes the same texts otherwise."""
    body = source.removesuffix("\n")  # Jinja itself ignores it
    begin = "{% set sftrun_text %}" + ("\n" if body[:1].isspace() else "")  # Jinja strips a line break after a tag
    text = "{{ sftrun_text.rstrip(' \\t') if add_generation_prompt else sftrun_text }}"
    return f"{begin}{body}{{%+ endset %}}{text}"


class Template:
    """A compiled chat template, with its special tokens (`bos_token`, …) and one clock for all its renders.

    Raises UserError with the line if the source is not valid Jinja. `now` is the time for `strftime_now`, by default
    the moment of construction, so that the text of a row does not depend on when it is rendered. With `wraps_text`,
    the template gets each text content as a list of one part; if it does not read parts (`parts_use`), it gets a
    list of texts as one text. `name` is its name in messages: a model, a built-in
    template or a file. `generation` is the extension for the tags `{% generation %}`. If `missing` is set, `render`
    raises it. `stop_tokens` are the tokens at which the model stops, as far as its files say so.
    """

    missing: Problem | None = None
    stop_tokens: frozenset[str] = frozenset()

    def __init__(
        self,
        source: str,
        variables: Mapping[str, str],
        now: datetime | None = None,
        name: str = NAMELESS,
        generation: "type[jinja2.ext.Extension] | None" = None,
    ) -> None:
        self.source = source
        self.name = name
        self.wraps_text = False
        self.parts_use: PartsUse = "reads"
        self.variables = dict(variables)
        self.now = now or datetime.now()
        self._environment = _make_environment(self.now, generation or Generation)
        try:
            _check_characters(source)
            self._compiled = self._environment.from_string(source)
        except jinja2.TemplateSyntaxError as error:
            raise UserError(_make_syntax_problem(error, source, name)) from None
        except (RecursionError, SyntaxError, MemoryError, OverflowError) as error:  # from Python's own compiler
            why = "it nests too deeply" if isinstance(error, RecursionError | SyntaxError) else str(error)
            raise UserError(Problem(f"the chat template cannot be compiled: {why}", Place(name))) from None
        self._globals = dict(self._compiled.globals)
        self._context = self._compiled.new_context({}, shared=True)

    @property
    def fingerprint(self) -> str:
        """The SHA-256 of the source."""
        return hashlib.sha256(self.source.encode()).hexdigest()

    @property
    def label(self) -> str:
        """The name for messages, or the beginning of the fingerprint."""
        return self.fingerprint[:12] if self.name == NAMELESS else self.name

    @cached_property
    def constants(self) -> frozenset[str]:
        """The string constants in the template's expressions, which it may look for in a message."""
        tree = self._environment.parse(self.source)
        return frozenset(node.value for node in tree.find_all(jinja2.nodes.Const) if isinstance(node.value, str))

    @cached_property
    def variables_read(self) -> frozenset[str]:
        """The names of the variables that the template reads."""
        tree = self._environment.parse(self.source)
        return frozenset(node.name for node in tree.find_all(jinja2.nodes.Name) if node.ctx == "load")

    def render(
        self,
        messages: Sequence[Message],
        /,
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = False,
        **template_kwargs: Any,
    ) -> str:
        """Renders a conversation; raises RowError, with the template's own message if it has one."""
        if self.missing:
            raise UserError(self.missing)
        try:
            return self._run(
                {
                    **self._globals,
                    "documents": None,
                    **self.variables,
                    **template_kwargs,
                    "messages": self._adapt_messages(messages),
                    "tools": tools,
                    "add_generation_prompt": add_generation_prompt,
                }
            )
        except _Refusal as refusal:
            raise RowError(f"{REFUSES}{refusal}") from None
        except limits.LimitError as error:
            raise RowError(f"the chat template {self.label} was stopped{_locate_error(error)}: {error}") from None
        except Exception as error:  # a template may raise anything, and its errors are no bugs of sftrun
            raise RowError(f"the chat template fails{_locate_error(error)}: {type(error).__name__}: {error}") from error

    def _adapt_messages(self, messages: Sequence[Message]) -> list[Message]:
        read = [_copy_reasoning(message) for message in messages]
        if self.parts_use != "reads":
            return [_join_parts(message, self.parts_use) for message in read]
        return [_to_list_content(message) for message in read] if self.wraps_text else read

    def _run(self, variables: dict[str, Any]) -> str:
        # Jinja's own render makes a context and copies all globals each time, which is slower than many templates
        context = self._context
        context.parent = variables
        context.vars.clear()
        context.exported_vars.clear()
        self._environment.budget.reset()
        try:
            return self._join(self._compiled.root_render_func(context))
        except Exception:
            self._environment.handle_exception()  # re-raises it with the template's lines

    def _join(self, pieces: Iterator[str]) -> str:
        """Joins what a render writes, and stops it in its own line if that is too much, or no text."""
        found: list[str] = []
        size = 0
        while some := list(itertools.islice(pieces, PIECES)):
            found += some
            size += sum(map(len, some))
            if size > limits.CHARACTERS and isinstance(pieces, Generator):  # the error gets the line of the template
                pieces.throw(limits.LimitError(f"it writes more than {limits.CHARACTERS:,} characters for one row"))
        text = "".join(found)
        if not text.isascii():
            self._check_characters(text)
        return text

    def _check_characters(self, text: str) -> None:
        """Raises LimitError for half a surrogate pair: it is no character, and no tokenizer reads it."""
        try:
            text.encode()
        except UnicodeEncodeError as error:
            escape = repr(text[error.start])
            at = self.source.lower().find(escape.strip("'"))
            where = f" at line {self.source.count(chr(10), 0, at) + 1}" if at >= 0 else ""
            raise limits.LimitError(f"it writes {escape}{where}, half of a surrogate pair and no character") from None


def _check_characters(source: str) -> None:
    try:
        source.encode()
    except UnicodeEncodeError as error:
        line = source.count("\n", 0, error.start) + 1
        message = f"{source[error.start]!r} is half of a surrogate pair and no character"
        raise jinja2.TemplateSyntaxError(message, line) from None


def _copy_reasoning(message: Message) -> Message:
    # As in transformers: the reasoning is copied to the two keys that templates read.
    for name in REASONING:
        reasoning = message.get(name)
        if reasoning is not None:
            return {"thinking": reasoning, **message, "reasoning_content": reasoning}
    return message


def _to_list_content(message: Message) -> Message:
    content = message.get("content")
    return {**message, "content": [{"type": "text", "text": content}]} if isinstance(content, str) else message


def _join_parts(message: Message, use: PartsUse) -> Message:
    parts = message.get("content")
    if not isinstance(parts, list):
        return message
    other = next((part for part in parts if not _is_text_part(part)), None)
    if other is None:
        return {**message, "content": "".join(part["text"] for part in parts)}
    if use == "prints":
        kind = other.get("type") if isinstance(other, dict) else type(other).__name__
        raise _Refusal(f"it takes only texts, and the content of a message ({message['role']}) has a part {kind}")
    return message


def _is_text_part(part: Any) -> bool:
    return isinstance(part, dict) and isinstance(part.get("text"), str) and part.get("type", "text") == "text"


_DICT_ATTRIBUTES = frozenset(dir(dict))


class _Environment(limits.LimitedEnvironment):
    """Jinja's sandbox with a fast path for `message.role`, which does not try attributes first."""

    def getattr(self, obj: Any, attribute: str) -> Any:
        if type(obj) is dict and attribute not in _DICT_ATTRIBUTES:
            try:
                return obj[attribute]
            except KeyError:
                return self.undefined(obj=obj, name=attribute)
        return super().getattr(obj, attribute)


def _make_environment(now: datetime, generation: type[jinja2.ext.Extension]) -> _Environment:
    # Templates come from the internet: the sandbox keeps them away from Python.
    environment = _Environment(trim_blocks=True, lstrip_blocks=True, extensions=[jinja2.ext.loopcontrols, generation])
    environment.filters["tojson"] = limits.limit_numbers(_tojson)
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = now.strftime
    environment.globals["namespace"] = _Namespace
    environment.globals["dict"] = _Dict()
    return environment


class _Refusal(jinja2.TemplateError):
    """An error that the template itself raises."""


def _raise_exception(message: object) -> NoReturn:
    raise _Refusal(str(message))


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    # Jinja's own filter escapes HTML, which no model was trained on.
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


class Generation(jinja2.ext.Extension):
    """The extension for `{% generation %} … {% endgeneration %}`, rendered as if the tags were absent."""

    tags = {"generation"}  # noqa: RUF012  (as Jinja declares it)

    def parse(self, parser: Any) -> jinja2.nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return jinja2.nodes.CallBlock(self.call_method("body"), [], [], body).set_lineno(line)

    def body(self, caller: Callable[[], str]) -> str:
        """Returns the text to write for the text between the tags."""
        return caller()


class _Namespace(jinja2.utils.Namespace):
    """Jinja's namespace without underscored names, which can lead out of the sandbox."""

    def __init__(*args: Any, **attributes: Any) -> None:
        self, *rest = args  # as in Jinja, so that a template may set an attribute named `self`
        values = dict(*rest, **attributes)
        for name in values:
            _check_attribute(name)
        jinja2.utils.Namespace.__init__(self, values)

    def __setitem__(self, name: str, value: Any) -> None:
        _check_attribute(name)
        super().__setitem__(name, value)


def _check_attribute(name: Any) -> None:
    if isinstance(name, str) and name.startswith("_"):
        raise jinja2.exceptions.SecurityError(f"a namespace attribute must not start with an underscore: {name!r}")


class _Dict:
    """A replacement for `dict` in templates that makes dictionaries without exposing the type."""

    def __call__(self, *args: Any, **kwargs: Any) -> dict[Any, Any]:
        return dict(*args, **kwargs)

    def fromkeys(self, keys: Any, value: Any = None) -> dict[Any, Any]:
        return dict.fromkeys(keys, value)


def _make_syntax_problem(error: jinja2.TemplateSyntaxError, source: str, name: str) -> Problem:
    lines = source.splitlines()
    text = lines[error.lineno - 1] if 0 < error.lineno <= len(lines) else None
    where = Place(file=name, line=error.lineno, text=text)
    return Problem(f"the chat template is not valid Jinja: line {error.lineno}: {error.message}", where=where)


def _locate_error(error: BaseException) -> str:
    """Returns the line of the template where an error arose, as ` at line 12`, or an empty text."""
    line, trace = 0, error.__traceback__
    while trace is not None:
        if trace.tb_frame.f_code.co_filename == "<template>":
            line = trace.tb_lineno
        trace = trace.tb_next
    return f" at line {line}" if line else ""
