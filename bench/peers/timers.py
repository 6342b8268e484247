"""What else keeps timers: each peer with the dict of handles per conversation that its user would keep beside it.

None of these knows of conversations. So that one can be ended, its user files every handle under the conversation's
name, takes it out again when the timer fires, and cancels one by one. `fill` is a loop of its own in each peer rather
than a function that is called for every timer, which is the least that any user would pay.
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
    """One peer, made anew for each round."""

    name: str
    needs: str | None
    """The module that it is made of; None for the standard library."""
    most: int | None
    """How many timers it is measured with at most; None for as many as a target says."""

    def fill(self, plan: Plan) -> None:
        """Schedule every timer of the plan and file its handle."""
        ...

    def cancel(self, names: Sequence[str]) -> None:
        """Cancel all timers of these conversations."""
        ...

    def fire(self) -> None:
        """Run until every timer that was scheduled has fired; all of them are overdue."""
        ...

    def close(self) -> None:
        """Leave nothing behind."""
        ...


class Asyncio:
    """The event loop of the standard library.

    What it lacks: other threads may not call it; a timer that is cancelled stays in the heap, with what it holds,
    until it is due or half of the heap is such; no conversations; a callback that blocks stops everything.
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
        del self.handles[cid][key]
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

    What it lacks: as asyncio; and delays are whole milliseconds.
    """

    name = "uvloop"
    needs: str | None = "uvloop"

    def __init__(self) -> None:
        import uvloop

        self.new_loop = uvloop.new_event_loop
        super().__init__()


class Scheduler:
    """`sched` of the standard library: a heap that somebody runs.

    What it lacks: a thread of its own, and waking up for what another one adds; cancelling searches the whole heap
    and sorts it again; no conversations.
    """

    name = "sched"
    needs: str | None = None
    most: int | None = None

    def __init__(self) -> None:
        self.scheduler = sched.scheduler(time.monotonic, time.sleep)
        self.handles: defaultdict[str, dict[int, sched.Event]] = defaultdict(dict)

    def _fired(self, cid: str, instance_id: str, name: str, key: int) -> None:
        del self.handles[cid][key]

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
    """`sched` where timers are cancelled: with fewer of them, for each cancelling searches all."""

    most: int | None = 2000


class FiringScheduler(Scheduler):
    """`sched` where timers fire: with fewer of them, for it sleeps for 0 seconds after each."""

    most: int | None = 20_000


class ThreadTimers:
    """`threading.Timer`: a thread for each timer.

    What it lacks: room for more than some thousands of them; an order among timers that are due at once; deliveries
    of one conversation one at a time; no conversations.
    """

    name = "threading.Timer"
    needs: str | None = None
    most: int | None = 2000

    def __init__(self) -> None:
        self.handles: defaultdict[str, dict[int, threading.Timer]] = defaultdict(dict)

    def _fired(self, cid: str, instance_id: str, name: str, key: int) -> None:
        self.handles[cid].pop(key, None)  # the thread may be faster than who files its handle

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
    """APScheduler 3, jobs in memory, a thread that schedules and a pool of ten that runs.

    What it lacks: speed, for it is made for jobs that are worth a row in a table; the order of jobs that are due at
    once, and one at a time within a conversation, for its pool runs them; no conversations.
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
            del self.handles[cid][key]
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
    """APScheduler that is kept from running its jobs until all of them are overdue."""

    def __init__(self) -> None:
        super().__init__()
        self.scheduler.pause()


class TwistedClock:
    """Twisted's `task.Clock`, the clock that tests of Twisted programs move.

    What it lacks: room, for every call sorts the list of all; other threads; no conversations.
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
        del self.handles[cid][key]

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

    What it lacks: stopping short of an instant within a window it was not told of beforehand; other threads; no
    conversations.
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
            del handles[cid][key]

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
