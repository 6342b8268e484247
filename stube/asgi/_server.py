"""Tells when the server that runs the application is about to stop.

A server waits for open streams before it ends the application's lifespan, but a stream never ends by itself, and ASGI
has no message for the moment between. Therefore the lifespan looks for its server: the coroutine of uvicorn is
suspended on the same loop, because it waits for the lifespan to start. There may be several servers in the process or
on the loop; the right one is that whose `lifespan` runs the current task. Nothing is patched, and two applications
share nothing.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable, Iterator
from types import CoroutineType
from typing import Any

from sse_starlette.sse import AppStatus

__all__ = ["stopping"]


def stopping() -> Callable[[], bool]:
    """Return a function that tells whether the server has begun to stop. Call it in the task that runs the lifespan.

    Under a server that it does not know the function returns `AppStatus.should_exit` of sse-starlette.
    """
    server = _server()
    if server is None:
        return lambda: AppStatus.should_exit

    def has_begun() -> bool:
        # After its maximum number of requests uvicorn stops by itself, and shows this only by no longer listening.
        return bool(server.should_exit or (server.started and not any(one.is_serving() for one in server.servers)))

    return has_begun


def _server() -> Any | None:
    current = asyncio.current_task()
    runner = None if current is None else next(_owners(current), None)
    if runner is not None:
        for task in asyncio.all_tasks():
            for owner in _owners(task):
                if getattr(owner, "lifespan", None) is runner and hasattr(owner, "should_exit"):
                    return owner
    return None


def _owners(task: asyncio.Task[Any]) -> Iterator[object]:
    """Yield the objects in whose methods a task is suspended, the outermost first."""
    coroutine: object = task.get_coro()
    while isinstance(coroutine, CoroutineType):
        yield inspect.getcoroutinelocals(coroutine).get("self")
        coroutine = coroutine.cr_await
