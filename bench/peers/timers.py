"""Other libraries that keep timers: each peer with the dict of handles per conversation that its user would keep.

None of these has conversations. To end one, a user stores every handle under the conversation's name, removes it when
the timer fires, with the dict of a conversation that has no other, and cancels the handles one by one. In each peer
`fill` is a loop of its own rather than a function that is called for every timer, because this is the least that any
user would pay.
"""

from __future__ import annotations

import asyncio
import sched
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from datetime import datetime, timedelta
from typing import Any, Protocol

from bench.measuring import Plan

__all__ = [
    "Asyncio",
    "BackgroundScheduler",
    "CancelledScheduler",
    "FiringScheduler",
    "PausedScheduler",
    "Scheduler",
    "ThreadTimers",
    "TimerPeer",
    "TwistedClock",
    "Uvloop",
    "VirtualTime",
]


class TimerPeer(Protocol):
    """One peer, created for each round."""

    name: str
    needs: str | None
    """The module that it needs; None for the standard library."""
    most: int | None
    """The largest number of timers with which it is measured; None for as many as a target says."""

    def fill(self, plan: Plan) -> None:
        """Schedule every timer of the plan and store its handle."""
        ...

    def cancel(self, names: Sequence[str]) -> None:
        """Cancel all timers of these conversations."""
        ...

    def fire(self) -> None:
        """Run until every scheduled timer has fired; all of them are overdue."""
        ...

    def close(self) -> None:
        """Release everything."""
        ...


def _forget(handles: dict[str, dict[int, Any]], cid: str, key: int) -> None:
    """Remove the handle of a timer that fires. The peers of the targets have these lines in place of the call."""
    mine = handles[cid]
    del mine[key]
    if not mine:
        del handles[cid]


class Asyncio:
    """The event loop of the standard library.

    It lacks conversations, and calls from other threads. A cancelled timer stays in the heap, with the objects that it
    holds, until it is due or half of the heap is cancelled. A callback that blocks stops everything.
    """

    name = "asyncio"
    needs: str | None = None
    most: int | None = None
    new_loop: Callable[[], asyncio.AbstractEventLoop] = staticmethod(asyncio.new_event_loop)

    def __init__(self) -> None:
        self.loop = self.new_loop()
        self.handles: defaultdict[str, dict[int, asyncio.TimerHandle]] = defaultdict(dict)
        self.left = 0

    def _fired(self, cid: str, instance_id: str, name: str, key: int) -> None:
        mine = self.handles[cid]
        del mine[key]
        if not mine:
            del self.handles[cid]
        self.left -= 1
        if not self.left:
            self.loop.stop()

    def fill(self, plan: Plan) -> None:
        call_later, handles, fired = self.loop.call_later, self.handles, self._fired
        for key, (cid, delay) in enumerate(plan.in_seconds):
            handles[cid][key] = call_later(delay, fired, cid, "main", "tick", key)
        self.left += plan.count

    def cancel(self, names: Sequence[str]) -> None:
        for cid in names:
            for handle in self.handles.pop(cid).values():
                handle.cancel()

    def fire(self) -> None:
        self.loop.run_forever()

    def close(self) -> None:
        self.loop.close()


class Uvloop(Asyncio):
    """The event loop on libuv.

    It lacks what asyncio lacks, and delays are whole milliseconds.
    """

    name = "uvloop"
    needs: str | None = "uvloop"

    def __init__(self) -> None:
        import uvloop

        self.new_loop = uvloop.new_event_loop
        super().__init__()


class Scheduler:
    """`sched` of the standard library: a heap that its user runs.

    It lacks conversations, a thread of its own, and a wake-up when another thread adds a timer. Cancelling searches the
    whole heap and sorts it again.
    """

    name = "sched"
    needs: str | None = None
    most: int | None = None

    def __init__(self) -> None:
        self.scheduler = sched.scheduler(time.monotonic, time.sleep)
        self.handles: defaultdict[str, dict[int, sched.Event]] = defaultdict(dict)

    def _fired(self, cid: str, instance_id: str, name: str, key: int) -> None:
        _forget(self.handles, cid, key)

    def fill(self, plan: Plan) -> None:
        enter, handles, fired = self.scheduler.enter, self.handles, self._fired
        for key, (cid, delay) in enumerate(plan.in_seconds):
            handles[cid][key] = enter(delay, 1, fired, (cid, "main", "tick", key))

    def cancel(self, names: Sequence[str]) -> None:
        for cid in names:
            for handle in self.handles.pop(cid).values():
                self.scheduler.cancel(handle)

    def fire(self) -> None:
        self.scheduler.run()

    def close(self) -> None:
        self.handles.clear()


class CancelledScheduler(Scheduler):
    """`sched` for measuring cancels, with fewer timers, because each cancel searches all of them."""

    most: int | None = 2000


class FiringScheduler(Scheduler):
    """`sched` for measuring firing, with fewer timers, because it sleeps for 0 seconds after each."""

    most: int | None = 20_000


class ThreadTimers:
    """`threading.Timer`: a thread for each timer.

    It lacks conversations, room for more than a few thousand timers, an order among timers that are due at the same
    time, and one delivery at a time for a conversation.
    """

    name = "threading.Timer"
    needs: str | None = None
    most: int | None = 2000

    def __init__(self) -> None:
        self.handles: defaultdict[str, dict[int, threading.Timer]] = defaultdict(dict)

    def _fired(self, cid: str, instance_id: str, name: str, key: int) -> None:
        self.handles[cid].pop(key, None)  # the thread may run before `fill` has stored its handle

    def fill(self, plan: Plan) -> None:
        for key, (cid, delay) in enumerate(plan.in_seconds):
            timer = threading.Timer(delay, self._fired, (cid, "main", "tick", key))
            timer.daemon = True
            self.handles[cid][key] = timer
            timer.start()

    def cancel(self, names: Sequence[str]) -> None:
        for cid in names:
            for handle in self.handles.pop(cid).values():
                handle.cancel()

    def fire(self) -> None:
        raise NotImplementedError("a timer that has its own thread cannot be kept until all are overdue")

    def close(self) -> None:
        self.cancel(list(self.handles))
        for thread in threading.enumerate():
            if isinstance(thread, threading.Timer):
                thread.join()


class BackgroundScheduler:
    """APScheduler 3 with its jobs in memory, a thread that schedules them and a pool of ten threads that runs them.

    It lacks conversations, and speed, because it is made for jobs that are worth a row in a table. A pool runs the
    jobs, so it also lacks an order of jobs that are due at the same time, and one delivery at a time for a
    conversation.
    """

    name = "APScheduler"
    needs: str | None = "apscheduler"
    most: int | None = 3000

    def __init__(self) -> None:
        from apscheduler.schedulers.background import BackgroundScheduler

        self.scheduler: Any = BackgroundScheduler(job_defaults={"misfire_grace_time": None})
        self.scheduler.start()
        self.handles: defaultdict[str, dict[int, Any]] = defaultdict(dict)
        self.left = 0
        self.lock = threading.Lock()
        self.over = threading.Event()

    def _fired(self, cid: str, instance_id: str, name: str, key: int) -> None:
        with self.lock:
            _forget(self.handles, cid, key)
            self.left -= 1
            if not self.left:
                self.over.set()

    def fill(self, plan: Plan) -> None:
        for key, (cid, delay) in enumerate(plan.in_seconds):
            due = datetime.now().astimezone() + timedelta(seconds=delay)
            job = self.scheduler.add_job(self._fired, "date", run_date=due, args=(cid, "main", "tick", key))
            self.handles[cid][key] = job
        self.left += plan.count

    def cancel(self, names: Sequence[str]) -> None:
        for cid in names:
            for job in self.handles.pop(cid).values():
                job.remove()

    def fire(self) -> None:
        self.scheduler.resume()
        self.over.wait()

    def close(self) -> None:
        self.scheduler.shutdown()


class PausedScheduler(BackgroundScheduler):
    """APScheduler that is paused until all of its jobs are overdue."""

    def __init__(self) -> None:
        super().__init__()
        self.scheduler.pause()


class TwistedClock:
    """Twisted's `task.Clock`, the clock that tests of Twisted programs move.

    It lacks conversations, calls from other threads, and room for many timers, because every call sorts the whole list.
    """

    name = "Twisted Clock"
    needs: str | None = "twisted"
    most: int | None = 3000

    def __init__(self) -> None:
        from twisted.internet.task import Clock

        self.clock: Any = Clock()
        self.handles: defaultdict[str, dict[int, Any]] = defaultdict(dict)
        self.latest = 0.0

    def _fired(self, cid: str, instance_id: str, name: str, key: int) -> None:
        _forget(self.handles, cid, key)

    def fill(self, plan: Plan) -> None:
        for key, (cid, delay) in enumerate(plan.in_seconds):
            self.handles[cid][key] = self.clock.callLater(delay, self._fired, cid, "main", "tick", key)
            self.latest = max(self.latest, delay)

    def cancel(self, names: Sequence[str]) -> None:
        for cid in names:
            for call in self.handles.pop(cid).values():
                call.cancel()

    def fire(self) -> None:
        self.clock.advance(self.latest)

    def close(self) -> None:
        self.handles.clear()


class VirtualTime:
    """RxPY's `VirtualTimeScheduler`, which jumps from one due instant to the next.

    It lacks conversations, calls from other threads, and a way to stop at an instant that was not given beforehand.
    """

    name = "RxPY virtual time"
    needs: str | None = "reactivex"
    most: int | None = None

    def __init__(self) -> None:
        from reactivex.scheduler import VirtualTimeScheduler

        self.scheduler: Any = VirtualTimeScheduler()
        self.handles: defaultdict[str, dict[int, Any]] = defaultdict(dict)

    def fill(self, plan: Plan) -> None:
        schedule, handles = self.scheduler.schedule_relative, self.handles

        def fired(_: Any, state: Any) -> None:
            cid, _, _, key = state
            _forget(handles, cid, key)

        for key, (cid, delay) in enumerate(plan.in_seconds):
            handles[cid][key] = schedule(delay, fired, (cid, "main", "tick", key))

    def cancel(self, names: Sequence[str]) -> None:
        for cid in names:
            for handle in self.handles.pop(cid).values():
                handle.dispose()

    def fire(self) -> None:
        self.scheduler.start()

    def close(self) -> None:
        self.handles.clear()
