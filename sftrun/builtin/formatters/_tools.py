"""Tools and tool calls: reads them into the shape that chat templates expect."""

from typing import Any, Literal

import sftrun
from sftrun.builtin.formatters._values import describe_type, parse_json, quote_value, remove_nulls, write_json

Arguments = Literal["object", "text"]
COLUMNS = ("tools", "functions")
CALL_KEYS = ("id", "type", "index")


def read_tools(data: dict[str, Any]) -> list[dict[str, Any]] | None:
    """Reads the tools of a row, from the column `tools` or, as OpenAI named it first, `functions`."""
    given = [column for column in COLUMNS if data.get(column) not in (None, "", [])]
    if len(given) > 1:
        raise sftrun.RowError("has both tools and functions; keep one of them")
    if not given:
        return None
    (column,) = given
    specs = _check_list(_read_value(data[column], column), column)
    return [_read_tool(spec, f"{column}[{index}]") for index, spec in enumerate(specs)] or None


def read_template_kwargs(data: dict[str, Any]) -> dict[str, Any]:
    """Reads the template variables of a row, from its column `chat_template_kwargs`."""
    where = "chat_template_kwargs"
    return _check_object(_read_value(data[where], where), where) if data.get(where) not in (None, "") else {}


def _read_value(value: Any, where: str) -> Any:
    """Parses JSON text, in which a null is meant; removes nulls from any other value."""
    return parse_json(value, where) if isinstance(value, str) else remove_nulls(value, where)


def _check_list(value: Any, where: str) -> list[Any]:
    if not isinstance(value, list):
        raise sftrun.RowError(f"{where} must be a list, not {describe_type(value)}")
    return value


def _check_object(value: Any, where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise sftrun.RowError(f"{where} must be an object, not {describe_type(value)}")
    return value


def _read_tool(spec: Any, where: str) -> dict[str, Any]:
    found = _check_object(parse_json(spec, where) if isinstance(spec, str) else spec, where)
    _check_type(found, where)
    if isinstance(found.get("function"), dict):
        _check_name(found["function"], f"{where}.function")
        return {"type": "function", **found}
    _check_name(found, where)
    return {"type": "function", "function": {key: item for key, item in found.items() if key != "type"}}


def read_calls(value: Any, where: str, arguments: Arguments) -> list[dict[str, Any]]:
    """Reads the calls of a message: a list, or a single one."""
    found = _read_value(value, where)
    if isinstance(found, dict):
        return [_read_call(found, where, arguments)]
    if not _check_list(found, where):
        raise sftrun.RowError(f"{where} has no call")
    return [_read_call(item, f"{where}[{index}]", arguments) for index, item in enumerate(found)]


def _read_call(item: Any, where: str, arguments: Arguments) -> dict[str, Any]:
    """Reads a call into OpenAI's shape: `{"type": "function", "function": {"name": …, "arguments": …}}`, and an id."""
    given = _drop_nulls(item, where)
    around = {key: given.pop(key) for key in CALL_KEYS if key in given}
    _check_type(around, where)
    function = _drop_nulls(given.pop("function"), f"{where}.function") if "function" in given else given
    others = {} if function is given else given
    unread = [*others, *(key for key in function if key not in ("name", "arguments"))]
    if unread:
        raise sftrun.RowError(f"{where} has {quote_value(unread[0])}, which is not read")
    _check_name(function, where)
    written = _read_arguments(function.get("arguments"), f"{where}.arguments", arguments)
    return {**around, "type": "function", "function": {"name": function["name"], "arguments": written}}


def _drop_nulls(value: Any, where: str) -> dict[str, Any]:
    return {key: each for key, each in _check_object(value, where).items() if each is not None}


def _read_arguments(value: Any, where: str, wanted: Arguments) -> Any:
    # Most templates write arguments with `tojson`, which would quote JSON text a second time; few join strings.
    given = {} if value is None or (isinstance(value, str) and not value.strip()) else value
    found = _check_object(parse_json(given, where) if isinstance(given, str) else given, where)
    if wanted == "object":
        return found
    return given if isinstance(given, str) else write_json(found)


def _check_type(found: dict[str, Any], where: str) -> None:
    if found.get("type", "function") != "function":
        raise sftrun.RowError(f"{where}: only functions are supported as tools, not {quote_value(found['type'])}")


def _check_name(function: dict[str, Any], where: str) -> None:
    name = function.get("name")
    if not isinstance(name, str) or not name:
        raise sftrun.RowError(f"{where} has no function name")
