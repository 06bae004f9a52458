"""What a config changes of another one, as a config file."""

import json
from collections.abc import Mapping
from typing import Any

_WIDTH = 100
_INDENT = "    "


def changes_of(before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, Any]:
    """What must be merged into a config to get another one.

    Lists are replaced as a whole, and dicts that lack a key.

    Args:
        before: The config.
        after: The other one, which has all of its keys at the top.
    """
    changes = {}
    for key, value in after.items():
        old = before.get(key)
        if isinstance(value, Mapping) and isinstance(old, Mapping):
            if old.keys() - value.keys():
                changes[key] = {"_delete_": True, **value}
                continue
            inner = changes_of(old, value)
            if inner:
                changes[key] = inner
        elif key not in before or value != old or type(value) is not type(old):
            changes[key] = value
    return changes


class Name(str):
    """A variable's name, which is written without quotes."""


def name_values(changes: Any, names: Mapping[str, Any]) -> Any:
    """Put the names of variables in the place of their values, and leave out scopes.

    Args:
        changes: Of :func:`changes_of`, or a part.
        names: Values by the names of variables.
    """
    for name, value in names.items():
        if changes == value and type(changes) is type(value):
            return Name(name)
    if isinstance(changes, Mapping):
        items = ((key, part) for key, part in changes.items() if key != "_scope_")
        return {key: name_values(part, names) for key, part in items}
    if isinstance(changes, list | tuple):
        return type(changes)(name_values(part, names) for part in changes)
    return changes


def render(value: Any, indent: int = 0, used: int = 0) -> str:
    """Write a value as code, in lines of up to 100 characters.

    Args:
        value: Made of dicts, lists, tuples and constants.
        indent: Steps that the line is indented.
        used: Characters in front of it.
    """
    line = _one_line(value)
    if len(_INDENT) * indent + used + len(line) <= _WIDTH or not isinstance(
        value, Mapping | list | tuple
    ):
        return line
    inside, outside = _INDENT * (indent + 1), _INDENT * indent
    if isinstance(value, Mapping):
        parts = [f"{key}={render(part, indent + 1, len(key) + 2)}" for key, part in value.items()]
        opening, closing = "dict(", ")"
    else:
        parts = [render(part, indent + 1, 1) for part in value]
        opening, closing = "()" if isinstance(value, tuple) else "[]"
    return opening + "\n" + "".join(f"{inside}{part},\n" for part in parts) + outside + closing


def _one_line(value: Any) -> str:
    if isinstance(value, Mapping):
        return f"dict({', '.join(f'{key}={_one_line(part)}' for key, part in value.items())})"
    if isinstance(value, list):
        return f"[{', '.join(map(_one_line, value))}]"
    if isinstance(value, tuple):
        return f"({', '.join(map(_one_line, value))}{',' if len(value) == 1 else ''})"
    if isinstance(value, Name):
        return str(value)
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False)
    return repr(value)
