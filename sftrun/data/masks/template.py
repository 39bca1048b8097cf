"""A chat template, compiled once: renders what transformers' `apply_chat_template` renders, without transformers."""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from functools import cached_property
from typing import Any, NoReturn

import jinja2
import jinja2.ext
import jinja2.nodes
import jinja2.utils
from jinja2.sandbox import ImmutableSandboxedEnvironment

from sftrun.errors import Place, Problem, RowError, UserError
from sftrun.types import Message

REASONING = ("reasoning_content", "thinking", "reasoning")
"""Names under which a message carries its reasoning, the usual one first."""

RESERVED = frozenset({"messages", "tools", "add_generation_prompt"})
"""Variables that only the renderer gives to a template."""

REFUSES = "the chat template refuses: "
NAMELESS = "chat template"


class Template:
    """A chat template with the tokens that it may name (`bos_token`, …) and one clock for all its renders.

    A template that is no valid Jinja raises UserError with the line. `now` is the time that `strftime_now`
    tells, by default the moment of construction: the text of a row must not depend on when it is rendered.
    With `wraps_text` set, it is given each text content as a list of one part, for templates that read no other.
    `name` is what messages call it: a model, a built-in template or a file. `generation` is the extension that
    reads the tags `{% generation %}`. With `missing`, the reason why there is none, it refuses to render.
    """

    missing: Problem | None = None

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
        self.variables = dict(variables)
        self.now = now or datetime.now()
        self._environment = _environment(self.now, generation or Generation)
        try:
            self._compiled = self._environment.from_string(source)
            self._globals = dict(self._compiled.globals)
            self._context = self._compiled.new_context({}, shared=True)
        except jinja2.TemplateSyntaxError as error:
            raise UserError(_syntax_problem(error, source, name)) from None

    @property
    def fingerprint(self) -> str:
        """The SHA-256 of the source."""
        return hashlib.sha256(self.source.encode()).hexdigest()

    @property
    def label(self) -> str:
        """What to call it in a message: its name, or the beginning of its fingerprint."""
        return self.fingerprint[:12] if self.name == NAMELESS else self.name

    @cached_property
    def constants(self) -> frozenset[str]:
        """The string constants in the template's expressions: what it may look for in a message."""
        tree = self._environment.parse(self.source)
        return frozenset(node.value for node in tree.find_all(jinja2.nodes.Const) if isinstance(node.value, str))

    def render(
        self,
        messages: Sequence[Message],
        /,
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = False,
        **template_kwargs: Any,
    ) -> str:
        """The text of a conversation. Raises RowError, with the template's own words where it has any."""
        if self.missing:
            raise UserError(self.missing)
        try:
            return self._run(
                {
                    **self._globals,
                    "documents": None,
                    **self.variables,
                    **template_kwargs,
                    "messages": self._read(messages),
                    "tools": tools,
                    "add_generation_prompt": add_generation_prompt,
                }
            )
        except _Refusal as refusal:
            raise RowError(f"{REFUSES}{refusal}") from None
        except Exception as error:  # anything can go wrong inside a template; it is never a bug of ours
            raise RowError(f"the chat template fails{_line(error)}: {type(error).__name__}: {error}") from error

    def _read(self, messages: Sequence[Message]) -> list[Message]:
        read = [_with_reasoning(message) for message in messages]
        return [_with_parts(message) for message in read] if self.wraps_text else read

    def _run(self, variables: dict[str, Any]) -> str:
        # Jinja's own render makes a context and copies all globals each time, which takes longer than many a template
        context = self._context
        context.parent = variables
        context.vars.clear()
        context.exported_vars.clear()
        try:
            return "".join(self._compiled.root_render_func(context))
        except Exception:
            self._environment.handle_exception()  # raises it again, with lines of the template


def _with_reasoning(message: Message) -> Message:
    # As transformers does: whichever name the reasoning comes under, templates find it under the two they read.
    for name in REASONING:
        reasoning = message.get(name)
        if reasoning is not None:
            return {"thinking": reasoning, **message, "reasoning_content": reasoning}
    return message


def _with_parts(message: Message) -> Message:
    content = message.get("content")
    return {**message, "content": [{"type": "text", "text": content}]} if isinstance(content, str) else message


_OF_DICTS = frozenset(dir(dict))


class _Environment(ImmutableSandboxedEnvironment):
    """Jinja's sandbox, which finds `message.role` at once instead of failing to find an attribute first."""

    def getattr(self, obj: Any, attribute: str) -> Any:
        if type(obj) is dict and attribute not in _OF_DICTS:
            try:
                return obj[attribute]
            except KeyError:
                return self.undefined(obj=obj, name=attribute)
        return super().getattr(obj, attribute)


def _environment(now: datetime, generation: type[jinja2.ext.Extension]) -> ImmutableSandboxedEnvironment:
    # Templates come from the internet: the sandbox keeps them away from Python.
    environment = _Environment(trim_blocks=True, lstrip_blocks=True, extensions=[jinja2.ext.loopcontrols, generation])
    environment.filters["tojson"] = _tojson
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = now.strftime
    environment.globals["namespace"] = _Namespace
    environment.globals["dict"] = _Dict()
    return environment


class _Refusal(jinja2.TemplateError):
    """Raised by a template itself."""


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
    """`{% generation %} … {% endgeneration %}`: rendered as if the tags were not there."""

    tags = {"generation"}  # noqa: RUF012  (as Jinja declares it)

    def parse(self, parser: Any) -> jinja2.nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return jinja2.nodes.CallBlock(self.call_method("body"), [], [], body).set_lineno(line)

    def body(self, caller: Callable[[], str]) -> str:
        """What is written for the text between the tags."""
        return caller()


class _Namespace(jinja2.utils.Namespace):
    """Jinja's namespace without underscored names, which lead out of the sandbox."""

    def __init__(*args: Any, **attributes: Any) -> None:
        self, *rest = args  # as Jinja does it, so that a template may name an attribute `self`
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
    """`dict` for templates: makes dictionaries, and is not the type itself."""

    def __call__(self, *args: Any, **kwargs: Any) -> dict[Any, Any]:
        return dict(*args, **kwargs)

    def fromkeys(self, keys: Any, value: Any = None) -> dict[Any, Any]:
        return dict.fromkeys(keys, value)


def _syntax_problem(error: jinja2.TemplateSyntaxError, source: str, name: str) -> Problem:
    lines = source.splitlines()
    text = lines[error.lineno - 1] if 0 < error.lineno <= len(lines) else None
    where = Place(file=name, line=error.lineno, text=text)
    return Problem(f"the chat template is not valid Jinja: line {error.lineno}: {error.message}", where=where)


def _line(error: BaseException) -> str:
    """Where in the template an error arose: ` at line 12`, or nothing."""
    line, trace = 0, error.__traceback__
    while trace is not None:
        if trace.tb_frame.f_code.co_filename == "<template>":
            line = trace.tb_lineno
        trace = trace.tb_next
    return f" at line {line}" if line else ""
