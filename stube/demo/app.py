"""A host on stube, from beginning to end: pages with a clock and a chat, over server-sent events.

The life of a conversation:

1. `GET /` opens it, puts its baton and schedules a sweep, in case the page never connects.
2. `GET /stream/{cid}`, the first time, takes the baton and boots the flow: no sweep any more, a clock that
   re-arms itself, a subscription to the room. Later times resume; the clock has been going on.
3. When a stream is cut, the conversation is kept for a grace period and then ended.
4. `POST /leave/{cid}` ends it at once. Whatever ends it, nothing of it remains in the registry.

To see a registry at work a page can freeze its own handler for a while (`POST /freeze/{cid}`, `POST /thaw/{cid}`):
on a thread everybody stalls who shares it, on an event loop nobody else. On a virtual registry time stands still, for
the grace periods as for the clocks, until a page moves it (`POST /advance/{cid}`); only messages arrive at once.

Two threads meet here. The registry's thread calls `Host.dispatch`, where the handlers are. The server's loop
runs everything else and alone touches sessions and streams. From the first to the second only output crosses,
in `Host._show`, and it is checked on arrival: the registry promises that nothing begins after the end of a
conversation, and it cannot promise that of what a handler has already sent on its way. (On the asyncio backend the
two threads are one, on the virtual one the first is whoever moves the clock; nothing here depends on it.)

The operations of an in-process registry take microseconds, so the loop calls them directly. A host whose
registry sits across a network would call them in a worker thread.
"""

from __future__ import annotations

import asyncio
import json
import secrets
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import Future
from contextlib import asynccontextmanager, contextmanager
from importlib.resources import files
from time import monotonic
from typing import Any, cast

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

import stube
from stube.demo._freezer import Freezer
from stube.demo._meter import Meter
from stube.demo._panel import Panel, name_of
from stube.demo._stream import Stream, StreamResponse

__all__ = ["Host", "create_app"]

ROOM = "room"
FLOW = "clock-and-chat"
ENDED = "This conversation has ended, or never was. Load the page anew."
BODY_LIMIT = 4096
TEXT_LIMIT = 500
STEP_LIMIT_MS = 24 * 3_600_000
"""How far one request may move a virtual clock: every second of it is a tick of every clock."""


class Session:
    """What the server's loop keeps of a conversation once it has booted. Touched on the loop only."""

    def __init__(self, conversation: stube.Conversation, idle: stube.TimerHandle) -> None:
        self.conversation = conversation
        self.idle = idle
        """The timer that remarks on a long silence; every message begins it anew."""
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
        idle_ms: how long a page says nothing before it is told so.
        freeze_ms: how long a handler stands still at most.
    """

    def __init__(
        self,
        registry: stube.Backend,
        *,
        sweep_ms: float,
        grace_ms: float,
        tick_ms: float,
        idle_ms: float,
        freeze_ms: float,
    ) -> None:
        self.registry = registry
        self.conversations = stube.Conversations(registry)
        self._sweep_ms, self._grace_ms, self._tick_ms, self._idle_ms = sweep_ms, grace_ms, tick_ms, idle_ms
        self._page = _page()
        virtual = "virtual_time" in registry.capabilities
        self._virtual = cast("stube.VirtualBackend", registry) if virtual else None
        # Written by whoever moves a virtual clock, read on the loop: the last tick of each conversation that ticked.
        self._ticks: dict[stube.Conversation, int] = {}
        self._freezer = Freezer(freeze_ms)
        self._meter = Meter(self._now_ms)
        self._panel = Panel(registry, self._meter, self._freezer, self._now_ms)
        self._loop: asyncio.AbstractEventLoop | None = None
        # Touched on the loop only. A conversation is here from its boot until it has ended.
        self._sessions: dict[str, Session] = {}
        self._closing = False

    # The handlers: on the registry's thread, one at a time per conversation.

    def dispatch(self, cid: str, event: stube.Event) -> None:
        """What happens in a conversation: the function that the registry calls for every delivery."""
        self._note(event)
        conversation = self.conversations.get(cid)
        if conversation is None:
            return
        match event:
            case stube.Event("tick", (int(number), float())):
                # The clock's state travels with its timer: nothing to keep, nothing to clean up. Ended
                # meanwhile? Then this raises ConversationEnded, which the registry knows and forgives.
                self._schedule_tick(conversation, number + 1)
                self._show_tick(conversation, number)
            case stube.Event("said", message):
                self._show(conversation, "said", message)
            case stube.Event("idle"):
                self._show(conversation, "idle", {"minutes": self._idle_ms / 60_000})
            case stube.Event("freeze"):
                with self._freezing(conversation) as latch:
                    if latch is not None:
                        self._freezer.hold(latch)
            case stube.Event("sweep"):
                # The first stream may be arriving at this moment. The baton has exactly one taker, and who
                # gets it decides.
                if conversation.take_flow() is not None:
                    self._end(conversation)
            case stube.Event("gone"):
                self._end(conversation)
            case _:
                raise LookupError(f"This host has no handler for {event!r}.")

    async def dispatch_awaiting(self, cid: str, event: stube.Event) -> None:
        """`dispatch` for a registry that awaits it: a handler that stands still lets the others go on."""
        conversation = self.conversations.get(cid)
        if conversation is None or event.name != "freeze":
            self.dispatch(cid, event)
            return
        self._note(event)
        with self._freezing(conversation) as latch:
            if latch is not None:
                await self._freezer.hold_awaiting(latch)

    @contextmanager
    def _freezing(self, conversation: stube.Conversation) -> Iterator[Future[None] | None]:
        """Tell the page when its handler stands still and when it goes on; None when that has been taken back."""
        latch, begin = self._freezer.begin(conversation.cid), monotonic()
        if latch is None:
            yield None
            return
        self._show(conversation, "frozen", {"seconds": self._freezer.seconds})
        try:
            yield latch
        finally:
            self._freezer.end(conversation.cid, latch)
            self._show(conversation, "thawed", {"seconds": round(monotonic() - begin, 1)})

    def _note(self, event: stube.Event) -> None:
        match event:
            case stube.Event("tick", (_, float(due))):
                self._meter.note(due)
            case _:
                self._meter.note(None)

    def _schedule_tick(self, conversation: stube.Conversation, number: int) -> None:
        due = self._now_ms() + self._tick_ms
        conversation.schedule(("tick", number, due), self._tick_ms, instance_id="clock")

    def _now_ms(self) -> float:
        """The clock of the registry's timers. Any thread."""
        return stube.monotonic_ns() / 1e6 if self._virtual is None else self._virtual.now_ms

    def _show_tick(self, conversation: stube.Conversation, number: int) -> None:
        # Half an hour may pass in a moment: that is 1800 ticks, and a page needs the last.
        if self._virtual is None:
            self._show(conversation, "tick", {"number": number})
        else:
            self._ticks[conversation] = number

    def _show(self, conversation: stube.Conversation, kind: str, data: dict[str, Any]) -> None:
        self._on_loop(self._send, conversation, kind, data)

    def _end(self, conversation: stube.Conversation) -> None:
        conversation.end()
        self._freezer.thaw(conversation.cid)
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
        name, ability = name_of(conversation.cid), "freeze" if self._virtual is None else "advance"
        for field, value in ("cid", conversation.cid), ("name", name), ("ability", ability), ("nonce", nonce):
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
        frozen = self._freezer.is_asked(conversation.cid)
        stream.send("hello", {"name": name_of(conversation.cid), "resumed": resumed, "frozen": frozen})
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
            self._schedule_tick(conversation, 1)
            idle = conversation.schedule("idle", self._idle_ms, instance_id="idle")
        except stube.StubeError:
            conversation.end()  # half a boot has no sweep and no stream, so nobody else would end it
            raise
        session = self._sessions[conversation.cid] = Session(conversation, idle)
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
        data = await _read_object(request, "text")
        text = data if isinstance(data, str) else ""
        if not 0 < len(text.strip()) <= TEXT_LIMIT:
            raise HTTPException(422, f'The body must be {{"text": "..."}} with 1 to {TEXT_LIMIT} characters.')
        conversation = self._conversation(request)
        session = self._sessions.get(conversation.cid)
        if session is not None:
            # First the new timer: when there is no room for it, nothing has changed and nothing is said.
            idle = conversation.schedule("idle", self._idle_ms, instance_id="idle")
            session.idle.cancel()
            session.idle = idle
        message = {"from": name_of(conversation.cid), "text": text.strip()}
        targets = self.registry.publish(ROOM, message)
        if self._virtual is not None:
            self._virtual.settle(0)  # at this instant; if somebody moves the clock, they deliver it
            self._flush_ticks()
        return JSONResponse({"targets": targets}, 202)

    async def freeze(self, request: Request) -> Response:
        """`POST /freeze/{cid}`: the next handler of this conversation stands still, for a while at most."""
        if self._virtual is not None:
            raise HTTPException(404, "Nothing can be frozen here, for time stands still already.")
        conversation = self._conversation(request)
        if self._freezer.ask(conversation.cid):
            try:
                conversation.schedule("freeze", 0, instance_id="freezer")
            except stube.StubeError:
                self._freezer.thaw(conversation.cid)
                raise
        return Response(status_code=202)

    async def thaw(self, request: Request) -> Response:
        """`POST /thaw/{cid}`: a handler that stands still goes on."""
        self._freezer.thaw(self._conversation(request).cid)
        return Response(status_code=204)

    async def advance(self, request: Request) -> Response:
        """`POST /advance/{cid}` with `{"ms": 1000}`: move a virtual clock, for everybody."""
        step = await _read_object(request, "ms")
        self._conversation(request)
        if self._virtual is None:
            raise HTTPException(404, "This registry's time is real. Wait.")
        if isinstance(step, bool) or not isinstance(step, int) or not 0 < step <= STEP_LIMIT_MS:
            raise HTTPException(422, f'The body must be {{"ms": 1}}, up to {STEP_LIMIT_MS}.')
        try:
            # In a thread, for a long step is many deliveries, and the streams go on meanwhile.
            await asyncio.to_thread(self._virtual.advance, step)
        except stube.VirtualTimeError:
            raise HTTPException(409, "Somebody else is moving the clock at this moment. Try again.") from None
        finally:
            self._flush_ticks()
            self._panel.renew()
        return JSONResponse({"now_ms": self._virtual.now_ms})

    def _flush_ticks(self) -> None:
        while self._ticks:
            conversation, number = self._ticks.popitem()
            self._send(conversation, "tick", {"number": number})

    async def leave(self, request: Request) -> Response:
        """`POST /leave/{cid}`: the page is being closed."""
        self._end(self._conversation(request))
        return Response(status_code=204)

    async def panel(self, request: Request) -> Response:
        """`GET /registry`: what the inspector shows; one snapshot for all who ask within a moment."""
        return Response(self._panel.body(), media_type="application/json", headers={"Cache-Control": "no-store"})

    async def healthz(self, request: Request) -> Response:
        """`GET /healthz`: the server answers."""
        return PlainTextResponse("ok\n")

    def _conversation(self, request: Request) -> stube.Conversation:
        conversation = self.conversations.get(request.path_params["cid"])
        if conversation is None:
            raise HTTPException(404, ENDED)
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
        # Where time is virtual nothing is ever frozen, so nothing is awaited.
        if "coroutine_dispatch" in self.registry.capabilities and self._virtual is None:
            cast("stube.AsyncBackend", self.registry).install_dispatch(self.dispatch_awaiting)
        else:
            self.registry.install_dispatch(self.dispatch)
        yield
        for conversation in self.conversations:
            conversation.end()
            self._freezer.thaw(conversation.cid)
        self._sessions.clear()


def _page() -> str:
    """The page with its style and its script inside: one answer, which needs nothing else."""
    folder = files("stube.demo")
    html, css, js = (folder.joinpath(f"page.{kind}").read_text("utf-8") for kind in ("html", "css", "js"))
    return html.replace("{{style}}", css).replace("{{script}}", js)


async def _read_object(request: Request, field: str) -> Any:
    """What stands under `field` in the body, a JSON object; None when there is no such thing."""
    body = b""
    async for chunk in request.stream():
        body += chunk
        if len(body) > BODY_LIMIT:
            raise HTTPException(413, f"The message is longer than {BODY_LIMIT} bytes.")
    try:
        data = json.loads(body)
    except (ValueError, RecursionError):
        data = None
    return data.get(field) if isinstance(data, dict) else None


async def _ended(request: Request, exc: Exception) -> Response:
    return PlainTextResponse(ENDED, 404)


async def _no_room(request: Request, exc: Exception) -> Response:
    return PlainTextResponse(str(exc), 503)


def create_app(
    registry: stube.Backend,
    *,
    sweep_ms: float = 10_000,
    grace_ms: float = 5_000,
    tick_ms: float = 1_000,
    idle_ms: float = 1_800_000,
    freeze_ms: float = 10_000,
) -> Starlette:
    """The application on a registry. Its `state.host` is the `Host`. The caller closes the registry.

    Args:
        registry: any backend. The time of a virtual one stands still until a page moves it.
        sweep_ms: how long a page may take to connect.
        grace_ms: how long a cut stream may take to come back.
        tick_ms: the step of the clock.
        idle_ms: how long a page says nothing before it is told so.
        freeze_ms: how long a handler that is frozen stands still at most.
    """
    times = {"sweep_ms": sweep_ms, "grace_ms": grace_ms, "tick_ms": tick_ms}
    host = Host(registry, **times, idle_ms=idle_ms, freeze_ms=freeze_ms)
    app = Starlette(
        routes=[
            Route("/", host.page),
            Route("/stream/{cid}", host.stream),
            Route("/say/{cid}", host.say, methods=["POST"]),
            Route("/leave/{cid}", host.leave, methods=["POST"]),
            Route("/freeze/{cid}", host.freeze, methods=["POST"]),
            Route("/thaw/{cid}", host.thaw, methods=["POST"]),
            Route("/advance/{cid}", host.advance, methods=["POST"]),
            Route("/registry", host.panel),
            Route("/healthz", host.healthz),
        ],
        exception_handlers={
            stube.ConversationEnded: _ended,  # between the look for it and the use of it
            stube.RegistryFull: _no_room,
            stube.RegistryClosed: _no_room,
        },
        lifespan=host.lifespan,
    )
    app.state.host = host
    return app
