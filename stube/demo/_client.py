"""One page, played over real HTTP: it remembers everything that reached it."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Callable, Iterable
from typing import Any

import httpx


class Pulse:
    """Beats whenever any client receives something, so that a task can wait without polling. One task may wait."""

    def __init__(self) -> None:
        self._beat = asyncio.Event()

    def beat(self) -> None:
        self._beat.set()

    async def until(self, met: Callable[[], bool], seconds: float) -> bool:
        """Wait until `met`, for at most `seconds`; return the last value of `met`."""
        try:
            async with asyncio.timeout(seconds):
                while not met():
                    self._beat.clear()
                    await self._beat.wait()
        except TimeoutError:
            pass
        return met()


class Client:
    """A page: mounts, connects, speaks, loses its stream, comes back, leaves.

    Args:
        url: where the server is.
        pulse: beats when something is received.
        patience: how many seconds an answer may take.
    """

    def __init__(self, url: str, pulse: Pulse, patience: float) -> None:
        # Each client has a pool of its own, as a browser has, because a pool takes time quadratic in its connections.
        # A proxy of the environment must not be used between a process and itself, and there is no TLS to verify.
        self._http = httpx.AsyncClient(base_url=url, timeout=patience, trust_env=False, verify=False)
        self._pulse = pulse
        self._reader: asyncio.Task[None] | None = None
        # The id of the last event. A new stream sends it, as a browser's EventSource does, to continue from there.
        self._last_event_id = ""
        self.cid = ""
        self.hellos = 0
        """Number of flows that were booted."""
        self.ticks: list[list[int]] = []
        """The clock's numbers, for each stream that connected."""
        self.heard: list[str] = []
        """Messages, over all streams."""
        self.byes: list[str] = []
        """The server's reasons for ending a stream."""
        self.gaps = 0
        """Number of times the server reported that events were lost."""

    async def mount(self) -> None:
        page = (await self._http.get("/")).raise_for_status().text
        found = re.search(r'data-cid="([\w-]+)"', page)
        if found is None:
            raise ValueError("the page names no conversation")
        self.cid = found[1]

    async def connect(self) -> None:
        """Open a stream in the background; `ticks` grows by one once it is there."""
        self._reader = asyncio.create_task(self._read(), name=f"stream {self.cid}")

    async def cut(self) -> None:
        """Drop the connection without telling the server, as a lost network does."""
        if self._reader is not None:
            self._reader.cancel()
            await asyncio.gather(self._reader, return_exceptions=True)
            self._reader = None

    async def close(self) -> None:
        """Drop every connection."""
        await self.cut()
        await self._http.aclose()

    async def panel(self) -> dict[str, Any]:
        """Return the content of the side panel."""
        panel: dict[str, Any] = (await self._http.get("/registry")).raise_for_status().json()
        return panel

    async def say(self, texts: Iterable[str]) -> int:
        """Say the texts one after the other; return the sum of their subscribers. A refused text has none."""
        targets = 0
        for text in texts:
            answer = await self._http.post(f"/say/{self.cid}", json={"text": text})
            targets += answer.json()["targets"] if answer.is_success else 0
        return targets

    async def leave(self) -> None:
        """Close the tab. The stream shows the result."""
        await self._http.post(f"/leave/{self.cid}")

    async def is_gone(self) -> bool:
        """Return True if the server no longer knows the conversation."""
        async with self._http.stream("GET", f"/stream/{self.cid}") as answer:
            return answer.status_code == 404

    async def _read(self) -> None:
        headers = {"Last-Event-ID": self._last_event_id} if self._last_event_id else {}
        async with self._http.stream("GET", f"/stream/{self.cid}", headers=headers) as answer:
            answer.raise_for_status()
            self.ticks.append([])
            self._pulse.beat()
            event_id = kind = ""
            async for line in answer.aiter_lines():
                field, _, value = line.partition(": ")
                if field == "id":
                    event_id = value
                elif field == "event":
                    kind = value
                elif field == "data":
                    self._last_event_id = event_id
                    self._receive(kind, json.loads(value))
                    self._pulse.beat()

    def _receive(self, kind: str, data: dict[str, Any]) -> None:
        match kind:
            case "hello":
                self.hellos += 1
            case "tick":
                self.ticks[-1].append(data["number"])
            case "said":
                self.heard.append(data["text"])
            case "gap":
                self.gaps += 1
            case "bye":
                self.byes.append(data["reason"])
