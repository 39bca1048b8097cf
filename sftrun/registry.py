"""Finds plugins and their components; a broken plugin is reported when it is used, and affects no other plugin."""

import contextlib
import difflib
import functools
import importlib
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path
from types import FrameType, ModuleType
from typing import Any, NamedTuple

import msgspec
import pluggy

import sftrun
from sftrun import api_changes, hookspecs
from sftrun.errors import Problem, UserError
from sftrun.hookspecs import KINDS, PROJECT
from sftrun.kinds import OPTIONAL, PROTOCOLS
from sftrun.options import Use, as_use, expand, parse, schema

ALIKE = 0.7  # similarity from 0 to 1; below it a name is not a typo, and the list of names helps more


class Registered(msgspec.Struct, frozen=True):
    """A registered component, with the plugin that registered it."""

    kind: str
    name: str
    factory: Callable[..., Any] | str
    options: type | None
    description: str
    module: str
    distribution: str
    version: str
    api: int = hookspecs.API_VERSION  # version that the plugin declares
    warnings: tuple[str, ...] = ()  # uses of deprecated methods

    def schema(self) -> dict[str, Any]:
        """Returns the JSON Schema of `with`: closed, and empty if there are no options."""
        if self.options is None:
            return {"type": "object", "properties": {}, "additionalProperties": False}
        return schema(self.options)


class Broken(msgspec.Struct, frozen=True):
    """A plugin that could not be loaded, with the reason."""

    module: str
    distribution: str
    version: str
    reason: str


class Registry:
    """The components of one process, by kind and name."""

    def __init__(self) -> None:
        self.components: dict[str, dict[str, Registered]] = {kind: {} for kind in KINDS}
        self.broken: list[Broken] = []
        self.clashes: dict[tuple[str, str], Problem] = {}
        self._hooks = hook_manager()
        for module in _builtin_modules():
            self.load(module, "sftrun", sftrun.__version__, functools.partial(importlib.import_module, module))
        for entry in sorted(metadata.entry_points(group=PROJECT), key=lambda entry: (entry.name, entry.value)):
            name, version = (entry.dist.name, entry.dist.version) if entry.dist else ("?", "?")
            self.load(entry.value, name, version, entry.load)

    def load(self, module: str, distribution: str, version: str, importer: Callable[[], Any]) -> None:
        """Loads one plugin with all its components; if it fails, records it as broken, without any component."""
        try:
            with plugin_code() as interrupted:
                plugin = importer()
                components = collect(self._hooks, plugin, Origin(module, distribution, version))
        except BaseException as error:  # whatever a plugin raises, sftrun continues
            if interrupted:
                raise
            self.broken.append(Broken(module, distribution, version, describe_exception(error)))
            return
        for item in components:
            self._add(item)

    def _add(self, item: Registered) -> None:
        first = self.components[item.kind].get(item.name)
        if first is None:
            self.components[item.kind][item.name] = item
            return
        self.clashes[item.kind, item.name] = Problem(
            f"two plugins register the {item.kind} '{item.name}': {first.module} of {first.distribution} "
            f"{first.version} and {item.module} of {item.distribution} {item.version}",
            hint="uninstall one of the two",
        )

    def names(self, kind: str) -> list[str]:
        """Returns the names of the components of one kind, sorted."""
        return sorted(self.components[kind])

    def unknown(self, kind: str, name: str) -> Problem | None:
        """Returns the problem of a name that is unknown or that two plugins register; None for any other."""
        if name in self.components[kind]:
            return self.clashes.get((kind, name))
        return Problem(f"unknown {kind} '{name}'", hint=self._suggestion(kind, name))

    def _suggestion(self, kind: str, name: str) -> str:
        broken = "".join(f"; the plugin {b.module} of {b.distribution} is broken: {b.reason}" for b in self.broken)
        close = difflib.get_close_matches(name, self.names(kind), n=1, cutoff=ALIKE)
        if close:
            return f"did you mean '{close[0]}'?{broken}"
        installed = f"installed are: {', '.join(self.names(kind)) or 'none'}"
        return f"{installed}{broken or '; docs/plugins.md lists plugins that bring others'}"

    def get(self, kind: str, name: str) -> Registered:
        """Returns one component; raises UserError, with a suggestion, for an unknown name."""
        problem = self.unknown(kind, name)
        if problem:
            raise UserError(problem)
        return self.components[kind][name]

    def create(self, kind: str, use: Use) -> Any:
        """Creates the component that `use` names, with its options."""
        item = self.get(kind, use.use)
        if item.options is None and use.with_:
            raise UserError(f"the {kind} '{use.use}' has no options, but was given {', '.join(use.with_)}")
        with plugin_code():
            factory = _resolve(item.factory)
            check_class(item, factory)
            return factory() if item.options is None else factory(parse(expand(use.with_), item.options))

    def warnings(self, kind: str, name: str) -> list[Problem]:
        """Returns warnings about the plugin API that a component uses; it has been created before."""
        item = self.get(kind, name)
        hint = f"upgrade {item.distribution}, or tell its authors"
        return [
            Problem(f"the {kind} '{name}' of {item.distribution} {item.version} {text}", hint=hint, severity="warning")
            for text in check_class(item, _resolve(item.factory))
        ]


def _builtin_modules() -> list[str]:
    files = Path(__file__).with_name("builtin").glob("*/[!_]*.py")
    return sorted(f"sftrun.builtin.{file.parent.name}.{file.stem}" for file in files)


def describe_exception(error: BaseException) -> str:
    """Returns the type and the message of an exception, whatever a plugin has made of it."""
    try:
        text = str(error)
    except BaseException as failed:
        text = f"its message cannot be read ({type(failed).__name__})"
    return escape_controls(f"{type(error).__name__}: {text}")


def escape_controls(text: str) -> str:
    """Returns a text whose control characters, which a terminal obeys, are written as escapes."""
    return "".join(each if each.isprintable() or each == "\n" else ascii(each)[1:-1] for each in text)


@contextlib.contextmanager
def plugin_code() -> Iterator[list[int]]:
    """A context for code of plugins: what it prints goes to standard error, because standard output may be JSON.

    Yields a list that has an item once Ctrl-C was pressed; any other KeyboardInterrupt is the plugin's.
    """
    interrupted: list[int] = []
    before = signal.getsignal(signal.SIGINT)
    takes_signals = threading.current_thread() is threading.main_thread() and callable(before)

    def handle(number: int, frame: FrameType | None) -> None:
        interrupted.append(number)
        assert callable(before)
        before(number, frame)

    if takes_signals:
        signal.signal(signal.SIGINT, handle)
    try:
        with contextlib.redirect_stdout(sys.stderr):
            yield interrupted
    finally:
        if takes_signals:
            signal.signal(signal.SIGINT, before)


class Origin(NamedTuple):
    """The module and the distribution of a plugin."""

    module: str
    distribution: str
    version: str


def hook_manager() -> pluggy.PluginManager:
    """Returns a manager that knows the hooks of sftrun, for `collect`."""
    hooks = pluggy.PluginManager(PROJECT)
    hooks.add_hookspecs(hookspecs)
    return hooks


def collect(hooks: pluggy.PluginManager, plugin: ModuleType, origin: Origin) -> list[Registered]:
    """Returns the components that one plugin registers; raises if any of them is wrong."""
    api = _check_version(plugin, origin)
    found: list[Registered] = []
    try:
        hooks.register(plugin, origin.module)
        hooks.check_pending()  # a misspelled hook name is an error, not a silent no-op
        for kind in KINDS:
            getattr(hooks.hook, f"register_{kind}s")(register=_register(found, kind, plugin, origin, api))
    finally:
        if hooks.is_registered(plugin):
            hooks.unregister(plugin)  # only one at a time: nothing that it does reaches another
    if not found:
        raise ValueError(f"{origin.module} registers nothing; it needs a function marked @sftrun.hookimpl")
    return found


def _check_version(plugin: ModuleType, origin: Origin) -> int:
    """Returns the API version that a plugin declares; raises ValueError for one that this sftrun does not support."""
    module, newest, oldest = origin.module, hookspecs.API_VERSION, hookspecs.OLDEST_API_VERSION
    needed = newest if origin.distribution == "sftrun" else getattr(plugin, "SFTRUN_API", None)
    if needed is None:
        raise ValueError(f"{module} declares no API version; add SFTRUN_API = {newest}, the lowest that it needs")
    if not isinstance(needed, int) or needed > newest:
        raise ValueError(f"{module} needs API version {needed}, and this sftrun has {newest}: upgrade sftrun")
    if needed < oldest:
        raise ValueError(f"{module} needs API version {needed}; this sftrun supports {oldest} and newer")
    return needed


def _register(found: list[Registered], kind: str, plugin: ModuleType, origin: Origin, api: int) -> hookspecs.Register:
    def register(
        name: str,
        factory: Callable[..., Any] | str,
        *,
        options: type | None = None,
        description: str | None = None,
    ) -> None:
        if not isinstance(name, str) or not name.strip() or not name.isprintable():
            raise ValueError(f"register_{kind}s was given a name that is no text: {type(name).__name__}")
        if not isinstance(factory, str) and not callable(factory):
            raise ValueError(f"the {kind} '{name}' is neither a class nor text 'module:name': {type(factory).__name__}")
        text = description or (plugin if isinstance(factory, str) else factory).__doc__ or ""
        first = escape_controls(text.strip().split("\n", 1)[0])
        if options is not None:
            schema(options)  # options that have no schema break the plugin now, not a recipe later
        warnings = _check_methods(factory, kind, name, api) if isinstance(factory, type) else ()
        found.append(Registered(kind, name, factory, options, first, *origin, api, warnings))

    return register


def check_class(item: Registered, factory: Callable[..., Any]) -> tuple[str, ...]:
    """Returns warnings about the methods of a component, if its imported factory is a class.

    Raises ValueError for methods that are missing, removed, or misspelled.
    """
    factory_class = factory.func if isinstance(factory, functools.partial) else factory
    return _check_methods(factory_class, item.kind, item.name, item.api) if isinstance(factory_class, type) else ()


@functools.cache
def _check_methods(factory: type, kind: str, name: str, api: int) -> tuple[str, ...]:
    """Returns warnings about the methods and attributes of a component's class that have changed since `api`.

    Raises ValueError for a missing method, a removed one, or a name that is nearly the name of an optional one.
    """
    required = [each for each in vars(PROTOCOLS[kind]) if not each.startswith("_")]
    missing = [each for each in required if not callable(getattr(factory, each, None))]
    if missing:
        raise ValueError(f"the {kind} '{name}' lacks the method {', '.join(missing)}()")
    changes, known, warnings = api_changes.of_kind(kind), {*required, *OPTIONAL[kind]}, []
    for own in (each for each in dir(factory) if not each.startswith("_")):
        change = changes.get(own)
        if change and change.what == "removed":
            raise ValueError(f"the {kind} '{name}' {api_changes.removed_message(change)}")
        if change and (warning := api_changes.warning(change, api)):
            warnings.append(warning)
        if own not in known:
            later = {each for each, change in changes.items() if change.what == "added" and change.version > api}
            _check_spelling(factory, own, known - later, f"the {kind} '{name}'")
    return tuple(warnings)


def _check_spelling(factory: type, own: str, known: set[str], who: str) -> None:
    spellings = {each.removeprefix("check_"): each for each in known} | {each: each for each in known}
    close = difflib.get_close_matches(own, spellings, n=1, cutoff=0.8)
    if close and not hasattr(factory, spellings[close[0]]):
        message = f"{who} has '{own}', which nothing calls; did you mean '{spellings[close[0]]}'?"
        raise ValueError(f"{message} (if it is your own name, begin it with an underscore)")


def _resolve(factory: Callable[..., Any] | str) -> Callable[..., Any]:
    if not isinstance(factory, str):
        return factory
    module, _, name = factory.partition(":")
    resolved: Callable[..., Any] = getattr(importlib.import_module(module), name)
    return resolved


@functools.cache
def current() -> Registry:
    """Returns the registry of this process, created on first use."""
    return Registry()


def create(kind: str, use: str | Use) -> Any:
    """Creates a component from this process's registry; for components that use other components."""
    return current().create(kind, as_use(use))


def source_files(item: Registered) -> list[Path]:
    """Returns the source files that a component may depend on.

    They are the folder of a component of sftrun, the whole package of a plugin, or for a plugin of single modules the
    modules of its distribution.
    """
    name = item.module.split(":", 1)[0]
    file = getattr(sys.modules.get(name), "__file__", None)
    if not file:
        return []
    if item.distribution == PROJECT:
        return list(Path(file).parent.glob("*.py"))
    top = name.split(".", 1)[0]
    roots = list(getattr(sys.modules.get(top), "__path__", ()))
    if roots:
        return [path for root in roots for path in Path(root).rglob("*.py")]
    return sorted({Path(file), *_list_installed(item.distribution)})


def _list_installed(distribution: str) -> list[Path]:
    try:
        listed = metadata.files(distribution) or []
    except metadata.PackageNotFoundError:
        return []
    return [path for each in listed if each.suffix == ".py" and (path := Path(str(each.locate()))).is_file()]
