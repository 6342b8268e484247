"""The conversations of a host, and the state machine that makes sure that each of them will end.

At every moment from its opening to its end a conversation has something of the host's own in the registry, on the
instance `stube.asgi`: the sweep timer until the first stream connects, a mark while a stream is connected, and the
grace timer after the stream was cut. The numbered races, and what decides each:

1. The sweep timer against the first stream: the baton decides, because only one of them can take it.
2. The grace timer against a stream that comes back: the timer's `cancel()` decides. If it returns False, for whatever
   reason, the conversation ends.
3. The end of a conversation against a stream that connects: the event loop looks for the session and attaches the
   stream in one step. An end removes the session first and then tells the loop, which is another step. So either the
   loop finds no session, or the end finds the stream.
4. The opening of a conversation against a shutdown: `open` keeps the session first and reads `closing` afterwards.

Any thread calls `open`, `find` and `close`. The registry calls `due` on its delivery thread. A conversation may end on
any thread. All other methods run on the event loop.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import stube
from stube.asgi._stream import ENDED, Session

__all__ = ["INSTANCE", "Sessions"]

INSTANCE = "stube.asgi"
"""The instance of every conversation that is the host's own: its timers and its mark."""

MARKS = ("stube.asgi tick", "stube.asgi tock")
"""Two topics on which nothing is published. A conversation with a stream is subscribed to one of them, and changes to
the other with every heartbeat. If the old subscription is missing then, the registry was reset and has forgotten the
conversation."""


class Sessions:
    """The conversations of one run of the host's lifespan, each with its session.

    Args:
        registry: where they live.
        loop: the event loop on which the streams are.
        on_end: called with each conversation that has ended, on the thread that ended it.
        sweep_seconds, grace_seconds, heartbeat_seconds, buffer_events: as in `Host`.
    """

    def __init__(
        self,
        registry: stube.Backend,
        loop: asyncio.AbstractEventLoop,
        on_end: Callable[[stube.Conversation], object] | None,
        *,
        sweep_seconds: float,
        grace_seconds: float,
        heartbeat_seconds: float,
        buffer_events: int,
    ) -> None:
        self.conversations = stube.Conversations(registry, on_end=self._ended)
        self.closing = False
        """True when the host shuts down, so that no conversation is opened and no stream is attached any more."""
        self._registry = registry
        self._loop = loop
        self._on_end = on_end
        self._sweep_seconds = sweep_seconds
        self._grace_seconds = grace_seconds
        self._heartbeat_seconds = heartbeat_seconds
        self._buffer_events = buffer_events
        # By cid. It has no lock, because each step on it is one atomic operation of the dict.
        self._sessions: dict[str, Session] = {}

    def __len__(self) -> int:
        return len(self._sessions)

    def open(self, flow_id: Any) -> stube.Conversation:
        """Open a conversation with a baton and a sweep timer; on an error nothing of it remains."""
        if self.closing:
            raise _shutting_down()
        conversation = self.conversations.open()
        session = self._sessions[conversation.cid] = Session(conversation, self._buffer_events, self._loop)
        try:
            conversation.put_flow(flow_id)
            self._arm(session, "sweep", self._sweep_seconds)
            if self.closing:
                raise _shutting_down()
        except BaseException as exc:
            conversation.end()
            if isinstance(exc, stube.ConversationEnded):
                # The caller has no handle yet, so only the shutdown can have ended the conversation.
                raise _shutting_down() from exc
            raise
        return conversation

    def find(self, conversation: stube.Conversation) -> Session | None:
        """Return the session of a live conversation; None when the conversation has ended."""
        session = self._sessions.get(conversation.cid)
        if session is None or session.conversation is not conversation or conversation.ended:
            return None
        return session

    def due(self, cid: str, event: stube.Event) -> None:
        """Handle an event that the registry delivers to the host's own instance."""
        # The session's own handle is ended, never the one that now has the cid: a timer that had begun when its
        # conversation ended must not end a successor of the same name.
        session = self._sessions.get(cid)
        if session is None:
            return
        # A sweep timer that finds no baton has begun after the first stream took it (race 1).
        if event.name == "gone" or (event.name == "sweep" and session.conversation.take_flow() is not None):
            session.conversation.end()

    def close(self) -> None:
        """Refuse new conversations and streams from now on, and end every stream."""
        self.closing = True
        self._on_loop(self.end_streams)

    # On the event loop only

    def claim(self, cid: str) -> tuple[Session, Any | None] | None:
        """Take the session to which a stream may be attached, and the flow that it must boot if it is the first.

        None when the conversation has ended or never existed. The caller must attach the stream before it gives control
        back to the loop (race 3).
        """
        session = self._sessions.get(cid)
        if session is None or session.conversation.ended:
            return None
        flow_id = session.conversation.take_flow()
        timer, session.timer = session.timer, None
        # The stream that took the baton is the first, and a sweep timer that has begun finds none (race 1). Without the
        # baton the grace timer decides (race 2). If it cannot be cancelled, it has begun, a handler cancelled it, or
        # the registry was reset. In each case nothing else may be left that would end the conversation.
        if timer is not None and not timer.cancel() and flow_id is None:
            session.conversation.end()
            return None
        return session, flow_id

    def mark(self, session: Session) -> None:
        """Leave a mark in the registry, because from now on a stream is connected and no timer is pending."""
        session.conversation.subscribe(MARKS[session.mark], "mark", instance_id=INSTANCE)

    def renew_mark(self, session: Session) -> None:
        """Change to the other mark; end the conversation if the registry has forgotten the old one."""
        conversation, old = session.conversation, MARKS[session.mark]
        session.mark = 1 - session.mark
        try:
            # The new mark comes first, so that a reset at any moment loses one for which a heartbeat will look.
            conversation.subscribe(MARKS[session.mark], "mark", instance_id=INSTANCE)
            if not conversation.unsubscribe(old, instance_id=INSTANCE):
                conversation.end()
        except (stube.ConversationEnded, stube.RegistryClosed):
            conversation.end()

    def cut(self, session: Session) -> None:
        """Replace the mark by the grace timer, because the stream was cut; the page may come back."""
        conversation = session.conversation
        if self.closing:
            return  # the shutdown ends it
        try:
            self._arm(session, "gone", self._grace_seconds)
            if not conversation.unsubscribe(MARKS[session.mark], instance_id=INSTANCE):
                conversation.end()  # the registry was reset while the stream was connected
        except (stube.ConversationEnded, stube.RegistryClosed, stube.RegistryFull):
            # There is no room for the timer that would end the conversation, so it ends now.
            conversation.end()

    def end_forgotten(self) -> None:
        """End each conversation whose sweep or grace timer is lost: a handler may have cancelled all of its timers."""
        now = self._loop.time()
        for session in list(self._sessions.values()):
            # `inspect` costs as much as the registry is large, so it is called only when the timer should have fired.
            if session.stream is None and now > session.due + self._heartbeat_seconds:
                held = self._registry.inspect(session.conversation.cid).get(session.conversation.cid)
                ours = held is not None and any(timer.instance_id == INSTANCE for timer in held.timers)
                if not ours and (held is None or not held.running):
                    session.conversation.end()

    def end_streams(self) -> None:
        """End every stream, because the host shuts down. The conversations stay."""
        for session in list(self._sessions.values()):
            if session.stream is not None:
                session.stream.end("shutdown")

    # Private

    def _arm(self, session: Session, name: str, seconds: float) -> None:
        session.due = self._loop.time() + seconds
        session.timer = session.conversation.schedule(name, seconds * 1000, instance_id=INSTANCE)

    def _ended(self, conversation: stube.Conversation) -> None:
        session = self._sessions.get(conversation.cid)
        if session is not None and session.conversation is conversation:
            del self._sessions[conversation.cid]
            self._on_loop(_end_stream, session)
        if self._on_end is not None:
            self._on_end(conversation)

    def _on_loop(self, function: Callable[..., None], *arguments: Any) -> None:
        try:
            self._loop.call_soon_threadsafe(function, *arguments)
        except RuntimeError:
            pass  # the loop has closed, and every stream with it


def _end_stream(session: Session) -> None:
    if session.stream is not None:
        session.stream.end(ENDED)


def _shutting_down() -> stube.RegistryClosed:
    return stube.RegistryClosed(
        "The host is shutting down, so no conversation can be opened. Load the page anew in a moment."
    )
