"""The self-check: the application runs against itself, over real HTTP, and every figure is counted on two sides.

The figures that are wrong for each kind of broken registry:

- a registry that loses a message: "messages heard", "delivered"; one that loses a timer: "clocks running";
- one that delivers twice: "messages heard twice", "ticks out of order", "delivered";
- one that reorders: "messages out of order"; one that overlaps deliveries: "most deliveries at a time";
- one whose timers are early: "ticks too early"; one whose handles cancel nothing: "sweeps", "grace timers";
- one whose `cancel_timers` does nothing: "timers left", "deliveries after the end"; one that does not remove
  subscriptions: "subscriptions left";
- one that miscounts: the figure of the ledger that it miscounts, or "ledger balanced".
"""

from __future__ import annotations

import asyncio
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from itertools import chain, pairwise

import stube
from stube.demo._client import Client, Pulse
from stube.demo._figures import Figures
from stube.demo._report import Figure, Report
from stube.demo.app import Demo, create_app
from stube.demo.server import open_registry, running
from stube.testing import RecordedRegistry

__all__ = ["self_check"]

MOST_CLIENTS = 100
BOUND_SECONDS = 30.0
ORDERLY_SECONDS = 20.0
"""The time that the clients have. The rest of the bound is for stopping the server in good order."""
PATIENCE_SECONDS = 5.0
"""The time that a step has, which needs milliseconds; reached only when something is wrong."""


class Check:
    """One run. The methods are in the order in which the steps happen.

    Args:
        registry: the registry under test; closed at the end.
        clients: the number of pages that talk to each other; two more only mount, or vanish.
    """

    def __init__(self, registry: stube.Backend, clients: int) -> None:
        self.report = Report(type(registry).__name__, clients)
        self.step = "start the server"
        # The clock is slower with more clients, because the check must not fail when one process is too slow for both
        # sides.
        self._tick_ms = max(50, 2 * clients)
        self._grace_ms = 500 + 5 * clients
        self._sweep_ms = 1000 + 10 * clients
        # The number of events that may wait for one page must stay well below the capacity of its stream.
        self._messages = max(1, min(5, 100 // clients))
        self._registry = registry
        self._recorded = RecordedRegistry(registry)
        self._app = create_app(
            self._recorded,
            sweep_ms=self._sweep_ms,
            grace_ms=self._grace_ms,
            tick_ms=self._tick_ms,
        )
        self._pulse = Pulse()
        self._handled_at_end = 0

    async def run(self) -> None:
        """Do everything except closing the registry; the report says what is wrong."""
        with running(self._app) as url:
            everybody = [Client(url, self._pulse, PATIENCE_SECONDS) for _ in range(self.report.clients + 2)]
            try:
                await self._play(everybody)
            finally:
                await asyncio.gather(*(client.close() for client in everybody))
            self._begin("stop the server")

    def close(self) -> None:
        """Close the registry."""
        self._begin("close the registry")
        self._figure("registry closed", 1, self._registry.close())

    async def _play(self, everybody: list[Client]) -> None:
        *connecting, absent = everybody
        *staying, vanishing = connecting
        await self._mount(everybody)
        await self._connect(connecting)
        await self._see_clocks(connecting)
        await self._chat("first", staying, connecting)
        await self._cut_and_resume(staying[::2], vanishing, connecting)
        await self._lose(absent, vanishing)
        await self._chat("second", staying, staying)
        self._judge_streams(connecting)
        await self._leave(staying)
        await self._look_after_the_end(absent)
        self._judge_ledger()

    async def _mount(self, everybody: list[Client]) -> None:
        self._begin("mount the pages")
        *connecting, absent = everybody
        await asyncio.gather(*(client.mount() for client in connecting))
        # Mounted last, so that when its sweep fires, every other sweep that was not cancelled has fired, too.
        await absent.mount()
        self._figure("pages mounted", len(everybody), len({client.cid for client in everybody}))

    async def _connect(self, clients: list[Client]) -> None:
        self._begin("connect the streams")
        for client in clients:
            await client.connect()
        await self._pulse.until(lambda: all(client.hellos for client in clients), PATIENCE_SECONDS)
        booted = sum(client.hellos for client in clients)
        self._figure("flows booted", len(clients), booted)
        if booted < len(clients):
            raise RuntimeError("not every stream connected")

    async def _see_clocks(self, clients: list[Client]) -> None:
        self._begin("see the clocks tick")
        wanted = 5
        await self._pulse.until(
            lambda: all(len(client.ticks[-1]) >= wanted for client in clients),
            PATIENCE_SECONDS + wanted * self._tick_ms / 1000,
        )
        self._figure("clocks running", len(clients), sum(len(c.ticks[-1]) >= wanted for c in clients))
        if not any(client.ticks[-1] for client in clients):
            raise RuntimeError("no clock ticks at all")

    async def _chat(self, label: str, speakers: list[Client], hearers: list[Client]) -> None:
        self._begin(f"chat, {label} round")
        before = _different(hearers)
        indexes = range(self._messages)
        targets = await asyncio.gather(
            *(
                speaker.say([f"{label} {number} {index}" for index in indexes])
                for number, speaker in enumerate(speakers)
            )
        )
        expected = len(speakers) * len(indexes) * len(hearers)
        self._figure(f"messages targeted, {label} round", expected, sum(targets))
        self._registry.settle(PATIENCE_SECONDS)
        # Every handler has returned. A stream keeps the order, so a message that has not arrived before two further
        # ticks of the same stream will never arrive.
        seen = {client: len(client.ticks[-1]) + 2 for client in hearers}
        await self._pulse.until(
            lambda: (
                _different(hearers) - before == expected
                or all(client.byes or len(client.ticks[-1]) >= enough for client, enough in seen.items())
            ),
            PATIENCE_SECONDS,
        )
        self._figure(f"messages heard, {label} round", expected, _different(hearers) - before)

    async def _cut_and_resume(self, clients: list[Client], speaker: Client, hearers: list[Client]) -> None:
        self._begin("cut streams and resume them")
        before = _different(hearers)
        for client in clients:
            await client.cut()
        # The server notices a cut only after a while. A stream that came back earlier would merely replace the old one,
        # and there would be no grace timer to cancel.
        await self._pulse.until(lambda: self._grace_timers() >= len(clients), PATIENCE_SECONDS)
        self._figure("streams seen cut", len(clients), self._grace_timers())
        # The server keeps these messages for the streams that come back.
        texts = [f"cut {index}" for index in range(self._messages)]
        await speaker.say(texts)
        for client in clients:
            await client.connect()
        expected = len(texts) * len(hearers)
        await self._pulse.until(
            lambda: (
                all(len(client.ticks) == 2 and len(client.ticks[1]) >= 2 for client in clients)
                and _different(hearers) - before == expected
            ),
            PATIENCE_SECONDS,
        )
        self._figure("streams resumed", len(clients), sum(len(c.ticks) == 2 and c.hellos == 1 for c in clients))
        again = [c.ticks for c in clients if len(c.ticks) == 2 and c.ticks[1]]
        continued = sum(not _gaps(first[-1:] + second[:1]) for first, second in again)
        self._figure("clocks that continued", len(clients), continued)
        self._figure("messages heard, said while streams were cut", expected, _different(hearers) - before)

    async def _lose(self, absent: Client, vanishing: Client) -> None:
        self._begin("sweep the page that never connected, end the one that vanished")
        await vanishing.cut()
        # Every tick is a beat of the pulse, so the condition is tested again and again.
        await self._pulse.until(
            lambda: not any(self._registry.inspect(client.cid) for client in (absent, vanishing)),
            PATIENCE_SECONDS + max(self._sweep_ms, self._grace_ms) / 1000,
        )
        self._registry.settle(PATIENCE_SECONDS)
        gone = [await client.is_gone() for client in (absent, vanishing)]
        self._figure("pages given up", 2, sum(gone))

    def _judge_streams(self, clients: list[Client]) -> None:
        # Over all streams of a page, because the events that it missed while its stream was cut are repeated.
        self._figure("ticks out of order", 0, sum(_gaps(chain.from_iterable(c.ticks)) for c in clients))
        self._figure("gaps", 0, sum(client.gaps for client in clients))
        figures = self._figures()
        self._figure("ticks too early", 0, figures.early)
        self._figure("messages heard twice", 0, sum(len(c.heard) for c in clients) - _different(clients))
        self._figure("messages out of order", 0, sum(_disorder(client.heard) for client in clients))
        self._figure("sweeps", 1, figures.handled["sweep"])
        self._figure("grace timers", 1, figures.handled["gone"])
        self._figure("most deliveries at a time", 1, figures.most_inside)

    async def _leave(self, clients: list[Client]) -> None:
        self._begin("leave")
        await asyncio.gather(*(client.leave() for client in clients))
        self._registry.settle(PATIENCE_SECONDS)
        self._handled_at_end = self._figures().handled.total()
        stats = self._registry.stats()
        self._figure("timers left", 0, stats.timers)
        self._figure("subscriptions left", 0, stats.subscriptions)
        self._figure("batons left", 0, stats.pending_flows)
        self._figure("conversations left", 0, len(self._registry.inspect()))
        await self._pulse.until(lambda: all(client.byes for client in clients), PATIENCE_SECONDS)
        self._figure("streams ended by leaving", len(clients), sum(c.byes == ["ended"] for c in clients))

    async def _look_after_the_end(self, onlooker: Client) -> None:
        self._begin("see that nothing comes any more")
        # Wait for three steps of the clock: in that time every clock that still runs would have ticked.
        await asyncio.sleep(3 * self._tick_ms / 1000)
        self._figure("deliveries after the end", 0, self._figures().handled.total() - self._handled_at_end)
        self._figure("conversations on the panel", 0, (await onlooker.panel())["total"])
        demo: Demo = self._app.state.demo
        self._figure("handles left", 0, len(demo.host.conversations))

    def _judge_ledger(self) -> None:
        self._begin("compare the ledger")
        self._registry.settle(PATIENCE_SECONDS)
        stats, counts = self._registry.stats(), self._figures()
        self._figure("accepted", counts.accepted, stats.accepted)
        self._figure("delivered", counts.handled.total() - counts.failed, stats.delivered)
        self._figure("failed", 0, stats.failed)
        self._figure("handlers that raised", 0, counts.failed)
        self._figure("cancelled", counts.cancelled, stats.cancelled)
        self._figure("dropped", 0, stats.dropped)
        self._figure("queued", 0, stats.queued)
        self._figure("running", 0, stats.running)
        self._figure("ledger balanced", 1, stats.balanced)

    def _grace_timers(self) -> int:
        """Return how many conversations wait for a stream that was cut."""
        timers = (timer for info in self._registry.inspect().values() for timer in info.timers)
        return sum(timer.event == "gone" for timer in timers)

    def _figures(self) -> Figures:
        return Figures(self._recorded.history(), tick_ms=self._tick_ms)

    def _begin(self, step: str) -> None:
        self.step = step
        print(f"stube demo: {step}", file=sys.stderr, flush=True)

    def _figure(self, name: str, expected: int, seen: int) -> None:
        self.report.figures.append(Figure(name, int(expected), int(seen)))


def _gaps(numbers: Iterable[int]) -> int:
    """Return how many ticks of one page do not follow the one before."""
    return sum(after != before + 1 for before, after in pairwise(numbers))


def _different(clients: list[Client]) -> int:
    """Return how many different messages each client heard, summed over the clients."""
    return sum(len(set(client.heard)) for client in clients)


def _disorder(heard: list[str]) -> int:
    """Return how many messages came after a later one of the same sender in the same round."""
    by_sender: defaultdict[str, list[int]] = defaultdict(list)
    for text in heard:
        sender, _, index = text.rpartition(" ")
        by_sender[sender].append(int(index))
    return sum(after < before for indexes in by_sender.values() for before, after in pairwise(indexes))


def self_check(registry_spec: str | Mapping[str, object] | None, *, clients: int, json: bool) -> int:
    """Run the application against itself and say whether every figure agrees.

    Args:
        registry_spec: a spec for `stube.create_registry`; None for the spec in the environment.
        clients: the number of pages that talk to each other, 1 to 100.
        json: print a report for machines instead of the table.

    Returns:
        The exit code: 0 if every figure agrees, 1 if one is wrong or a step did not finish, 2 if the registry's time is
        virtual.
    """
    if not 1 <= clients <= MOST_CLIENTS:
        raise stube.ConfigError(
            f"A self-check cannot have {clients} clients. Choose a number from 1 to {MOST_CLIENTS}."
        )
    registry = open_registry(registry_spec)
    if stube.is_virtual(registry):
        registry.close()
        print(
            "The virtual registry cannot be checked by live clients, because its clock moves only by advance(). "
            "Choose a registry whose time is real, such as memory.",
            file=sys.stderr,
        )
        return 2
    started = time.monotonic()
    check = Check(registry, clients)
    # In a daemon thread, so that a registry that hangs cannot hang the check.
    thread = threading.Thread(target=_run, args=(check,), name="stube-demo-check", daemon=True)
    thread.start()
    thread.join(BOUND_SECONDS)
    if thread.is_alive():
        check.report.stuck = f"{check.step} (did not finish within {BOUND_SECONDS:.0f} s)"
    check.report.seconds = time.monotonic() - started
    print(check.report.as_json() if json else check.report.as_table(), flush=True)
    return 0 if check.report.ok else 1


def _run(check: Check) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(ORDERLY_SECONDS):
            await check.run()

    parts: tuple[Callable[[], None], ...] = (lambda: asyncio.run(bounded()), check.close)
    for part in parts:
        try:
            part()
        except Exception as exc:  # noqa: BLE001 - the report names any exception, and the step
            reason = "did not finish in time" if isinstance(exc, TimeoutError) else f"{type(exc).__name__}: {exc}"
            check.report.stuck = check.report.stuck or f"{check.step} ({reason})"
