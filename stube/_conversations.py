"""The host's handles: a conversation as an object that can be ended, on any registry.

The twelve operations are enough for that. `schedule(since=)` and `every` need the present instant as well, and `every`
a registry that begins periodic timers.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from datetime import timedelta
from functools import partial
from types import TracebackType
from typing import Any, Self

from stube._errors import ConversationEnded
from stube._events import Event, EventSpec
from stube._periodic import Missed, PeriodicTimer, present_instant
from stube._registry import Registry, TimerHandle
from stube._typing import override
from stube.arguments import delay_in_nanoseconds, exact_milliseconds, plain_event, plain_name

__all__ = ["Conversation", "Conversations"]

_ONE_MILLISECOND = timedelta(milliseconds=1)


class Conversation:
    """One live session, as its host holds it. Made by `Conversations.open`.

    Any thread may call any method. As a context manager it ends at the end of the block. After `end()` no timer or
    message of it is delivered and nothing of it remains, even if a handler schedules a timer of it at that moment: the
    methods that add raise `ConversationEnded`, and an addition that races with `end()` is undone before it raises.

    >>> from stube import Conversations, create_registry
    >>> with create_registry("virtual") as registry:
    ...     registry.install_dispatch(lambda cid, event: print(event))
    ...     with Conversations(registry).open("c1") as conversation:
    ...         _ = conversation.schedule("tick", 1000)
    ...         registry.advance(1000)
    ...         _ = conversation.schedule("tick", 1000)
    ...     registry.advance(1000)
    Event('main', 'tick')
    """

    # Numbered races that the order of the lines avoids:
    # 1. A timer that cannot be stopped: `_ended` is set once and never unset. Every adding method reads it AFTER it has
    #    added, and end() sets it BEFORE it removes. In each order, one of the two sees the other. This holds within the
    #    lock, too, because a finalizer or signal handler of the same thread may end the conversation there.
    # 2. A successor under the same cid: `Conversations.open` makes one only when `_lock` is free. What removes does so
    #    under that lock, and not after the end, so no method removes anything of a successor.
    # 3. Two threads re-arm the same timer: each cancels and schedules under `_lock`, so that one timer is left.
    # 4. A finalizer or signal handler calls a method while its thread is inside an operation of the registry, for which
    #    the owner of `_lock` may wait: what removes is then deferred until that operation is over (G20), and what adds
    #    does without the lock.
    __slots__ = ("_cid", "_conversations", "_ended", "_lock")

    def __init__(self, conversations: Conversations, cid: str) -> None:
        self._conversations = conversations
        self._cid = cid
        self._ended = False
        self._lock = threading.RLock()  # held by end(); re-entrant, because a finalizer may call end() too

    @property
    def cid(self) -> str:
        """The conversation's name."""
        return self._cid

    @property
    def ended(self) -> bool:
        """True when `end()` has been called."""
        return self._ended

    def put_flow(self, flow_id: Any) -> None:
        """Put the baton, which is the flow that the first stream must boot. See `Registry.put_pending_flow`."""
        registry = self._registry_if_live()
        registry.put_pending_flow(self._cid, flow_id)
        if self._ended:
            self._undo(partial(registry.forget_pending_flow, self._cid))
            raise self._error()

    def take_flow(self) -> Any | None:
        """Take the baton; None if it was taken, was never put, or the conversation has ended. Also None for a finalizer
        or signal handler that runs inside an operation of the registry; then the baton stays."""
        if self._is_inside():  # not deferred, because then nobody would get the baton
            return None
        with self._lock:
            return None if self._ended else self._conversations.registry.pending_flow(self._cid)

    def schedule(
        self,
        event: EventSpec,
        delay: float | timedelta,
        *,
        instance_id: str = "main",
        since: Event | None = None,
        replace: bool = False,
    ) -> TimerHandle:
        """Deliver `event` once, `delay` from now. See `Registry.schedule_event`.

        Args:
            event: a name, or `(name, *payload)`.
            delay: milliseconds or a `timedelta`.
            instance_id: the component that gets it.
            since: count from the instant for which this event was meant (`Event.due`), and not from now, so that a
                handler that is late does not delay what it schedules. What has been missed by now is skipped: it is due
                a whole number of delays after `since`, the first one that is not over. For a handler that schedules its
                own next tick.
            replace: cancel the other timers of the instance in the same step. For a time-out that starts again with
                each sign of life. A full registry gives the new timer the room of the old one.

        Raises:
            ConversationEnded: the conversation has ended.
            TypeError, ValueError: as `Registry.schedule_event`; `since` is no event of a registry; or the registry does
                not show the present instant. Nothing has changed.

        >>> from stube import Conversations, create_registry
        >>> with create_registry("virtual") as registry:
        ...     conversation = Conversations(registry).open("c1")
        ...     def dispatch(cid, event):
        ...         print(registry.now_ms, event.name)
        ...         if event.name == "tick":
        ...             _ = conversation.schedule("tick", 100, since=event)
        ...     registry.install_dispatch(dispatch)
        ...     _ = conversation.schedule("tick", 100)
        ...     _ = conversation.schedule("idle", 150, instance_id="idle")
        ...     _ = conversation.schedule("idle", 250, instance_id="idle", replace=True)
        ...     registry.advance(300)
        100.0 tick
        200.0 tick
        250.0 idle
        300.0 tick
        """
        registry = self._registry_if_live()
        delay_ms = _in_milliseconds(delay) if isinstance(delay, timedelta) else delay
        if since is not None:
            delay_ms = _left_of(registry, since, delay_ms)
        if replace:
            return self._replace(registry, event, delay_ms, instance_id)
        handle = registry.schedule_event(cid=self._cid, instance_id=instance_id, delay_ms=delay_ms, event=event)
        if self._ended:
            handle.cancel()
            raise self._error()
        return handle

    def every(
        self,
        event: EventSpec,
        period: float | timedelta,
        *,
        instance_id: str = "main",
        missed: Missed = "skip",
    ) -> PeriodicTimer:
        """Deliver `event` again and again, at each whole period after now.

        It does not drift: a tick that begins late, or whose handler takes long, delays no later one. `Event.due` of a
        tick is the exact instant for which it was meant.

        It is over when the conversation ends, when it is cancelled, and when its pending tick is forgotten with the
        rest by a reset or a close of the registry. If the registry refuses the next tick, because it is full, the timer
        is over too, and an error is logged. Until then a tick is pending, and keeps a registry alive that was dropped.

        Args:
            event: a name, or `(name, *payload)`.
            period: milliseconds or a `timedelta`, greater than 0.
            instance_id: the component that gets it.
            missed: what becomes of the ticks that are over when one begins late. `"skip"`: they are left out.
                `"make_up"`: each is delivered as soon as possible, one after the other; what else is due in the
                meantime comes between them.

        Returns:
            A handle that cancels all further ticks. `cancel_timers` and `schedule(..., replace=True)` cancel them too.

        Raises:
            ConversationEnded: the conversation has ended.
            TypeError, ValueError: an argument is wrong, or the registry cannot begin periodic timers. Nothing has
                changed.
            RegistryFull, RegistryClosed: as `Registry.schedule_event`.

        >>> from stube import Conversations, create_registry
        >>> with create_registry("virtual") as registry:
        ...     registry.install_dispatch(lambda cid, event: print(registry.now_ms, event))
        ...     clock = Conversations(registry).open("c1").every("tick", 100)
        ...     registry.advance(250)
        ...     clock.cancel()
        ...     registry.advance(250)
        100.0 Event('main', 'tick')
        200.0 Event('main', 'tick')
        True
        """
        if self._ended:
            raise self._error()
        period_ms = _in_milliseconds(period) if isinstance(period, timedelta) else period
        timer = PeriodicTimer(self, event, period_ms, instance_id, missed)
        # For the sake of the set. A finalizer that must not wait may make a second one.
        with self._lock_unless_inside():
            try:
                periodic = self._periodic or set()
                periodic.add(timer)
                self._conversations._periodic[self] = periodic
                timer.schedule_next()
            except BaseException:
                timer.forget()
                raise
            finally:
                if self.ended:
                    self._conversations._periodic.pop(self, None)
        if self.ended:
            raise self._error()
        return timer

    def subscribe(self, topic: str, event: EventSpec, *, instance_id: str = "main") -> None:
        """Deliver each later message on `topic` as `event`. See `Registry.subscribe`."""
        registry = self._registry_if_live()
        registry.subscribe(cid=self._cid, instance_id=instance_id, topic=topic, event=event)
        if self._ended:
            self._undo(partial(registry.unsubscribe, cid=self._cid, instance_id=instance_id, topic=topic))
            raise self._error()

    def unsubscribe(self, topic: str | None = None, *, instance_id: str = "main") -> int:
        """Remove one subscription of the instance, or all; return how many. Silent after the end."""
        if self._defer_if_inside(partial(self.unsubscribe, topic, instance_id=instance_id)):
            return 0
        with self._lock:
            if self._ended:
                return 0
            return self._conversations.registry.unsubscribe(cid=self._cid, instance_id=instance_id, topic=topic)

    def cancel_timers(self, *, instance_id: str | None = None) -> int:
        """Cancel every timer of the conversation, or of one instance; return how many this call cancelled. Silent after
        the end."""
        if self._defer_if_inside(partial(self.cancel_timers, instance_id=instance_id)):
            return 0
        with self._lock:
            if self._ended:
                return 0
            if self._conversations._periodic:
                self._cancel_periodic(instance_id)
            return self._conversations.registry.cancel_timers(self._cid, instance_id=instance_id)

    def end(self) -> None:
        """End the conversation: after the return no delivery of it begins, and nothing of it remains.

        Idempotent; silent on a closed registry. A running delivery runs to its end, and may itself be the caller. The
        cost is proportional to what the conversation holds.
        """
        if self._defer_if_inside(self.end):
            self._ended = True  # so that nothing is added until the end is made
            return
        with self._lock:
            self._ended = True
            cid, conversations = self._cid, self._conversations
            live = conversations._open
            if conversations._periodic:
                conversations._periodic.pop(self, None)
            if live.get(cid) is not self:
                return  # it has ended before, and what the registry holds under this cid is a successor's
            _end(conversations.registry, cid)
            # A finalizer may have ended it as well, and opened a successor, in the last line.
            first = live.get(cid) is self and live.pop(cid, None) is not None
        if first and conversations.on_end is not None:
            conversations.on_end(self)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.end()

    @override
    def __repr__(self) -> str:
        return f"<Conversation {self._cid!r}{' ended' if self._ended else ''}>"

    def _replace(self, registry: Registry, event: EventSpec, delay_ms: float, instance_id: str) -> TimerHandle:
        """Cancel the timers of an instance and schedule another one. What is wrong is refused before that."""
        event, instance_id = plain_event(event), plain_name("instance_id", instance_id)
        delay_in_nanoseconds(delay_ms)
        # For race 3. A finalizer that must not wait may leave a second timer.
        with self._lock_unless_inside():
            if self._ended:
                raise self._error()
            if self._conversations._periodic:
                self._cancel_periodic(instance_id)
            registry.cancel_timers(self._cid, instance_id=instance_id)
            handle = registry.schedule_event(cid=self._cid, instance_id=instance_id, delay_ms=delay_ms, event=event)
        if self.ended:
            handle.cancel()
            raise self._error()
        return handle

    def _undo(self, remove: Callable[[], object]) -> None:
        """Take back what was added after the end, unless it is a successor's by now."""
        if not self._defer_if_inside(partial(self._undo, remove)):
            with self._lock:
                if not self._conversations._is_taken_over(self):
                    remove()

    def _defer_if_inside(self, call: Callable[[], object]) -> bool:
        """Defer a call if this thread is inside an operation of the registry; return whether it is (race 4).

        A registry that can defer has a method `defer_if_inside(call)`, which does that.
        """
        defer = getattr(self._conversations.registry, "defer_if_inside", None)
        return defer is not None and defer(call)

    def _is_inside(self) -> bool:
        """Say whether this thread is inside an operation of the registry, and must not wait for the lock (race 4)."""
        return self._defer_if_inside(_nothing)

    def _lock_unless_inside(self) -> AbstractContextManager[object]:
        return nullcontext() if self._is_inside() else self._lock

    def _cancel_periodic(self, instance_id: str | None) -> None:
        """Let no periodic timer of an instance, or of any, schedule another tick. The caller cancels the pending
        ticks."""
        for timer in list(self._periodic or ()):
            if instance_id in (None, timer.instance_id):
                timer.forget()

    @property
    def _periodic(self) -> set[PeriodicTimer] | None:
        """The periodic timers that are not over; None before the first one, and after the end."""
        return self._conversations._periodic.get(self)

    @property
    def _registry(self) -> Registry:
        return self._conversations.registry

    def _registry_if_live(self) -> Registry:
        if self._ended:
            raise self._error()
        return self._conversations.registry

    def _error(self) -> ConversationEnded:
        return ConversationEnded(
            f"The conversation {self._cid!r} has ended, so nothing can be added to it. "
            "Open a new one, or let the handler that added to it return."
        )


def _nothing() -> None:
    """Do nothing."""


def _end(registry: Registry, cid: str) -> None:
    """Remove everything that a registry holds under a cid.

    A registry may have a method `end_conversation(cid)`, which does in one step what these three operations do.
    """
    end = getattr(registry, "end_conversation", None)
    if end is not None:
        end(cid)
        return
    registry.cancel_timers(cid)
    registry.remove_subscriptions_for_cid(cid)
    registry.forget_pending_flow(cid)


def _in_milliseconds(span: timedelta) -> float:
    """Return a timedelta in milliseconds. True division rounds once, and 1 ms is exact: a whole number stays whole."""
    return span / _ONE_MILLISECOND


def _left_of(registry: Registry, since: Event, delay_ms: float) -> float:
    """Return the milliseconds from now until the first whole number of delays after `since` that is not over."""
    wrong = f"since must be an event that a registry delivered, not {since!r}. Leave it out to count from now."
    if not isinstance(since, Event):
        raise TypeError(wrong)
    if since.due is None:
        raise ValueError(wrong)
    now = present_instant(registry, "since")
    delay, elapsed = delay_in_nanoseconds(delay_ms), now - since.due
    number = max(1, -(-elapsed // delay)) if delay else 1
    return exact_milliseconds(max(0, number * delay - elapsed))


class Conversations:
    """The live conversations of a host, one handle per cid, on any registry.

    Args:
        registry: where their timers, subscriptions and batons live.
        on_end: called as `on_end(conversation)`, once for each, when it has ended and nothing of it remains, so that
            the host can remove what it keeps of the conversation elsewhere. The thread that ended the conversation
            calls it, which may be the delivery thread, and holds no lock. It should neither wait nor fail.

    >>> from stube import Conversations, create_registry
    >>> conversations = Conversations(create_registry("virtual"))
    >>> conversation = conversations.open("c1")
    >>> conversations.get("c1") is conversation, len(conversations)
    (True, 1)
    >>> conversation.end()
    >>> conversations.get("c1") is None, len(conversations)
    (True, 0)
    """

    def __init__(self, registry: Registry, *, on_end: Callable[[Conversation], object] | None = None) -> None:
        self.registry = registry
        self.on_end = on_end
        # Held while a handle is added to _open; one is removed in a single step, under its own lock. Re-entrant,
        # because a finalizer may open a conversation in the middle of another call.
        self._lock = threading.RLock()
        self._open: dict[str, Conversation] = {}
        # The periodic timers of the conversations that have some: not in the handle, of which each has its bytes.
        self._periodic: dict[Conversation, set[PeriodicTimer]] = {}

    def open(self, cid: str | None = None) -> Conversation:
        """Return the handle of a conversation: that of `cid` if it is live, otherwise a new one. O(1).

        Args:
            cid: its name; by default a random one of 128 bits, which cannot be guessed.

        Raises:
            TypeError: `cid` is not a `str`.
            ValueError: `cid` is empty.
        """
        if cid is None:
            cid = os.urandom(16).hex()  # what `secrets.token_hex` does, which is slow to import
        elif not isinstance(cid, str):
            raise TypeError(f"cid must be a str, not {cid!r}. Give the conversation's name, or leave it out.")
        cid = str.__str__(cid)
        if not cid:
            raise ValueError("cid must not be empty. Give the conversation's name, or leave it out for a random one.")
        while True:
            with self._lock:
                conversation = self._open.get(cid)
                if conversation is None:
                    conversation = self._open[cid] = Conversation(self, cid)
                if not conversation.ended:
                    return conversation
            conversation.end()  # waits until a running end() is over, or ends it
            if self._open.get(cid) is conversation:  # it did neither, because it must not wait (race 4)
                raise ConversationEnded(
                    f"The conversation {cid!r} is being ended by a thread that waits for the operation which this call "
                    "interrupted. Open it again when that operation is over."
                )

    def get(self, cid: str) -> Conversation | None:
        """Return the handle of a live conversation, or None. O(1)."""
        conversation = self._open.get(cid)
        return None if conversation is None or conversation.ended else conversation

    def __iter__(self) -> Iterator[Conversation]:
        """Iterate over the handles that are live at this moment, even if other threads open or end some."""
        return iter(self._open.copy().values())  # copying is one step

    def __len__(self) -> int:
        return len(self._open)

    @override
    def __repr__(self) -> str:
        return f"<Conversations: {len(self)} live>"

    def _is_taken_over(self, conversation: Conversation) -> bool:
        return self._open.get(conversation._cid, conversation) is not conversation
