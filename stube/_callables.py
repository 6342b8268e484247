"""Facts about a callable that are known before it is called."""

from __future__ import annotations

from functools import partial
from typing import Any

__all__ = ["is_coroutine_function"]


def is_coroutine_function(function: object) -> bool:
    """Tell whether calling `function` gives a coroutine, which must be awaited.

    That is so for an `async def`, for a method that is one, for an object whose class has such a `__call__`, and for a
    `functools.partial` of any of these. A function that happens to return a coroutine cannot be recognised.

    >>> async def dispatch(cid, event): ...
    >>> is_coroutine_function(dispatch), is_coroutine_function(print)
    (True, False)
    """
    from inspect import iscoroutinefunction  # heavy, and needed once per host

    while isinstance(function, partial):
        function = function.func
    call: Any = getattr(type(function), "__call__", None)  # noqa: B004 - it is not asked whether there is one
    return iscoroutinefunction(function) or iscoroutinefunction(call)
