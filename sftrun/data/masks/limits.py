"""Limits of a chat template: a render that loops on, or writes too much, stops with the line of the template.

Templates come from the internet. The compiled template counts its steps (each turn of a loop, each call of a macro)
and the characters that it collects, and checks the size of what it keeps in a variable.
"""

import re
import time
from collections.abc import Callable, Iterator
from typing import Any

import jinja2
import jinja2.filters
from jinja2 import nodes
from jinja2.sandbox import ImmutableSandboxedEnvironment

STEPS = 2_000_000  # turns of loops and calls of macros in one render; a talk of 1,000 turns needs some 10,000
CHARACTERS = 1 << 26  # characters that one render writes, or keeps in one variable
SECONDS = 10.0  # CPU seconds that one render may take; a usual one takes 0.0001
LOOK = 64  # steps between two looks at the clock
NUMBER = 1 << 20  # for a width or an indent
POWER = 1000  # for an exponent
BITS = 1 << 16  # largest size of a product, in bits

# formats with a width above NUMBER, or with one that comes from an argument
_PERCENT = re.compile(r"%[^a-zA-Z%]*(?:\d{7,}|\*)")
_BRACES = re.compile(r"\{[^{}]*(?:\d{7,}|\{)")
_BUFFERS = (nodes.Macro, nodes.CallBlock, nodes.AssignBlock, nodes.FilterBlock)


class LimitError(jinja2.TemplateError):
    """A template needs too much time or memory."""


class Budget:
    """The steps, time and characters that the current render may still use; a template has one for all its renders."""

    def __init__(self) -> None:
        self.steps = self.characters = 0
        self.deadline = 0.0

    def reset(self) -> None:
        """Begins a render."""
        self.steps = self.characters = 0

    def count_step(self) -> None:
        """Counts a turn of a loop, or a call of a macro."""
        self.steps += 1
        if not self.steps % LOOK:
            self._check_steps()

    def _check_steps(self) -> None:
        if self.steps > STEPS:
            raise LimitError(f"it takes more than {STEPS:,} steps for one row")
        if self.steps == LOOK:
            self.deadline = time.thread_time() + SECONDS
        if time.thread_time() > self.deadline:
            raise LimitError(f"it takes more than {SECONDS:.0f} seconds for one row")

    def count_characters(self, characters: int) -> None:
        """Counts text that is written."""
        self.characters += characters
        if self.characters > CHARACTERS:
            raise LimitError(f"it writes more than {CHARACTERS:,} characters for one row")


class LimitedEnvironment(ImmutableSandboxedEnvironment):
    """Jinja's sandbox with limits of time and memory, which the sandbox itself does not have."""

    intercepted_binops = frozenset(["*", "**", "%"])

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.budget = Budget()
        self.filters["sftrun_step"] = self._step
        self.filters["sftrun_literal"] = self._count_literal
        self.filters["sftrun_written"] = self._count_written
        self.filters["sftrun_kept"] = _check_size
        self.filters["join"] = _join
        self.filters["replace"] = _replace
        self.filters["format"] = _format
        for name in ("center", "indent"):
            self.filters[name] = limit_numbers(self.filters[name])

    def _generate(self, source: nodes.Template, *args: Any, **kwargs: Any) -> str:
        _instrument(source)
        return super()._generate(source, *args, **kwargs)

    def call(__self, __context: Any, __obj: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: N805 (as in Jinja)
        """Calls a function for a template, unless it is a method that would make a huge text."""
        method = getattr(__obj, "__wrapped__", __obj)  # the sandbox wraps `format`
        text, name = getattr(method, "__self__", None), getattr(method, "__name__", "")
        if isinstance(text, str) or name == "generate_lorem_ipsum":
            _check_numbers(args, kwargs)
            if name in _CHECKS:
                _CHECKS[name](text, *args)
        return super().call(__context, __obj, *args, **kwargs)

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        """Computes a product, a power or a format, unless the result would be huge."""
        if operator == "%":
            _check_format(left, _PERCENT)
        elif operator == "**" and _is_large(right, POWER):
            raise LimitError(f"it computes a power above {POWER}")
        elif operator == "*":
            _check_product(left, right)
        return super().call_binop(context, operator, left, right)

    # Jinja calls filters that take the context when it renders, not when it compiles.
    @jinja2.pass_context
    def _step(self, context: Any, value: Any) -> None:
        self.budget.count_step()

    @jinja2.pass_context
    def _count_literal(self, context: Any, size: int) -> str:
        self.budget.count_characters(size)
        return ""

    @jinja2.pass_context
    def _count_written(self, context: Any, value: Any) -> Any:
        self.budget.count_characters(len(value) if isinstance(value, str) else 0)
        return value


def _instrument(tree: nodes.Template) -> None:
    """Adds the counts to a parsed template."""
    blocks: Iterator[Any] = tree.find_all((nodes.For, nodes.Macro, nodes.CallBlock))
    for loop in blocks:
        step = _make_filter("sftrun_step", nodes.Const(0), loop.lineno)
        loop.body = [nodes.ExprStmt(step, lineno=loop.lineno), *loop.body]
    for assign in tree.find_all(nodes.Assign):
        assign.node = _make_filter("sftrun_kept", assign.node, assign.lineno)
    for output in {id(each): each for each in _find_buffered_outputs(tree)}.values():
        output.nodes = [each for node in output.nodes for each in _count_output(node, output.lineno)]


def _count_output(node: Any, line: int) -> list[nodes.Expr]:
    if isinstance(node, nodes.TemplateData):
        return [node, _make_filter("sftrun_literal", nodes.Const(len(node.data)), line)]
    return [node if isinstance(node, nodes.Const) else _make_filter("sftrun_written", node, line)]


def _find_buffered_outputs(tree: nodes.Template) -> Iterator[nodes.Output]:
    for block in tree.find_all(_BUFFERS):
        yield from block.find_all(nodes.Output)


def _make_filter(name: str, node: Any, line: int) -> nodes.Filter:
    return nodes.Filter(node, name, [], [], None, None, lineno=line)


def limit_numbers(function: Any) -> Any:
    """Returns a filter that refuses large numbers as arguments."""

    def limited(value: Any, *args: Any, **kwargs: Any) -> Any:
        _check_numbers(args, kwargs)
        return function(value, *args, **kwargs)

    return limited


@jinja2.pass_eval_context
def _join(context: Any, value: Any, d: str = "", attribute: Any = None) -> str:
    items = list(value)
    _check_join(d, items)
    return jinja2.filters.sync_do_join(context, items, d, attribute)


@jinja2.pass_eval_context
def _replace(context: Any, text: Any, old: str, new: str, count: int | None = None) -> str:
    _check_replace(text, old, new)
    return jinja2.filters.do_replace(context, text, old, new, count)


def _format(text: str, *args: Any, **kwargs: Any) -> str:
    _check_format(text, _PERCENT)
    return jinja2.filters.do_format(text, *args, **kwargs)


def _check_size(value: Any) -> Any:
    """Returns a value that a template keeps; raises LimitError if it is huge."""
    if _measure(value) > CHARACTERS:
        raise LimitError(f"it keeps more than {CHARACTERS:,} characters in a variable")
    return value


def _check_numbers(args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    for value in (*args, *kwargs.values()):
        if _is_large(value, NUMBER):
            raise LimitError(f"it calls a function with a number above {NUMBER:,}")


def _check_format(text: Any, wide: re.Pattern[str]) -> None:
    if isinstance(text, str) and wide.search(text):
        raise LimitError(f"it formats a text with a width above {NUMBER:,}, or one that is computed")


def _check_product(left: Any, right: Any) -> None:
    if isinstance(left, int) and isinstance(right, int):
        if left.bit_length() + right.bit_length() > BITS:
            raise LimitError(f"it computes a number of more than {BITS:,} bits")
        return
    for value, times in ((left, right), (right, left)):
        if isinstance(times, int) and _measure(value) * times > CHARACTERS:
            raise LimitError(f"it repeats a text to more than {CHARACTERS:,} characters")


def _check_join(separator: Any, items: Any = (), *_: Any) -> None:
    if isinstance(items, list | tuple) and isinstance(separator, str):
        size = len(separator) * len(items) + sum(len(item) for item in items if isinstance(item, str))
        if size > CHARACTERS:
            raise LimitError(f"it joins texts to more than {CHARACTERS:,} characters")


def _check_replace(text: Any, old: Any = "", new: Any = "", *_: Any) -> None:
    if not (isinstance(text, str) and isinstance(old, str) and isinstance(new, str)):
        return
    if len(text) * len(new) > CHARACTERS and text.count(old) * len(new) > CHARACTERS:
        raise LimitError(f"it replaces text by more than {CHARACTERS:,} characters")


def _is_large(value: Any, limit: int) -> bool:
    return isinstance(value, int) and abs(value) > limit


def _measure(value: Any) -> int:
    """Returns the size of a text, or of a list in characters that take as much memory; 0 for other values."""
    if isinstance(value, str):
        return len(value)
    return 8 * len(value) if isinstance(value, list | tuple) else 0


_CHECKS: dict[str, Callable[..., None]] = {
    "format": lambda text, *_: _check_format(text, _BRACES),
    "format_map": lambda text, *_: _check_format(text, _BRACES),
    "join": _check_join,
    "replace": _check_replace,
}
