"""Checks of plain arguments, so that a wrong one is a tq4.UsageError that names it and never a TypeError out of the binding."""

from __future__ import annotations

import operator
import os
from typing import Any

from ._errors import UsageError


def integer(value: Any, name: str, low: int = -(2**31), high: int = 2**31 - 1) -> int:
    if isinstance(value, bool):
        raise UsageError(f"{name} must be an integer, not a bool")
    try:
        number = operator.index(value)
    except TypeError:
        raise UsageError(f"{name} must be an integer, not {type(value).__name__}") from None
    if not low <= number <= high:
        raise UsageError(f"{name} must lie in {low}..{high}, not {number}")
    return number


def boolean(value: Any, name: str) -> bool:
    """True and False, and 1 and 0 as some callers pass."""
    if not isinstance(value, int) or value not in (0, 1):
        raise UsageError(f"{name} must be True or False, not {value if isinstance(value, int) else type(value).__name__}")
    return bool(value)


def text(value: Any, name: str) -> str:
    if not isinstance(value, str):
        raise UsageError(f"{name} must be a string, not {type(value).__name__}")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise UsageError(f"{name} is not valid Unicode") from None
    return value


def number(value: Any, name: str) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise UsageError(f"{name} must be a number, not {type(value).__name__}")
    return float(value)


def path_text(value: Any, name: str) -> str:
    try:
        path = os.fspath(value)
    except TypeError:
        raise UsageError(f"{name} must be a path, not {type(value).__name__}") from None
    if isinstance(path, bytes):
        path = os.fsdecode(path)
    if "\0" in path:
        raise UsageError(f"{name} holds a zero byte")
    return text(path, name)


def side(value: Any) -> str:
    """ "k" or "v", in either case."""
    return choice(value.lower() if isinstance(value, str) else value, "side", ("k", "v"))


def choice(value: Any, name: str, choices: tuple[str, ...]) -> str:
    if not isinstance(value, str) or value not in choices:
        raise UsageError(f"{name} must be one of {choices}, not {value!r}")
    return value
