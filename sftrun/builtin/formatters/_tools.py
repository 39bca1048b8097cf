"""Tools, and calls of them, in the shape that chat templates read."""

from typing import Any, Literal

import sftrun
from sftrun.builtin.formatters._values import cleaned, from_json, kind, shown, to_json

Arguments = Literal["object", "text"]
COLUMNS = ("tools", "functions")
AROUND = ("id", "type", "index")


def tools(data: dict[str, Any]) -> list[dict[str, Any]] | None:
    """The tools of a row, from the column `tools` or, as OpenAI named it first, `functions`."""
    given = [column for column in COLUMNS if data.get(column) not in (None, "", [])]
    if len(given) > 1:
        raise sftrun.RowError("has both tools and functions; keep one of them")
    if not given:
        return None
    (column,) = given
    specs = _list(_read(data[column], column), column)
    return [_tool(spec, f"{column}[{index}]") for index, spec in enumerate(specs)] or None


def template_kwargs(data: dict[str, Any]) -> dict[str, Any]:
    """What the column `chat_template_kwargs` of a row gives to the template."""
    where = "chat_template_kwargs"
    return _object(_read(data[where], where), where) if data.get(where) not in (None, "") else {}


def _read(value: Any, where: str) -> Any:
    """A JSON text as it stands, because a null in it was meant; anything else without nulls."""
    return from_json(value, where) if isinstance(value, str) else cleaned(value, where)


def _list(value: Any, where: str) -> list[Any]:
    if not isinstance(value, list):
        raise sftrun.RowError(f"{where} must be a list, not {kind(value)}")
    return value


def _object(value: Any, where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise sftrun.RowError(f"{where} must be an object, not {kind(value)}")
    return value


def _tool(spec: Any, where: str) -> dict[str, Any]:
    found = _object(from_json(spec, where) if isinstance(spec, str) else spec, where)
    _check_type(found, where)
    if isinstance(found.get("function"), dict):
        _check_name(found["function"], f"{where}.function")
        return {"type": "function", **found}
    _check_name(found, where)
    return {"type": "function", "function": {key: item for key, item in found.items() if key != "type"}}


def calls(value: Any, where: str, arguments: Arguments) -> list[dict[str, Any]]:
    """The calls of a message: a list, or one by itself."""
    found = _read(value, where)
    if isinstance(found, dict):
        return [_call(found, where, arguments)]
    if not _list(found, where):
        raise sftrun.RowError(f"{where} has no call")
    return [_call(item, f"{where}[{index}]", arguments) for index, item in enumerate(found)]


def _call(item: Any, where: str, arguments: Arguments) -> dict[str, Any]:
    """OpenAI's shape: `{"type": "function", "function": {"name": …, "arguments": …}}`, and an id where there is one."""
    given = _given(item, where)
    around = {key: given.pop(key) for key in AROUND if key in given}
    _check_type(around, where)
    function = _given(given.pop("function"), f"{where}.function") if "function" in given else given
    beside = {} if function is given else given
    unread = [*beside, *(key for key in function if key not in ("name", "arguments"))]
    if unread:
        raise sftrun.RowError(f"{where} has {shown(unread[0])}, which is not read")
    _check_name(function, where)
    written = _arguments(function.get("arguments"), f"{where}.arguments", arguments)
    return {**around, "type": "function", "function": {"name": function["name"], "arguments": written}}


def _given(value: Any, where: str) -> dict[str, Any]:
    return {key: each for key, each in _object(value, where).items() if each is not None}


def _arguments(value: Any, where: str, wanted: Arguments) -> Any:
    # Most templates write arguments with `tojson`, which puts JSON text into quotes once more; few join strings.
    given = {} if value is None or (isinstance(value, str) and not value.strip()) else value
    found = _object(from_json(given, where) if isinstance(given, str) else given, where)
    if wanted == "object":
        return found
    return given if isinstance(given, str) else to_json(found)


def _check_type(found: dict[str, Any], where: str) -> None:
    if found.get("type", "function") != "function":
        raise sftrun.RowError(f"{where}: only functions are known as tools, not {shown(found['type'])}")


def _check_name(function: dict[str, Any], where: str) -> None:
    name = function.get("name")
    if not isinstance(name, str) or not name:
        raise sftrun.RowError(f"{where} has no name of a function")
