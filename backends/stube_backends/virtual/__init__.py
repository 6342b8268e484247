"""A registry on a clock that only its caller moves, for tests of host applications.

The same engine and the same delivering as `memory`, so that what a test sees is what production does; no thread, no
waiting, and every run is like the one before. Deliveries run on the caller's stack, inside `advance`, `run_until_idle`,
`settle` and `join`; a handler sees its own instant, and what it schedules inside the window begins inside the window.
Operations may be called from any thread; the clock is moved by one thread at a time.

For a host on asyncio, dispatch may be a coroutine function: then `advance_async`, `settled` and `joined` deliver, and
the next delivery begins when the handler before it has returned, so that these runs repeat exactly as well.
"""

from stube_backends.virtual._registry import VirtualRegistry

__all__ = ["VirtualRegistry"]
