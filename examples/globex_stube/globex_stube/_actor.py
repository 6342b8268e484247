"""The actor that owns a registry's state, the thread that delivers, and how any thread asks the actor for an operation.

An *actor* is a thread that alone may touch some data and takes requests for it out of a queue, its mailbox. So the data
needs no lock. An operation of a registry is a `Call`: the caller puts it into the mailbox and waits for the answer,
which costs two switches of threads, some twenty microseconds. Two daemon threads belong to a registry:

- the state thread runs `Actor._serve`: it runs the calls one at a time, in the order of the mailbox. It runs no code
  of the host, because while it did, everybody else would wait.
- the delivery thread runs `Actor._deliver`: it reads the clock, asks for the next delivery as any other caller asks for
  an operation, and calls dispatch and `on_error`. When nothing is ready it sleeps until the instant that it was told,
  or until the state thread puts an item into the queue `bell`.

A signal handler, or an exception such as KeyboardInterrupt, can interrupt a caller at any line. It cannot interrupt the
state thread, since signal handlers run on the main thread. So a call is made as a whole or not at all, and a handler
that makes a call of its own simply waits for the same actor. Three things need care:

- The garbage collector may run a finalizer on the state thread, which cannot wait for itself. What such a finalizer
  asks for is *deferred*: it runs when the present call has been run, and before that is answered.
- The threads start with the first operation that adds something, on the thread of its caller. Of several callers at the
  same time each starts a thread; the one that takes the token out of a queue serves, and the others end.
- When the actor has ended, the state is closed and never changes again. Then callers run their operations themselves.

Neither thread refers to the registry, and to the functions of the host only while something is pending. So a registry
that its host has dropped is collected, and then its threads end.
"""

from __future__ import annotations

import atexit
import logging
import os
import sys
import threading
import weakref
from collections import deque
from collections.abc import Callable, Coroutine
from contextlib import suppress
from queue import Empty, SimpleQueue
from types import FrameType
from typing import Any, Concatenate, Final, ParamSpec, TypeVar

from stube import ConversationEnded, monotonic_ns

from ._state import Delivery, Hooks, State

__all__ = ["Actor"]

_LOG: Final = logging.getLogger("stube")
_LONGEST_SLEEP_NS: Final = 86_400 * 1_000_000_000  # a queue cannot wait for every number of seconds
_LOOK_AGAIN: Final = 1.0  # seconds after which a caller that waits looks whether its process has been forked
_TO_END: Final = 5.0  # seconds that a thread with nothing left to do may take to end
_AT_EXIT: Final = 0.5  # seconds that the end of a program waits for running deliveries

P = ParamSpec("P")
T = TypeVar("T")


class Call:
    """One operation that the state thread is asked to run."""

    __slots__ = ("answered", "arguments", "error", "operation", "removed", "result")

    def __init__(self, operation: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
        self.operation = operation
        self.arguments = arguments
        self.result: Any = None
        self.error: Exception | None = None
        self.removed: list[object] = []
        self.answered: SimpleQueue[None] = SimpleQueue()

    def run(self, state: State) -> None:
        """Run the operation. What it was given is kept alive no longer, and no frame is."""
        try:
            self.result = self.operation(state, *self._take_arguments())
        except Exception as error:  # noqa: BLE001 - it is raised where the call was made
            self.error = error.with_traceback(None)

    def outcome(self) -> Any:
        """Free what the operation has removed, and return its result or raise its error. The caller calls this."""
        self.removed = []
        if self.error is not None:
            try:
                raise self.error
            finally:
                self.error = None  # or the error would keep this frame alive, and the frame the error
        result, self.result = self.result, None
        return result

    def _take_arguments(self) -> tuple[Any, ...]:
        arguments, self.arguments = self.arguments, ()
        return arguments


class Worker:
    """A daemon thread that starts once, even if several callers start it at the same time."""

    def __init__(self, name: str, serve: Callable[[State], None], state: State) -> None:
        self.started = False
        self.ident: int | None = None  # of the thread, while it serves
        self._name = name
        self._serve = serve
        self._state = state
        self._thread: threading.Thread | None = None
        self._token: SimpleQueue[None] = SimpleQueue()
        self._token.put(None)
        self._starting: dict[int, FrameType] = {}

    def start(self) -> None:
        """Start the thread, if none has been started. Raises when no thread can be had."""
        if self.started:
            return
        self._starting[threading.get_ident()] = sys._getframe()
        try:
            threading.Thread(target=self._run, name=self._name, daemon=True).start()
            self.started = True
        finally:
            self._starting.pop(threading.get_ident(), None)

    def is_starting_here(self) -> bool:
        """Tell whether the caller has interrupted `start` on its own thread.

        It must not start another thread then, because it would wait for a lock of the `threading` module that the
        interrupted line may hold. An exception may have kept `start` from tidying up; so the frame has the last word.
        """
        started_by = self._starting.get(threading.get_ident())
        frame: FrameType | None = sys._getframe() if started_by else None
        while frame is not None and frame is not started_by:
            frame = frame.f_back
        return frame is not None

    def join(self) -> bool:
        """Wait for the thread, which has nothing left to do; return whether it has ended."""
        if self._thread is not None:
            self._thread.join(_TO_END)
        return self._thread is None or not self._thread.is_alive()

    def _run(self) -> None:
        try:
            self._token.get_nowait()
        except Empty:
            return  # another thread, started at the same time, serves
        self._thread = threading.current_thread()
        self.ident = threading.get_ident()
        self.started = True
        self._serve(self._state)
        self.ident = None


class Actor:
    """Owns one state. It does not keep the registry alive, which may be dropped while the threads run."""

    def __init__(self, max_pending: int | None, hooks: Hooks) -> None:
        self._max_pending = max_pending
        self._hooks = weakref.ref(hooks)
        self.begin_anew()
        _ACTORS.add(self)

    def begin_anew(self) -> None:
        """Start with an empty state and no thread; also in a forked child."""
        self.state = State(self._max_pending)
        self.ended = False
        self._mailbox: SimpleQueue[Call | None] = SimpleQueue()  # None: look whether something was deferred
        self._deferred: deque[Call] = deque()
        self._state_thread = Worker("globex state", self._serve, self.state)
        self._delivery_thread = Worker("globex delivery", self._deliver, self.state)

    # For every thread. `nested` is what an operation returns when it is deferred.

    def add(self, nested: T, operation: Callable[Concatenate[State, P], T], *arguments: P.args, **_: P.kwargs) -> T:
        """Run an operation that adds something; start the threads first. Raises when no thread can be had."""
        if self._cannot_wait():
            return self._defer(nested, operation, arguments)
        if not self.state.closed:
            self._state_thread.start()
            self._delivery_thread.start()
        return self._ask(operation, arguments)

    def remove(self, nested: T, operation: Callable[Concatenate[State, P], T], *arguments: P.args, **_: P.kwargs) -> T:
        """Run an operation that adds nothing."""
        if self._cannot_wait():
            return self._defer(nested, operation, arguments)
        return self._ask(operation, arguments)

    def read(self, operation: Callable[Concatenate[State, P], T], *arguments: P.args, **named: P.kwargs) -> T:
        """Run an operation that changes nothing; a finalizer on the state thread reads the state as it is."""
        if threading.get_ident() == self._state_thread.ident:
            return operation(self.state, *arguments, **named)
        return self._ask(operation, arguments)

    def take(self, operation: Callable[Concatenate[State, P], T], *arguments: P.args, **_: P.kwargs) -> T | None:
        """Run an operation whose result must not be lost; where it cannot be waited for, do nothing."""
        return None if self._cannot_wait() else self._ask(operation, arguments)

    def wait_until_idle(self, now: int, timeout: float | None, *, timers_too: bool) -> bool:
        """Wait until nothing is ready or runs, or nothing is pending at all; return whether that came about."""
        if self._cannot_wait():
            return False
        waiter: SimpleQueue[None] = SimpleQueue()
        state, started = self.state, monotonic_ns()
        if self._ask(State.wait_until_idle, (now, waiter, timers_too)):
            return True
        try:
            while self.state is state:
                left = _LOOK_AGAIN if timeout is None else timeout - (monotonic_ns() - started) / 1e9
                with suppress(Empty):
                    waiter.get(timeout=max(0, min(left, _LOOK_AGAIN)))
                    return True
                if left <= 0:
                    return False
            return True  # in a forked child nothing is pending
        finally:
            self._defer(None, State.stop_waiting, (waiter,))

    def is_delivering_here(self) -> bool:
        """Tell whether the caller is inside a delivery."""
        return threading.get_ident() == self._delivery_thread.ident

    def close(self, timeout: float | None) -> bool:
        """Discard what has not begun and end both threads; return whether they have ended."""
        self.state.closed = True
        if not self._state_thread.started:
            return True  # a thread that is just being started finds the state closed
        self.remove(None, State.close)
        if self.is_delivering_here() or not self.wait_until_idle(0, timeout, timers_too=True):
            return False
        return self._state_thread.join() and self._delivery_thread.join()

    def orphan(self) -> None:
        """Say that the registry has been dropped: the threads end when nothing is pending any more."""
        self._defer(None, State.orphan, ())

    def _is_served(self, state: State) -> bool:
        """Tell whether the actor has not ended, and the process is not a forked child, which has another state."""
        return not self.ended and self.state is state

    def _cannot_wait(self) -> bool:
        """Tell whether the actor cannot answer before the caller returns."""
        on_state_thread = threading.get_ident() == self._state_thread.ident
        return on_state_thread or self._state_thread.is_starting_here() or self._delivery_thread.is_starting_here()

    def _defer(self, nested: T, operation: Callable[..., T], arguments: tuple[Any, ...]) -> T:
        self._deferred.append(Call(operation, arguments))
        self._mailbox.put(None)
        return nested

    def _ask(self, operation: Callable[..., T], arguments: tuple[Any, ...]) -> T:
        state = self.state
        if not self._state_thread.started:
            return operation(State(closed=state.closed), *arguments)  # nothing has been added yet
        call = Call(operation, arguments)
        self._mailbox.put(call)
        # The actor sets `ended` before it looks into the mailbox for the last time. So it takes the call, or `ended` is
        # seen here.
        while self._is_served(state):
            with suppress(Empty):
                call.answered.get(timeout=_LOOK_AGAIN)
                return call.outcome()  # type: ignore[no-any-return]
        with suppress(Empty):
            call.answered.get_nowait()
            return call.outcome()  # type: ignore[no-any-return]
        # The state is closed; or a signal handler has forked, and the child begins with nothing.
        return operation(state if self.state is state else State(), *arguments)

    # The state thread

    def _serve(self, state: State) -> None:
        while self._is_served(state):
            self._serve_one(state, self._mailbox.get())

    def _serve_one(self, state: State, call: Call | None) -> None:
        if call is not None:
            call.run(state)
        while self._deferred:
            self._deferred.popleft().run(state)
        if call is not None:
            call.removed, state.removed = state.removed, []
        elif state.removed:
            state.wake_delivery_thread()  # which makes a call, and so frees it
        if not state.pending:
            state.hooks = None
            state.wake_waiters(timers_too=True)
            if state.closed or state.orphaned:
                state.close()
                self._end()
        if call is not None:
            call.answered.put(None)

    def _end(self) -> None:
        self.ended = True
        self.state.bell.put(None)
        with suppress(Empty):
            while True:
                call = self._mailbox.get_nowait()
                if call is not None:
                    call.run(self.state)
                    call.answered.put(None)

    # The delivery thread

    def _deliver(self, state: State) -> None:
        succeeded: bool | None = None
        while self._is_served(state):
            succeeded = self._deliver_next(state, succeeded)
        state.removed.clear()

    def _deliver_next(self, state: State, succeeded: bool | None) -> bool | None:
        """Deliver what is ready and return whether that succeeded, or sleep and return None."""
        now = self._now(state)
        delivery = self._ask(State.next_delivery, (succeeded, now))
        if isinstance(delivery, Delivery):
            return _run(delivery)
        nanoseconds = None if delivery is None else max(0, min(delivery - now, _LONGEST_SLEEP_NS))
        with suppress(Empty):
            state.bell.get(timeout=None if nanoseconds is None else nanoseconds / 1e9)
        return None

    def _now(self, state: State) -> int:
        """The instant by the registry's clock, which need not be known when the registry has been dropped.

        A clock that raises is reported by the operations; here the latest known instant must do.
        """
        with suppress(BaseException):
            hooks = self._hooks()
            return hooks.clock() if hooks else 0
        return state.latest


def _run(delivery: Delivery) -> bool:
    """Call dispatch, and return whether it succeeded."""
    try:
        result: object = delivery.hooks.dispatch(delivery.cid, delivery.event)
        if isinstance(result, Coroutine):
            result.close()
            raise TypeError("dispatch returned a coroutine, which globex cannot await. Use the backend 'asyncio'.")
    except ConversationEnded as error:
        with suppress(BaseException):
            _LOG.debug("A delivery to %r met the end of its conversation: %s", delivery.cid, error)
    except BaseException as error:  # noqa: BLE001 - whatever it is, it stops no other delivery
        _report(delivery, error)
        return False
    return True


def _report(delivery: Delivery, error: BaseException) -> None:
    with suppress(BaseException):
        _LOG.error("The delivery of %r to %r failed", delivery.event.name, delivery.cid, exc_info=error)
    if delivery.hooks.on_error is not None:
        try:
            delivery.hooks.on_error(delivery.cid, delivery.event, error)
        except BaseException as second:  # noqa: BLE001 - it stops nothing either
            with suppress(BaseException):
                _LOG.error("on_error failed for %r", delivery.cid, exc_info=second)


_ACTORS: Final[weakref.WeakSet[Actor]] = weakref.WeakSet()


def _begin_anew_in_child() -> None:
    for actor in list(_ACTORS):
        actor.begin_anew()


def _close_at_exit() -> None:
    """End all threads, and wait for half a second at most, for all registries together."""
    started = monotonic_ns()
    for actor in list(_ACTORS):
        actor.close(0)
    for actor in list(_ACTORS):
        actor.close(max(0, _AT_EXIT - (monotonic_ns() - started) / 1e9))
        actor.ended = True  # daemon threads stop for good now: nobody shall wait for them


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_begin_anew_in_child)
atexit.register(_close_at_exit)
