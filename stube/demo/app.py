"""A host on stube, from beginning to end: pages with a clock and a chat, over server-sent events.

The life of a conversation:

1. `GET /` opens it, puts its baton and schedules a sweep, in case the page never connects.
2. `GET /stream/{cid}`, the first time, takes the baton and boots the flow: no sweep any more, a clock that
   re-arms itself, a subscription to the room. Later times resume; the clock has been going on.
3. When a stream is cut, the conversation is kept for a grace period and then ended.
4. `POST /leave/{cid}` ends it at once. Whatever ends it, nothing of it remains in the registry.

Two threads meet here. The registry's thread calls `Host.dispatch`, where the handlers are. The server's loop
runs everything else and alone touches sessions and streams. From the first to the second only output crosses,
in `Host._show`, and it is checked on arrival: the registry promises that nothing begins after the end of a
conversation, and it cannot promise that of what a handler has already sent on its way.

The operations of an in-process registry take microseconds, so the loop calls them directly. A host whose
registry sits across a network would call them in a worker thread.
"""

from __future__ import annotations

import asyncio
import json
import secrets
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from importlib.resources import files
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

import stube
from stube.demo._panel import name_of, panel
from stube.demo._stream import Stream, StreamResponse

__all__ = ["Host", "create_app"]

ROOM = "room"
FLOW = "clock-and-chat"
BODY_LIMIT = 4096
TEXT_LIMIT = 500


class Session:
    """What the server's loop keeps of a conversation once it has booted. Touched on the loop only."""

    def __init__(self, conversation: stube.Conversation) -> None:
        self.conversation = conversation
        self.stream: Stream | None = None
        """The connected stream, or None while it is cut."""
        self.gone: stube.TimerHandle | None = None
        """The grace timer, while the stream is cut."""


class Host:
    """The application: its handlers, its pages, and who is connected.

    Args:
        registry: where conversations live. The host closes nothing that it did not make.
        sweep_ms: how long a page may take to connect.
        grace_ms: how long a cut stream may take to come back.
        tick_ms: the step of the clock.
    """

    def __init__(self, registry: stube.Backend, *, sweep_ms: float, grace_ms: float, tick_ms: float) -> None:
        self.registry = registry
        self.conversations = stube.Conversations(registry)
        self._sweep_ms, self._grace_ms, self._tick_ms = sweep_ms, grace_ms, tick_ms
        self._page = files("stube.demo").joinpath("page.html").read_text("utf-8")
        self._loop: asyncio.AbstractEventLoop | None = None
        # Touched on the loop only. A conversation is here from its boot until it has ended.
        self._sessions: dict[str, Session] = {}
        self._closing = False

    # The handlers: on the registry's thread, one at a time per conversation.

    def dispatch(self, cid: str, event: stube.Event) -> None:
        """What happens in a conversation: the function that the registry calls for every delivery."""
        conversation = self.conversations.get(cid)
        if conversation is None:
            return
        match event:
            case stube.Event("tick", int(number)):
                # The clock's state travels with its timer: nothing to keep, nothing to clean up. Ended
                # meanwhile? Then this raises ConversationEnded, which the registry knows and forgives.
                conversation.schedule(("tick", number + 1), self._tick_ms, instance_id="clock")
                self._show(conversation, "tick", {"number": number})
            case stube.Event("said", message):
                self._show(conversation, "said", message)
            case stube.Event("sweep"):
                # The first stream may be arriving at this moment. The baton has exactly one taker, and who
                # gets it decides.
                if conversation.take_flow() is not None:
                    self._end(conversation)
            case stube.Event("gone"):
                self._end(conversation)
            case _:
                raise LookupError(f"This host has no handler for {event!r}.")

    def _show(self, conversation: stube.Conversation, kind: str, data: dict[str, Any]) -> None:
        self._on_loop(self._send, conversation, kind, data)

    def _end(self, conversation: stube.Conversation) -> None:
        conversation.end()
        self._on_loop(self._forget, conversation.cid)

    def _on_loop(self, function: Callable[..., None], *arguments: Any) -> None:
        if self._loop is not None:
            try:
                self._loop.call_soon_threadsafe(function, *arguments)
            except RuntimeError:
                pass  # The loop has closed: there is nobody left to show anything to.

    # From here on everything runs on the server's loop.

    def _send(self, conversation: stube.Conversation, kind: str, data: dict[str, Any]) -> None:
        # It may have ended between the handler and here. What a cut stream misses is not kept for it.
        session = self._sessions.get(conversation.cid)
        if session is not None and session.stream is not None and not conversation.ended:
            session.stream.send(kind, data)

    def _forget(self, cid: str) -> None:
        session = self._sessions.pop(cid, None)
        if session is not None and session.stream is not None:
            session.stream.close("ended")

    async def page(self, request: Request) -> Response:
        """`GET /`: open a conversation and hand out the page that belongs to it."""
        conversation = self.conversations.open()
        try:
            conversation.put_flow(FLOW)
            conversation.schedule("sweep", self._sweep_ms, instance_id="sweep")
        except stube.StubeError:
            conversation.end()
            raise
        nonce = secrets.token_urlsafe(16)
        html = self._page
        for field, value in ("cid", conversation.cid), ("name", name_of(conversation.cid)), ("nonce", nonce):
            html = html.replace("{{" + field + "}}", value)
        policy = (
            f"default-src 'none'; script-src 'nonce-{nonce}'; style-src 'nonce-{nonce}'; "
            "connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
        )
        # A page that a cache hands out twice would be two pages in one conversation.
        return HTMLResponse(html, headers={"Cache-Control": "no-store", "Content-Security-Policy": policy})

    async def stream(self, request: Request) -> Response:
        """`GET /stream/{cid}`: boot the conversation, or resume it, and send what happens in it."""
        if request.method == "HEAD":
            raise HTTPException(405)
        if self._closing:
            raise HTTPException(503)
        conversation = self._conversation(request)
        session, resumed = self._boot_or_resume(conversation)
        if session.stream is not None:
            session.stream.close("replaced")
        stream = session.stream = Stream()
        stream.send("hello", {"name": name_of(conversation.cid), "resumed": resumed})
        return StreamResponse(stream, lambda: self._stream_over(session, stream))

    def _boot_or_resume(self, conversation: stube.Conversation) -> tuple[Session, bool]:
        flow = conversation.take_flow()
        if flow is None:
            session = self._sessions.get(conversation.cid)
            # No baton and no session: the sweep has taken it. A grace timer that can no longer be cancelled
            # has begun. Either way the conversation is about to end.
            if session is None or (session.gone is not None and not session.gone.cancel()):
                raise HTTPException(404)
            session.gone = None
            return session, True
        # With one flow there is nothing to choose by it; a host with many would look it up here.
        try:
            conversation.cancel_timers()  # the sweep
            conversation.subscribe(ROOM, "said", instance_id="chat")
            conversation.schedule(("tick", 1), self._tick_ms, instance_id="clock")
        except stube.StubeError:
            conversation.end()  # half a boot has no sweep and no stream, so nobody else would end it
            raise
        session = self._sessions[conversation.cid] = Session(conversation)
        return session, False

    def _stream_over(self, session: Session, stream: Stream) -> None:
        if session.stream is not stream:
            return  # replaced by a newer one
        session.stream = None
        try:
            session.gone = session.conversation.schedule("gone", self._grace_ms, instance_id="stream")
        except (stube.ConversationEnded, stube.RegistryClosed):
            pass
        except stube.RegistryFull:
            # No room for the timer that would end it, so it ends now: nothing lives without an end in sight.
            self._end(session.conversation)

    async def say(self, request: Request) -> Response:
        """`POST /say/{cid}` with `{"text": "..."}`: to everybody in the room."""
        text = await _read_text(request)
        conversation = self._conversation(request)
        targets = self.registry.publish(ROOM, {"from": name_of(conversation.cid), "text": text})
        return JSONResponse({"targets": targets}, 202)

    async def leave(self, request: Request) -> Response:
        """`POST /leave/{cid}`: the page is being closed."""
        self._end(self._conversation(request))
        return Response(status_code=204)

    async def panel(self, request: Request) -> Response:
        """`GET /registry`: what the side panel shows."""
        return JSONResponse(panel(self.registry), headers={"Cache-Control": "no-store"})

    async def healthz(self, request: Request) -> Response:
        """`GET /healthz`: the server answers."""
        return PlainTextResponse("ok\n")

    def _conversation(self, request: Request) -> stube.Conversation:
        conversation = self.conversations.get(request.path_params["cid"])
        if conversation is None:
            raise HTTPException(404, "This conversation has ended, or never was. Load the page anew.")
        return conversation

    def close_streams(self) -> None:
        """Let every stream end, and take no new one: the server is about to stop and would wait for them."""
        self._closing = True
        for session in self._sessions.values():
            if session.stream is not None:
                session.stream.close("shutdown")

    @asynccontextmanager
    async def lifespan(self, app: Starlette) -> AsyncIterator[None]:
        """While the server runs: deliveries arrive. Afterwards no conversation is left."""
        self._loop, self._closing = asyncio.get_running_loop(), False
        self.registry.install_dispatch(self.dispatch)
        yield
        for conversation in self.conversations:
            conversation.end()
        self._sessions.clear()


async def _read_text(request: Request) -> str:
    body = b""
    async for chunk in request.stream():
        body += chunk
        if len(body) > BODY_LIMIT:
            raise HTTPException(413, f"The message is longer than {BODY_LIMIT} bytes.")
    try:
        data = json.loads(body)
    except (ValueError, RecursionError):
        data = None
    text = data.get("text") if isinstance(data, dict) else None
    if not isinstance(text, str) or not 0 < len(text.strip()) <= TEXT_LIMIT:
        raise HTTPException(422, f'The body must be {{"text": "..."}} with 1 to {TEXT_LIMIT} characters.')
    return text.strip()


async def _no_room(request: Request, exc: Exception) -> Response:
    return PlainTextResponse(str(exc), 503)


def create_app(
    registry: stube.Backend, *, sweep_ms: float = 10_000, grace_ms: float = 5_000, tick_ms: float = 1_000
) -> Starlette:
    """The application on a registry. Its `state.host` is the `Host`. The caller closes the registry.

    Args:
        registry: any backend with a clock of its own.
        sweep_ms: how long a page may take to connect.
        grace_ms: how long a cut stream may take to come back.
        tick_ms: the step of the clock.
    """
    host = Host(registry, sweep_ms=sweep_ms, grace_ms=grace_ms, tick_ms=tick_ms)
    app = Starlette(
        routes=[
            Route("/", host.page),
            Route("/stream/{cid}", host.stream),
            Route("/say/{cid}", host.say, methods=["POST"]),
            Route("/leave/{cid}", host.leave, methods=["POST"]),
            Route("/registry", host.panel),
            Route("/healthz", host.healthz),
        ],
        exception_handlers={stube.RegistryFull: _no_room, stube.RegistryClosed: _no_room},
        lifespan=host.lifespan,
    )
    app.state.host = host
    return app
