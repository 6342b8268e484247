"""Whether the server that runs the application is about to stop.

A server waits for open streams before it tells the application's lifespan to end, and a stream would be open for ever.
ASGI has no message for the moment between. So the lifespan looks for its server: uvicorn's own coroutine is suspended
on the same loop, waiting for the lifespan to start, and that it is the one, of several in the process or on the loop,
shows in that its `lifespan` is what runs this task. Nothing is patched and nothing is shared by two applications.
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
    """A function that says whether the server has begun to stop. Call it in the task that runs the lifespan.

    Under a server that it does not know the function says what `AppStatus.should_exit` of sse-starlette says.
    """
    server = _server()
    if server is None:
        return lambda: AppStatus.should_exit

    def has_begun() -> bool:
        # The second is for a stop of the server's own, after so and so many requests: it only ceases to listen.
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
    """The objects whose methods a task is in, from the outermost."""
    coroutine: object = task.get_coro()
    while isinstance(coroutine, CoroutineType):
        yield inspect.getcoroutinelocals(coroutine).get("self")
        coroutine = coroutine.cr_await
