"""The backend of asyncio applications: the event loop is the scheduler, and dispatch may be a coroutine function.

No thread and no polling: the loop has one armed timer, for the earliest due instant. Loops let timers go early, so the
registry's own clock decides when it rings, and it is armed anew. Conversations interleave: a handler that waits holds
up its own conversation only. A handler that blocks holds up the loop, and with it everything.

**Which loop.** The one given as `loop`; else the running one when the first operation is called on one. When that loop
has been closed, what is pending waits for the next: one registry, made at import, serves every `asyncio.run` of a
program. Deliveries that were running when their loop closed are ended, and have failed.

**Which thread.** Operations may be called from any thread; they take a lock for microseconds and never wait for the
loop. Dispatch and `on_error` run on the loop's thread. There, `close` does not wait, and `settle` and `join` raise:
await `aclose`, `settled` and `joined` instead.

**How it delivers.** A round is a callback of the loop. It takes what is ready in the ready order and calls dispatch
itself, until nothing is left or its slice of time is over; or, for a coroutine function, starts a task for each
conversation that has none. Such a runner claims one delivery after the other, so that claiming and entering the handler
are one step of the loop, and ends when its mailbox is empty. The mailbox refers to it, because the loop refers to its
tasks weakly. Each runner, and each call of a plain function, has an empty context of its own: nothing of the caller's
context is kept.

Races, which the order of the lines avoids:

1. Something is added between the look that finds nothing and the arming: the look sets `sleep_until` under the lock,
   the adding thread sees it, and its wake-up comes after this callback (G10).
2. The loop closes between two lines of a call: then the call finds it closed, and so does the next operation.
3. A runner is cancelled before its first step, so none of its own lines runs: its done callback does.
4. A signal handler raises in a round: the round gives back the mailboxes that it served, and is called again.
5. `asyncio.run` cancels all tasks in the end and lets the loop run a little longer: nothing is begun until some task of
   the loop is not being cancelled, so that what is pending waits for the next loop.
"""

from stube_backends.aio._registry import AsyncioRegistry

__all__ = ["AsyncioRegistry"]
