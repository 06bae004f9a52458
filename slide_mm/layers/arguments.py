"""Ranges of constructors' arguments, told in one line that names argument and value."""

import operator
import reprlib
from collections.abc import Iterable, Mapping
from numbers import Real
from typing import Any

import numpy as np


def refuse(name: str, value: Any, wanted: str) -> ValueError:
    """Make the error for a value that is out of its range.

    Args:
        name: The argument.
        value: What was given.
        wanted: What to give instead, such as ``'give a positive number'``.
    """
    return ValueError(f"{name} is {' '.join(reprlib.repr(value).split())}: {wanted}")


# Beyond it are typing errors, for which there is no memory.
_MOST = 1 << 16


def whole_number(
    name: str, value: Any, least: int = 1, most: int = _MOST, wanted: str | None = None
) -> int:
    """Take a whole number, of Python or NumPy, neither too small nor too large.

    Raises:
        ValueError: If it is something else.
    """
    wanted = wanted or f"give a whole number from {least} to {most}"
    try:
        number = operator.index(value)
    except TypeError as error:
        raise refuse(name, value, wanted) from error
    if isinstance(value, bool) or not least <= number <= most:
        raise refuse(name, value, wanted)
    return number


def odd_number(name: str, value: Any) -> int:
    """Take the side of a neighbourhood.

    Raises:
        ValueError: If it is no odd whole number from 1 to 31, whose kernels take a megabyte a
            channel.
    """
    wanted = "give a positive odd number to 31, such as 3, so that the neighbourhood has a centre"
    number = whole_number(name, value, 1, 31, wanted)
    if number % 2 == 0:
        raise refuse(name, value, wanted)
    return number


def rate(name: str, value: Any, below_one: bool = False) -> float:
    """Take a probability of dropping.

    Raises:
        ValueError: If it is no number from 0 to 1, or is 1 where ``below_one``.
    """
    if _is_number(value) and 0 <= value <= 1 and not (below_one and value == 1):
        return float(value)
    raise refuse(name, value, f"give a number from 0 to {'less than 1' if below_one else '1'}")


def positive_number(name: str, value: Any) -> float:
    """Take a number above 0.

    Raises:
        ValueError: If it is something else.
    """
    if _is_number(value) and 0 < value <= _MOST:
        return value
    raise refuse(name, value, f"give a number above 0, to {_MOST}")


def flag(name: str, value: Any) -> bool:
    """Take a truth value.

    Raises:
        ValueError: If it is something else: the text 'no' would count as true.
    """
    if isinstance(value, bool | np.bool_):
        return bool(value)
    raise refuse(name, value, "give True or False")


def sequence(name: str, value: Any, wanted: str) -> tuple:
    """Take several values.

    Raises:
        ValueError: If it is one, or a text.
    """
    if isinstance(value, Iterable) and not isinstance(value, str | bytes | Mapping):
        return tuple(value)
    raise refuse(name, value, wanted)


def _is_number(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)
