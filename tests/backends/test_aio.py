"""Promises of the asyncio backend alone: its loop, its thread, and the tasks ("runners") that run the handlers."""

from __future__ import annotations

import asyncio
import contextvars
import gc
import logging
import sys
import threading
import weakref
from asyncio import AbstractEventLoop
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from contextlib import suppress
from operator import itemgetter
from pathlib import Path
from types import FrameType
from typing import Any, Final

import pytest
from typing_extensions import override

import stube
import stube_backends
from stube import Event, RegistryClosed, Stats
from stube.testing._harness import HOUR, PATIENCE, Injector, check_ledger, run_script, tracing
from stube_backends.aio import AsyncioRegistry
from stube_backends.aio._driver import LoopDriver
from tests.backends.helpers import tick

Make = Callable[..., AsyncioRegistry]


@pytest.fixture
def make() -> Iterator[Make]:
    """Make registries that the fixture checks and closes after the test."""
    made: list[AsyncioRegistry] = []

    def build(**options: Any) -> AsyncioRegistry:
        made.append(AsyncioRegistry(**options))
        return made[-1]

    yield build
    for registry in made:
        registry._check()
        assert registry.close(PATIENCE), registry.inspect()
        registry._check()
        check_ledger(registry)


@pytest.fixture
def registry(make: Make) -> AsyncioRegistry:
    return make()


@pytest.fixture(params=["asyncio", "uvloop"])
def run(request: pytest.FixtureRequest) -> Callable[[Coroutine[Any, Any, Any]], Any]:
    """`asyncio.run`, on each kind of loop."""
    if request.param == "uvloop":
        factory = pytest.importorskip("uvloop", reason="needs the extra 'bench', where uvloop exists").new_event_loop
    else:
        factory = asyncio.new_event_loop

    def run_on_it(main: Coroutine[Any, Any, Any]) -> Any:
        with asyncio.Runner(loop_factory=factory) as runner:
            return runner.run(main)

    return run_on_it


class Recorder:
    """A coroutine function for dispatch. The handler of a name on `hold` waits until the test sets the name's gate."""

    def __init__(self) -> None:
        self.begun: list[tuple[str, str]] = []
        self.ended: list[tuple[str, str]] = []
        self.gates: dict[str, asyncio.Event] = {}
        self.entered: dict[str, asyncio.Event] = {}

    def hold(self, name: str) -> None:
        self.gates[name], self.entered[name] = asyncio.Event(), asyncio.Event()

    async def __call__(self, cid: str, event: Event) -> None:
        self.begun.append((cid, event.name))
        if event.name in self.gates:
            self.entered[event.name].set()
            await self.gates[event.name].wait()
        self.ended.append((cid, event.name))


def listen(registry: AsyncioRegistry, cid: str = "c1", event: Any = "said", topic: str = "t") -> None:
    registry.subscribe(cid=cid, instance_id="main", topic=topic, event=event)


class Box:
    """An object that can be watched through a weak reference."""


# -- interleaving --------------------------------------------------------------------------------------------


def test_a_slow_coroutine_of_one_conversation_delays_no_other(registry: AsyncioRegistry, run: Any) -> None:
    """Case 29. Fault: one runner for all, or deliveries awaited in the round."""
    recorder = Recorder()

    async def main() -> None:
        recorder.hold("slow")
        registry.install_dispatch(recorder)
        tick(registry, event="slow", cid="a")
        await recorder.entered["slow"].wait()
        for cid in ("a", "b", "c"):
            tick(registry, event="next", cid=cid)
        await until(lambda: len(recorder.ended) == 2)
        assert recorder.ended == [("b", "next"), ("c", "next")]
        held = registry.inspect()["a"]
        assert (held.running, len(held.timers)) == (1, 1)
        assert registry.stats() == Stats(accepted=4, delivered=2, running=1, timers=1)
        recorder.gates["slow"].set()
        assert await registry.settled()
        assert recorder.begun[-1] == ("a", "next")

    run(main())


def test_deliveries_queued_behind_a_slow_handler_begin_in_due_order(make: Make, run: Any) -> None:
    """G2. Fault: timers and messages enter a mailbox in the order in which rounds find them, or by kind."""
    recorder = Recorder()
    now = 0
    registry = make(clock=lambda: now)  # set by the test, so that a busy machine changes nothing

    async def main() -> None:
        nonlocal now
        recorder.hold("slow")
        registry.install_dispatch(recorder)
        listen(registry)
        tick(registry, 40, "late")
        tick(registry, 10, "first")
        tick(registry, event="slow")
        await recorder.entered["slow"].wait()
        now = 20_000_000
        registry.publish("t", 1)
        tick(registry, event="after the message")
        await _sorted(registry)
        now = 60_000_000
        await _sorted(registry)
        assert registry.stats().timers == 3
        recorder.gates["slow"].set()
        assert await registry.settled()
        names = [name for cid, name in recorder.begun if cid == "c1"]
        assert names == ["slow", "first", "said", "after the message", "late"]

    run(main())


async def until(met: Callable[[], object], patience: float = PATIENCE) -> None:
    """Let the loop turn until a condition is met that sets no event."""
    deadline = stube.monotonic_ns() + patience * 1e9
    while not met():
        assert stube.monotonic_ns() < deadline, "the condition is not met"
        await asyncio.sleep(0)


async def _sorted(registry: AsyncioRegistry) -> None:
    """Wait until a round has sorted all that is ready into mailboxes: a timer of another conversation proves it."""
    tick(registry, cid="another")
    await until(lambda: not registry.inspect("another"))


def test_slow_subscribers_receive_a_topic_in_publication_order(registry: AsyncioRegistry, run: Any) -> None:
    """G4. Fault: a subscriber whose handler is slow gets later messages first."""
    heard: dict[str, list[int]] = {}

    async def dispatch(cid: str, event: Event) -> None:
        heard.setdefault(cid, []).append(event.payload)
        for _ in range(int(cid[1:])):
            await asyncio.sleep(0)

    async def main() -> None:
        registry.install_dispatch(dispatch)
        for number in range(20):
            listen(registry, f"c{number}")
        for number in range(50):
            assert registry.publish("t", number) == 20
        assert await registry.settled()
        assert heard == {f"c{number}": list(range(50)) for number in range(20)}

    run(main())


def test_handlers_that_never_wait_do_not_starve_the_loop(registry: AsyncioRegistry, run: Any) -> None:
    """Fault: a runner empties a mailbox that fills as fast, or a round never ends, and the loop runs nothing else."""
    turns = 0

    async def main(dispatch: Any) -> None:
        nonlocal turns
        registry.install_dispatch(dispatch)
        tick(registry)
        for turns in range(50):  # noqa: B007 - each is a turn of the loop for this coroutine
            await asyncio.sleep(0)
        registry.cancel_timers("c1")
        assert await registry.settled()

    async def again(cid: str, event: Event) -> None:
        tick(registry)

    run(main(again))
    assert turns == 49
    run(main(lambda cid, event: [tick(registry), None][1]))
    assert turns == 49


def test_a_thousand_coroutines_survive_the_collector(registry: AsyncioRegistry, run: Any) -> None:
    """Case 28. Fault: only the loop refers to a task, weakly, so that the collector frees it while it waits."""
    done: list[str] = []

    async def dispatch(cid: str, event: Event) -> None:
        await _wait_without_a_reference()
        done.append(cid)

    async def main() -> None:
        registry.install_dispatch(dispatch)
        for number in range(1000):
            tick(registry, cid=f"c{number}")
        for _ in range(20):
            await asyncio.sleep(0)
            gc.collect()
        assert await registry.settled()
        assert len(done) == 1000

    run(main())


async def _wait_without_a_reference() -> None:
    """Wait, for some turns of the loop, for a future that only a reference cycle with this coroutine keeps alive."""
    loop = asyncio.get_running_loop()
    future = loop.create_future()
    reference = weakref.ref(future)

    def step(left: int) -> None:
        waiting = reference()
        if waiting is not None and not waiting.done():
            if left:
                loop.call_soon(step, left - 1)
            else:
                waiting.set_result(None)

    step(30)
    await future


# -- cancelling ----------------------------------------------------------------------------------------------


def test_deliveries_in_a_mailbox_can_be_cancelled(registry: AsyncioRegistry, run: Any) -> None:
    """G5. Fault: a delivery counts as begun once it lies in a mailbox, and no cancel finds it there."""
    recorder = Recorder()

    async def main() -> None:
        recorder.hold("slow")
        registry.install_dispatch(recorder)
        listen(registry)
        tick(registry, event="slow")
        await recorder.entered["slow"].wait()
        handle = tick(registry, event="one")
        for name in ("two", "three"):
            registry.schedule_event(cid="c1", instance_id=name, delay_ms=0, event=name)
        for _ in range(3):
            registry.publish("t", 1)
        await _sorted(registry)
        assert handle.cancel() is True
        assert handle.cancel() is False
        assert registry.cancel_timers("c1", instance_id="two") == 1
        assert registry.unsubscribe(cid="c1", instance_id="main", topic="t") == 1
        listen(registry)  # a second subscription, which must not revive old messages
        assert registry.cancel_timers("c1") == 1
        recorder.gates["slow"].set()
        assert await registry.settled()
        assert [name for cid, name in recorder.begun if cid == "c1"] == ["slow"]
        assert registry.stats() == Stats(subscriptions=1, accepted=8, delivered=2, cancelled=6)

    run(main())


def test_an_ended_conversation_frees_messages_behind_a_hanging_handler(registry: AsyncioRegistry, run: Any) -> None:
    """G13. Fault: messages stay in a mailbox until the running handler returns, which it never does."""
    recorder = Recorder()

    async def main() -> None:
        recorder.hold("slow")
        registry.install_dispatch(recorder)
        listen(registry)
        tick(registry, event="slow")
        await recorder.entered["slow"].wait()
        message = Box()
        watched = weakref.ref(message)
        registry.publish("t", message)
        del message
        tick(registry, HOUR, ("later", Box()))
        await _sorted(registry)
        registry.cancel_timers("c1")
        assert registry.remove_subscriptions_for_cid("c1") == 1
        gc.collect()
        assert watched() is None
        assert registry.stats().queued == 0
        recorder.gates["slow"].set()
        assert await registry.settled()
        assert not any(registry.sizes().values()), registry.sizes()

    run(main())


def test_a_cancel_before_the_runner_begins_prevents_the_delivery(registry: AsyncioRegistry, run: Any) -> None:
    """G5. Fault: the driver claims the delivery when it creates the task, which calls dispatch one turn later."""
    recorder = Recorder()

    async def main() -> None:
        registry.install_dispatch(recorder)
        for turns in range(6):
            tick(registry)
            for _ in range(turns):
                await asyncio.sleep(0)
            begun = len(recorder.begun)
            cancelled = registry.cancel_timers("c1")
            assert await registry.settled()
            assert len(recorder.begun) == begun, "dispatch was called after the cancel had returned"
            assert cancelled == 1 - begun
            recorder.begun.clear()

    run(main())


def test_a_reset_drops_mailboxes_and_leaves_the_running_delivery(registry: AsyncioRegistry, run: Any) -> None:
    """G18. Fault: mailboxes survive a reset, or the running delivery is forgotten."""
    recorder = Recorder()

    async def main() -> None:
        recorder.hold("slow")
        registry.install_dispatch(recorder)
        listen(registry)
        tick(registry, event="slow")
        await recorder.entered["slow"].wait()
        tick(registry)
        registry.publish("t", 1)
        await _sorted(registry)
        registry.reset_state()
        assert registry.stats() == Stats(accepted=4, delivered=1, dropped=2, running=1)
        tick(registry, event="new")
        recorder.gates["slow"].set()
        assert await registry.settled()
        assert [name for cid, name in recorder.begun if cid == "c1"] == ["slow", "new"]

    run(main())


# -- which loop ----------------------------------------------------------------------------------------------


def test_one_registry_serves_two_runs(registry: AsyncioRegistry, run: Any) -> None:
    """Case 28. Fault: the registry stays with its first loop, or loses everything that was pending when that closed."""
    recorder = Recorder()
    registry.install_dispatch(recorder)

    async def first() -> None:
        tick(registry)
        tick(registry, 20, "left")
        tick(registry, HOUR, "far")
        listen(registry)
        await until(lambda: recorder.ended)

    async def second() -> None:
        registry.publish("t", 1)
        await until(lambda: len(recorder.ended) == 3)

    run(first())
    assert registry.stats() == Stats(subscriptions=1, timers=2, accepted=3, delivered=1)
    run(second())
    assert sorted(name for _, name in recorder.ended) == ["left", "said", "tick"]
    assert registry.stats() == Stats(subscriptions=1, timers=1, accepted=4, delivered=3)
    assert registry.cancel_timers("c1") == 1


def test_work_accepted_before_any_loop_is_delivered_on_the_first_loop(registry: AsyncioRegistry, run: Any) -> None:
    """Fault: without a loop an operation raises, or the registry forgets what the operation accepted."""
    recorder = Recorder()
    registry.install_dispatch(recorder)
    tick(registry)
    assert registry.settle(0.01) is False

    async def main() -> None:
        registry.subscriptions()  # any operation binds
        await until(lambda: recorder.ended)

    run(main())


@pytest.mark.parametrize(
    "operation",
    [
        lambda registry: registry.put_pending_flow("c2", 1),
        lambda registry: registry.pending_flow("c2"),
        lambda registry: registry.forget_pending_flow("c2"),
        lambda registry: tick(registry, HOUR, cid="c2"),
        lambda registry: registry.cancel_timers("c2"),
        lambda registry: listen(registry, "c2"),
        lambda registry: registry.unsubscribe(cid="c2", instance_id="main"),
        lambda registry: registry.remove_subscriptions_for_cid("c2"),
        lambda registry: registry.publish("nobody", 1),
        lambda registry: registry.subscriptions(),
        lambda registry: registry.install_dispatch(registry._driver.core.dispatch),
        lambda registry: registry.stats(),
        lambda registry: registry.inspect(),
    ],
)
def test_any_operation_binds_the_registry_to_the_running_loop(registry: AsyncioRegistry, operation: Any) -> None:
    """Fault: only `schedule_event` looks for a loop, and a host that calls something else first gets no deliveries."""
    delivered: list[str] = []
    registry.install_dispatch(lambda cid, event: delivered.append(event.name))
    tick(registry)

    async def main() -> None:
        operation(registry)
        await until(lambda: delivered)

    asyncio.run(main())
    registry.reset_state()


@pytest.mark.parametrize("operation", ["install_dispatch", "settle", "settled", "join", "joined", "aclose"])
def test_a_refused_call_does_not_bind_the_registry_to_a_loop(registry: AsyncioRegistry, operation: str) -> None:
    """G15. Fault: a call that raises, made on some other loop, leaves the registry bound to that loop."""

    async def main() -> None:
        with pytest.raises(TypeError):
            result = getattr(registry, operation)("neither a function nor a timeout")
            await result

    asyncio.run(main())
    assert registry._driver._link.loop is None


def test_a_repr_does_not_bind_the_registry_to_a_loop(registry: AsyncioRegistry) -> None:
    """Fault: a debugger that shows the registry on some other loop binds the registry to that loop."""

    async def main() -> None:
        assert repr(registry) == "<AsyncioRegistry: 0 timers, 0 queued>"

    asyncio.run(main())
    assert registry._driver._link.loop is None


def test_a_loop_given_as_an_option_gets_the_deliveries(make: Make) -> None:
    """Fault: the registry accepts the option and ignores it."""
    loop = asyncio.new_event_loop()
    try:
        registry = make(loop=loop)
        threads: list[int] = []
        registry.install_dispatch(lambda cid, event: threads.append(threading.get_ident()))
        tick(registry)  # while no loop runs
        loop.call_later(0.05, loop.stop)
        loop.run_forever()
        assert threads == [threading.get_ident()]
    finally:
        loop.close()


def test_a_closed_loop_and_other_invalid_options_are_refused() -> None:
    """Fault: the error is raised only by the first timer, or never."""
    loop = asyncio.new_event_loop()
    loop.close()
    with pytest.raises(stube.ConfigError, match="is closed"):
        stube.create_registry("asyncio", loop=loop)
    with pytest.raises(stube.ConfigError, match="must be an event loop, not 7"):
        stube.create_registry("asyncio", loop=7)
    with pytest.raises(stube.ConfigError, match="clock must return"):
        stube.create_registry("asyncio", clock=lambda: 1.0)
    with pytest.raises(stube.ConfigError, match="max_pending must be at least 1"):
        stube.create_registry("asyncio", max_pending=0)


def test_the_first_loop_keeps_the_registry_until_it_closes(registry: AsyncioRegistry) -> None:
    """Fault: each operation on another loop rebinds the registry, and deliveries change their thread."""
    first, second = asyncio.new_event_loop(), asyncio.new_event_loop()
    threads: list[str] = []
    registry.install_dispatch(lambda cid, event: threads.append(threading.current_thread().name))

    async def touch() -> None:
        tick(registry)

    first.run_until_complete(touch())
    other = threading.Thread(target=second.run_until_complete, args=(touch(),), name="other")
    other.start()
    other.join(PATIENCE)
    first.run_until_complete(asyncio.wait_for(registry.settled(), PATIENCE))
    assert threads == ["MainThread"] * 2
    first.close()
    second.run_until_complete(touch())
    second.run_until_complete(asyncio.wait_for(registry.settled(), PATIENCE))
    assert len(threads) == 3
    second.close()


# -- the end of a loop ---------------------------------------------------------------------------------------


def test_the_end_of_a_run_cancels_running_handlers_and_keeps_the_rest(
    registry: AsyncioRegistry, run: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """Fault: the deliveries behind a cancelled handler are lost, or the conversation counts as busy without end."""
    recorder = Recorder()
    registry.install_dispatch(recorder)
    events: list[Any] = []

    async def first() -> None:
        recorder.hold("slow")
        tick(registry, event="slow")
        await recorder.entered["slow"].wait()
        tick(registry, event="next")
        registry.publish("t", 1)
        await _sorted(registry)

    async def second() -> None:
        assert await registry.settled()

    with caplog.at_level(logging.INFO):
        run(first())
        events = [record.message for record in caplog.records]
    recorder.gates.clear()
    run(second())
    assert [name for cid, name in recorder.begun if cid == "c1"] == ["slow", "next"]
    stats = registry.stats()
    assert (stats.delivered, stats.failed, stats.running) == (2, 1, 0)
    assert events == []


def test_handlers_of_a_closed_loop_are_ended_and_counted_as_failed(
    registry: AsyncioRegistry, caplog: pytest.LogCaptureFixture, recwarn: pytest.WarningsRecorder
) -> None:
    """Fault: "Task was destroyed but it is pending", or the ledger counts a delivery as running without end."""
    recorder = Recorder()
    registry.install_dispatch(recorder)
    cleaned: list[str] = []
    errors: list[str] = []
    registry._driver._failures._on_error = lambda cid, event, exc: errors.append(type(exc).__name__)

    async def dispatch(cid: str, event: Event) -> None:
        try:
            await recorder(cid, event)
        finally:
            cleaned.append(event.name)

    async def first() -> None:
        recorder.hold("slow")
        registry.install_dispatch(dispatch)
        for cid in ("a", "b"):
            tick(registry, event="slow", cid=cid)
            tick(registry, event="next", cid=cid)
        await until(lambda: len(recorder.begun) == 2)

    loop = asyncio.new_event_loop()
    loop.run_until_complete(first())
    loop.close()
    assert registry.cancel_timers("b") == 1
    assert cleaned == ["slow", "slow"]
    assert errors == ["GeneratorExit", "GeneratorExit"]
    assert registry.stats() == Stats(accepted=4, failed=2, cancelled=1, timers=1)
    recorder.gates.clear()
    asyncio.run(registry.settled())
    assert recorder.begun[2:] == [("a", "next")]
    gc.collect()
    assert [record.message for record in caplog.records if record.levelno > logging.DEBUG] == []
    assert not recwarn.list


def test_a_handler_that_resists_the_end_of_its_loop_is_abandoned(
    registry: AsyncioRegistry, caplog: pytest.LogCaptureFixture
) -> None:
    """Fault: a handler whose clean-up raises or waits makes an unrelated operation raise or wait."""

    async def dispatch(cid: str, event: Event) -> None:
        try:
            await asyncio.get_running_loop().create_future()
        finally:
            if cid == "raises":
                raise OSError("the connection is gone")
            await asyncio.sleep(0)

    async def first() -> None:
        registry.install_dispatch(dispatch)
        tick(registry, cid="raises")
        tick(registry, cid="waits")
        await until(lambda: registry.stats().running == 2)

    loop = asyncio.new_event_loop()
    loop.run_until_complete(first())
    loop.close()
    assert registry.stats() == Stats(accepted=2, failed=2)
    assert not any(registry.sizes().values()), registry.sizes()


def test_clean_up_after_a_closed_loop_is_silent() -> None:
    """Case 28. Fault: the calls that a host makes at its end cause "Event loop is closed" or "Task was destroyed"."""
    printed = run_script(
        "asyncio",
        {},
        """
import asyncio, gc

registry = stube.create_registry("asyncio")
conversations = stube.Conversations(registry)

async def dispatch(cid, event):
    await asyncio.sleep(3600)

async def main():
    asyncio.get_running_loop().slow_callback_duration = 60  # debug mode would also report a busy machine
    registry.install_dispatch(dispatch)
    for _ in range(10):
        conversation = conversations.open()
        conversation.put_flow("flow")
        conversation.schedule("tick", 0)
        conversation.schedule("tick", 3_600_000)
        conversation.subscribe("t", "said")
    registry.publish("t", 1)
    while registry.stats().running < 10:
        await asyncio.sleep(0)

asyncio.run(main(), debug=True)
for conversation in conversations:
    conversation.end()
registry.schedule_event(cid="c", instance_id="i", delay_ms=0, event="late")
registry.publish("t", 2)
print(registry.settle(0.01), registry.stats().running, registry.cancel_timers("c"))
print(registry.close(), registry.close())
del registry, conversations, conversation
gc.collect()
""",
    )
    assert printed == "False 0 1\nTrue True\n"


def test_a_program_that_closes_no_registry_ends_silently() -> None:
    """G24. Fault: the interpreter, as it ends, reports tasks and loops that the program did not close."""
    printed = run_script(
        "asyncio",
        {},
        """
import asyncio

registry = stube.create_registry("asyncio")

async def dispatch(cid, event):
    await asyncio.sleep(3600)

async def main():
    registry.install_dispatch(dispatch)
    for number in range(10):
        registry.schedule_event(cid=f"c{number}", instance_id="i", delay_ms=0, event="tick")
    while registry.stats().running < 10:
        await asyncio.sleep(0)

loop = asyncio.new_event_loop()
loop.run_until_complete(main())
loop.close()
print("end")
""",
    )
    assert printed == "end\n"


def test_ctrl_c_at_any_line_of_leaving_a_closed_loop_strands_no_conversation() -> None:
    """G2, G19. Fault: the conversations whose handlers ran on the closed loop are never served again, a failed delivery
    is counted twice, or what waits for several of them is out of order."""
    at = 0
    while True:
        at += 1
        registry = AsyncioRegistry()

        async def hang(cid: str, event: Event) -> None:
            await asyncio.get_running_loop().create_future()

        async def begin(registry: AsyncioRegistry = registry) -> None:
            registry.install_dispatch(hang)
            for name in ("first", "second", "third"):
                for cid in ("a", "b"):
                    tick(registry, event=name, cid=cid)
            while registry.stats().running < 2:
                await asyncio.sleep(0)
            await asyncio.sleep(0)

        loop = asyncio.new_event_loop()
        loop.run_until_complete(begin())
        loop.close()

        def interrupt() -> None:
            raise KeyboardInterrupt

        injector = Injector(at, interrupt, within=str(Path(stube_backends.__file__).parent))
        logging.getLogger("stube").disabled = True
        try:
            with tracing(injector), suppress(KeyboardInterrupt):
                registry.stats()
            gc.collect()
            registry._check()
            delivered: list[tuple[str, str]] = []

            async def end(registry: AsyncioRegistry = registry, delivered: list[tuple[str, str]] = delivered) -> None:
                registry.install_dispatch(lambda cid, event: delivered.append((cid, event.name)))
                assert await registry.settled(PATIENCE), registry.stats()

            asyncio.run(end())
        finally:
            logging.getLogger("stube").disabled = False
        registry._check()
        stats = check_ledger(registry)
        by_conversation = [("a", "second"), ("a", "third"), ("b", "second"), ("b", "third")]
        assert sorted(delivered, key=itemgetter(0)) == by_conversation, at
        assert stats.failed in (1, 2), at  # the exception may interrupt the counting of one
        assert (stats.delivered, stats.running) == (4, 0)
        if not injector.fired:
            break
    assert at > 50


def test_a_runner_that_is_cancelled_before_its_first_step_loses_nothing(registry: AsyncioRegistry) -> None:
    """Race 3. Fault: the conversation counts as served although no runner serves it."""
    recorder = Recorder()

    async def main() -> None:
        registry.install_dispatch(recorder)
        tick(registry)
        await until(lambda: registry._driver._claims.boxes)
        (box,) = registry._driver._claims.boxes.values()
        assert not recorder.begun
        assert isinstance(box.server, asyncio.Task)
        box.server.cancel()
        assert await registry.settled()
        assert recorder.ended == [("c1", "tick")]

    asyncio.run(main())


# -- which thread --------------------------------------------------------------------------------------------


def test_a_thread_schedules_while_the_loop_sleeps(registry: AsyncioRegistry, run: Any) -> None:
    """Case 28, G21. Fault: `call_soon` from another thread, which does not wake the loop."""
    arrived = asyncio.Event()

    async def main() -> None:
        loop_thread = threading.get_ident()
        threads: list[int] = []

        def dispatch(cid: str, event: Event) -> None:
            threads.append(threading.get_ident())
            arrived.set()

        registry.install_dispatch(dispatch)
        tick(registry, HOUR, "far")
        # Real time, because no event tells that the loop sleeps.
        threading.Timer(0.05, tick, args=(registry,)).start()
        loop = asyncio.get_running_loop()
        late: list[None] = []
        alarms = [  # a loop that is not woken would sleep for an hour
            loop.call_later(PATIENCE, late.append, None),
            loop.call_later(PATIENCE, arrived.set),
        ]
        await arrived.wait()
        for alarm in alarms:
            alarm.cancel()
        assert not late
        assert threads == [loop_thread]
        registry.cancel_timers("c1")

    run(main())


def test_waiting_on_the_loops_own_thread_is_refused(registry: AsyncioRegistry, run: Any) -> None:
    """Fault: `settle` blocks the thread that would have to deliver."""

    async def main() -> None:
        tick(registry)
        with pytest.raises(RuntimeError, match=r"Use `await settled\(\)`"):
            registry.settle()
        with pytest.raises(RuntimeError, match=r"Use `await joined\(\)`"):
            registry.join()
        assert await registry.settled()

    run(main())


def test_waiting_from_another_thread_and_from_another_loop(registry: AsyncioRegistry, run: Any) -> None:
    """Fault: a waiter is released on the wrong loop, or never."""
    release = threading.Event()

    async def dispatch(cid: str, event: Event) -> None:
        await until(lambda: release.is_set())

    async def main() -> None:
        registry.install_dispatch(dispatch)
        tick(registry)
        await until(lambda: registry.stats().running)
        in_thread = asyncio.create_task(asyncio.to_thread(registry.settle, PATIENCE))
        on_a_loop = asyncio.create_task(asyncio.to_thread(lambda: asyncio.run(registry.joined(PATIENCE))))
        await until(lambda: len(registry._driver.core.waiters) == 2)
        release.set()
        assert await in_thread is True
        assert await on_a_loop is True

    run(main())


def test_settled_and_joined_return_whether_the_registry_became_idle(registry: AsyncioRegistry) -> None:
    """Fault: a wait that timed out returns True, leaves its waiter behind, or counts a far timer as ready."""

    async def main() -> None:
        tick(registry, HOUR)
        assert await registry.settled(0.01)
        assert not await registry.joined(0.01)
        assert not registry._driver.core.waiters
        tick(registry, 5)
        waiting = asyncio.create_task(registry.joined(PATIENCE))
        await asyncio.sleep(0)
        registry.cancel_timers("c1")
        assert await waiting
        with pytest.raises(ValueError, match="timeout must not be negative"):
            await registry.settled(-1)

    asyncio.run(main())


def test_a_delivery_cannot_wait_for_itself(registry: AsyncioRegistry) -> None:
    """Fault: `await settled()` in a handler hangs until its timeout."""
    raised: list[str] = []

    async def dispatch(cid: str, event: Event) -> None:
        for call in (registry.settled, registry.joined):
            try:
                await call()
            except RuntimeError as exc:
                raised.append(str(exc))

    async def main() -> None:
        registry.install_dispatch(dispatch)
        tick(registry)
        assert await registry.settled()
        assert [text.split("(")[0] for text in raised] == ["settled", "joined"]
        assert "from inside a delivery" in raised[0]

    asyncio.run(main())


# -- closing -------------------------------------------------------------------------------------------------


def test_closing_on_the_loops_thread_does_not_wait_and_aclose_does(make: Make, run: Any) -> None:
    """G24. Fault: `close` blocks the loop that has to run the handlers; or `aclose` does not wait for them."""
    recorder = Recorder()

    async def main() -> None:
        registry = make()
        recorder.hold("slow")
        registry.install_dispatch(recorder)
        tick(registry, event="slow")
        await recorder.entered["slow"].wait()
        tick(registry)
        assert registry.close(PATIENCE) is False
        assert not await registry.aclose(0.01)
        closing = asyncio.create_task(registry.aclose(PATIENCE))
        await asyncio.sleep(0)
        recorder.gates["slow"].set()
        assert await closing
        assert registry.close() is True
        assert recorder.ended == [("c1", "slow")]
        assert registry.stats() == Stats(accepted=2, delivered=1, dropped=1)
        with pytest.raises(RegistryClosed):
            tick(registry)
        with pytest.raises(RegistryClosed):
            registry.install_dispatch(recorder)
        assert registry.pending_flow("c1") is None

    run(main())


def test_a_handler_may_close(make: Make) -> None:
    """G24. Fault: `aclose` in a handler waits for the handler."""
    closed: list[bool] = []

    async def main() -> None:
        registry = make()

        async def dispatch(cid: str, event: Event) -> None:
            closed.append(registry.close() or await registry.aclose())

        registry.install_dispatch(dispatch)
        tick(registry)
        await until(lambda: closed)
        assert closed == [False]
        assert await registry.aclose()

    asyncio.run(main())


def test_async_with_closes_and_waits_for_what_runs(make: Make) -> None:
    """Fault: the block is left while a handler still runs."""
    ended: list[str] = []

    async def dispatch(cid: str, event: Event) -> None:
        await asyncio.sleep(0.01)
        ended.append(event.name)

    async def main() -> None:
        async with make() as registry:
            registry.install_dispatch(dispatch)
            tick(registry)
            tick(registry, HOUR, "far")
            await until(lambda: registry.stats().running)
        assert ended == ["tick"]
        assert registry.stats() == Stats(accepted=2, delivered=1, dropped=1)
        assert registry._driver._link.alarm is None

    asyncio.run(main())


# -- faults --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["function", "coroutine"])
def test_ctrl_c_is_counted_and_raised_with_the_state_whole(make: Make, kind: str) -> None:
    """G19. Fault: Ctrl-C is swallowed; or the deliveries behind the interrupted one are lost."""
    registry = make()
    seen: list[str] = []

    def function(cid: str, event: Event) -> None:
        seen.append(event.name)
        if event.name == "interrupted":
            raise KeyboardInterrupt

    async def coroutine(cid: str, event: Event) -> None:
        await asyncio.sleep(0)
        function(cid, event)

    loop = asyncio.new_event_loop()
    try:

        async def first() -> None:
            registry.install_dispatch(function if kind == "function" else coroutine)
            for name in ("before", "interrupted", "after"):
                tick(registry, event=name)
            tick(registry, event="other", cid="c2")
            await asyncio.sleep(PATIENCE)

        with pytest.raises(KeyboardInterrupt):
            loop.run_until_complete(first())
        registry._check()
        assert registry.stats().failed == 1
        assert loop.run_until_complete(registry.settled())
        assert [name for name in seen if name != "other"] == ["before", "interrupted", "after"]
        assert registry.stats() == Stats(accepted=4, delivered=3, failed=1)
        for task in asyncio.all_tasks(loop):
            task.cancel()
        loop.run_until_complete(asyncio.sleep(0))
    finally:
        loop.close()


@pytest.mark.parametrize("exception", [SystemExit, GeneratorExit, asyncio.CancelledError, ValueError])
def test_an_exception_of_a_coroutine_stops_no_other_delivery(
    make: Make, run: Any, exception: type[BaseException], caplog: pytest.LogCaptureFixture
) -> None:
    """G19. Fault: an exception that ends a task also ends the conversation, or is not reported."""
    errors: list[BaseException] = []
    registry = make(on_error=lambda cid, event, exc: errors.append(exc))
    seen: list[str] = []

    async def dispatch(cid: str, event: Event) -> None:
        seen.append(event.name)
        await asyncio.sleep(0)
        if event.name == "bad":
            raise exception("oh")

    async def main() -> None:
        registry.install_dispatch(dispatch)
        for name in ("bad", "good"):
            tick(registry, event=name)
        tick(registry, event="other", cid="c2")
        assert await registry.settled()

    run(main())
    assert sorted(seen) == ["bad", "good", "other"]
    assert [type(error) for error in errors] == [exception]
    assert [record.levelname for record in caplog.records if record.name == "stube"] == ["ERROR"]
    assert registry.stats() == Stats(accepted=3, delivered=2, failed=1)


def test_a_handler_that_cancels_its_own_task_fails_alone(registry: AsyncioRegistry, run: Any) -> None:
    """Fault: the runner ends, and the deliveries in its mailbox are lost."""
    seen: list[str] = []

    async def dispatch(cid: str, event: Event) -> None:
        seen.append(event.name)
        if event.name == "bad":
            task = asyncio.current_task()
            assert task is not None
            task.cancel()
            await asyncio.sleep(0)

    async def main() -> None:
        registry.install_dispatch(dispatch)
        for name in ("bad", "good"):
            tick(registry, event=name)
        assert await registry.settled()

    run(main())
    assert seen == ["bad", "good"]
    assert registry.stats() == Stats(accepted=2, delivered=1, failed=1)


def test_a_time_limit_inside_a_handler_is_the_handlers_own(registry: AsyncioRegistry) -> None:
    """Fault: the runner ends because `asyncio.timeout` cancels its task."""
    seen: list[str] = []

    async def dispatch(cid: str, event: Event) -> None:
        try:
            async with asyncio.timeout(0):
                await asyncio.sleep(PATIENCE)
        except TimeoutError:
            seen.append(event.name)

    async def main() -> None:
        registry.install_dispatch(dispatch)
        for name in ("one", "two"):
            tick(registry, event=name)
        assert await registry.settled()

    asyncio.run(main())
    assert seen == ["one", "two"]
    assert registry.stats().delivered == 2


def test_an_awaitable_that_a_plain_function_returns_is_awaited(registry: AsyncioRegistry, run: Any) -> None:
    """Fault: a returned coroutine never runs; or the next delivery begins before a returned future is done."""
    seen: list[str] = []

    async def work(name: str) -> None:
        await asyncio.sleep(0)
        seen.append(name)

    def dispatch(cid: str, event: Event) -> Any:
        if event.name == "future":
            return asyncio.ensure_future(work(event.name))
        if event.name == "number":
            seen.append(event.name)
            return 7
        return work(event.name)

    async def main() -> None:
        registry.install_dispatch(dispatch)
        for name in ("coroutine", "future", "number", "again"):
            tick(registry, event=name)
        assert await registry.settled()

    run(main())
    assert seen == ["coroutine", "future", "number", "again"]
    assert registry.stats() == Stats(accepted=4, delivered=4)


def test_a_loop_that_fails_to_create_a_task_loses_no_delivery(registry: AsyncioRegistry) -> None:
    """Fault: the conversation counts as served by a task that does not exist, or a coroutine is never awaited."""
    recorder = Recorder()
    refusals = 2

    def factory(loop: AbstractEventLoop, coroutine: Any, **options: Any) -> Any:
        nonlocal refusals
        if refusals and options.get("name") != "main":
            refusals -= 1
            raise MemoryError("no task today")
        return asyncio.Task(coroutine, loop=loop, **options)

    reported: list[Any] = []

    async def main() -> None:
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(lambda loop, context: reported.append(context["exception"]))
        registry.install_dispatch(recorder)
        loop.set_task_factory(factory)
        tick(registry)
        assert await registry.settled()
        assert recorder.ended == [("c1", "tick")]

    asyncio.run(main())
    assert [type(exception) for exception in reported] == [MemoryError] * 2


FACTORIES: Final[list[Any]] = [None, *filter(None, [getattr(asyncio, "eager_task_factory", None)])]  # from 3.12 on


@pytest.mark.parametrize("factory", FACTORIES, ids=["usual", "eager"][: len(FACTORIES)])
def test_eager_tasks_deliver_everything(registry: AsyncioRegistry, factory: Any) -> None:
    """Fault: the driver records a runner only after it has ended, and the record stays."""
    recorder = Recorder()

    async def main() -> None:
        asyncio.get_running_loop().set_task_factory(factory)
        recorder.hold("e1")
        registry.install_dispatch(recorder)
        for number in range(10):
            tick(registry, event=f"e{number}", cid=f"c{number % 3}")
        await recorder.entered["e1"].wait()
        recorder.gates["e1"].set()
        assert await registry.settled()
        assert sorted(name for _, name in recorder.ended) == [f"e{number}" for number in range(10)]
        assert not registry._driver._claims.boxes

    asyncio.run(main())


# -- interruptions and races -----------------------------------------------------------------------------------


def test_the_end_of_a_run_begins_nothing_new(registry: AsyncioRegistry, run: Any) -> None:
    """Race 5. Fault: deliveries behind handlers that `asyncio.run` cancels begin on the loop that is ending."""
    recorder = Recorder()

    async def main() -> None:
        recorder.hold("slow")
        registry.install_dispatch(recorder)
        for number in range(20):
            tick(registry, event="slow", cid=f"c{number}")
            tick(registry, event="next", cid=f"c{number}")
        await until(lambda: len(recorder.begun) == 20)

    async def clean_up_that_takes_a_while() -> None:
        try:
            await asyncio.get_running_loop().create_future()
        finally:
            await asyncio.sleep(0.15)  # longer than the registry pauses after a cancelled handler

    async def with_company() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda loop, context: None)
        company = asyncio.create_task(clean_up_that_takes_a_while())
        await main()
        assert not company.done()

    run(with_company())
    assert {name for _, name in recorder.begun} == {"slow"}
    assert registry.stats() == Stats(accepted=40, failed=20, timers=20)
    recorder.gates.clear()
    run(registry.settled())
    assert len(recorder.ended) == 20


class Within(Injector):
    """Count lines of the backends and the engine only, and remember in which function the action ran."""

    function = ""

    @override
    def __call__(self, frame: FrameType, event: str, argument: Any) -> Any:
        if "stube_backends" not in frame.f_code.co_filename:
            return None
        if not self.fired:
            self.function = frame.f_code.co_name
        return super().__call__(frame, event, argument)


# Ctrl-C between the call of a coroutine function and the await leaves a coroutine, as it does everywhere.
@pytest.mark.filterwarnings("ignore:coroutine .* was never awaited:RuntimeWarning")
@pytest.mark.parametrize("kind", ["function", "coroutine"])
def test_ctrl_c_at_any_line_leaves_every_conversation_served(kind: str) -> None:
    """Race 4, G19. Fault: an interrupted round leaves a conversation without a runner, or no round follows it; or a
    delivery counts as running without end.

    The first line of the callback of the loop is left out: the registry repeats a call lost there after one second.
    """
    lost, at = 0, 0
    while True:
        fired, gone = _lost_to_ctrl_c(at, kind)
        if not fired:
            break
        lost += gone
        at += 5
    assert at > 100
    assert lost <= at / 5 * 2, "more was lost than the deliveries that ran"


def _lost_to_ctrl_c(at: int, kind: str) -> tuple[str, int]:
    """Raise Ctrl-C at a line, then deliver more. Return the line, and how many earlier deliveries are missing."""
    registry = AsyncioRegistry()
    delivered: list[str] = []

    def function(cid: str, event: Event) -> None:
        delivered.append(event.name)

    async def coroutine(cid: str, event: Event) -> None:
        function(cid, event)

    def interrupt() -> None:
        raise KeyboardInterrupt

    injector = Within(at, interrupt)

    async def before() -> None:
        registry.install_dispatch(function if kind == "function" else coroutine)
        listen(registry, "a")
        listen(registry, "b")
        for cid in "abc":
            tick(registry, event="one", cid=cid)
        registry.publish("t", 1)
        with tracing(injector):
            for _ in range(8):
                await asyncio.sleep(0)

    async def after() -> None:
        for cid in "abc":
            tick(registry, event="two", cid=cid)
        assert await registry.settled(5), f"{injector.function} {injector.fired} {registry.inspect()}"

    loop = asyncio.new_event_loop()
    loop.set_exception_handler(lambda loop, context: None)
    try:
        playing = loop.create_task(before())
        try:
            loop.run_until_complete(playing)
        except KeyboardInterrupt:
            sys.settrace(None)
            playing.cancel()
        if injector.function != "_run_round":
            loop.run_until_complete(after())
            registry._check()
            assert delivered.count("two") == 3, injector.fired
            assert registry.stats().balanced, injector.fired
            return injector.fired, 5 - (len(delivered) - 3)
        return injector.fired, 0
    finally:
        sys.settrace(None)
        loop.close()
        registry.close(0)


def test_a_task_factory_without_a_context_parameter_is_supported(registry: AsyncioRegistry) -> None:
    """Fault: each conversation fails with a TypeError, again and again."""
    recorder = Recorder()

    def factory(loop: AbstractEventLoop, coroutine: Any) -> Any:
        return asyncio.Task(coroutine, loop=loop)

    async def main() -> None:
        registry.install_dispatch(recorder)
        loop: Any = asyncio.get_running_loop()
        loop.set_task_factory(factory)
        tick(registry)
        assert await registry.settled()
        loop.set_task_factory(None)

    asyncio.run(main())
    assert recorder.ended == [("c1", "tick")]


def test_a_loop_that_cannot_create_tasks_is_retried_only_rarely(registry: AsyncioRegistry) -> None:
    """G10. Fault: a round that failed is repeated immediately, so that the loop never sleeps."""
    asked = 0

    def factory(loop: AbstractEventLoop, coroutine: Any, **options: Any) -> Any:
        nonlocal asked
        asked += 1
        raise MemoryError("no task today")

    async def main() -> None:
        loop: Any = asyncio.get_running_loop()
        loop.set_exception_handler(lambda loop, context: None)
        registry.install_dispatch(Recorder())
        loop.set_task_factory(factory)
        tick(registry)
        await asyncio.sleep(0.2)  # real time, in which little must happen
        loop.set_task_factory(None)
        assert await registry.settled()

    asyncio.run(main())
    assert 1 <= asked <= 10


def test_a_waiter_is_released_when_the_loop_has_closed(registry: AsyncioRegistry) -> None:
    """Fault: `join` waits for a delivery that ended with its loop, or for a timer that was cancelled while there was no
    loop."""
    recorder = Recorder()

    async def first() -> None:
        recorder.hold("slow")
        registry.install_dispatch(recorder)
        tick(registry, event="slow")
        await recorder.entered["slow"].wait()

    loop = asyncio.new_event_loop()
    loop.run_until_complete(first())
    joined: list[bool] = []

    def join() -> None:
        joined.append(registry.join(PATIENCE))

    for ends in (loop.close, lambda: registry.cancel_timers("c1")):
        thread = threading.Thread(target=join)
        thread.start()
        while not registry._driver.core.waiters:
            pass  # no event tells that a thread waits
        ends()
        registry.stats()  # any operation finds the loop closed
        thread.join(PATIENCE)
        tick(registry, HOUR)
    assert joined == [True, True]
    assert registry.cancel_timers("c1") == 1


def test_a_loop_bound_during_clean_up_gets_the_closed_loops_mailboxes(
    registry: AsyncioRegistry,
) -> None:
    """Fault: the next loop looks and falls asleep before the closed loop's mailboxes are given back to the registry."""
    delivered: list[str] = []
    ending, go_on = threading.Event(), threading.Event()

    async def dispatch(cid: str, event: Event) -> None:
        delivered.append(event.name)
        if event.name == "slow":
            try:
                await asyncio.get_running_loop().create_future()
            finally:
                ending.set()
                go_on.wait(PATIENCE)

    async def first() -> None:
        registry.install_dispatch(dispatch)
        tick(registry, event="slow")
        await until(lambda: delivered)
        tick(registry, event="waiting")
        await _sorted(registry)

    loop = asyncio.new_event_loop()
    loop.run_until_complete(first())
    loop.close()
    cleaner = threading.Thread(target=registry.stats)  # any call ends the handlers of the closed loop
    cleaner.start()
    assert ending.wait(PATIENCE)

    async def second() -> None:
        tick(registry, event="other", cid="c2")
        await until(lambda: "other" in delivered)
        await asyncio.sleep(0.02)  # real time: until the loop sleeps
        go_on.set()
        await until(lambda: "waiting" in delivered)

    asyncio.run(second())
    cleaner.join(PATIENCE)
    assert registry.stats().failed == 1


def test_a_wake_up_that_finds_its_loop_closed_goes_to_the_next_loop(registry: AsyncioRegistry) -> None:
    """Race 2. Fault: this wake-up fails, and no other call wakes the next loop because this one was in progress."""

    class Closing(asyncio.SelectorEventLoop):
        @override
        def call_soon_threadsafe(self, *args: Any, **options: Any) -> Any:  # type: ignore[override]
            registry._driver._link.loop = asyncio.get_running_loop()  # as if another thread had just bound it
            raise RuntimeError("Event loop is closed")

    async def main() -> None:
        registry.install_dispatch(lambda cid, event: None)
        assert await registry.settled()
        link = registry._driver._link
        closing = Closing()
        link.loop, link.requested_at = closing, None
        tick(registry)
        assert link.loop is asyncio.get_running_loop()
        await until(lambda: registry.stats().delivered)
        closing.close()

    asyncio.run(main())
    assert registry.stats().delivered == 1


def test_a_forked_child_does_not_end_the_parents_handlers() -> None:
    """G25. Fault: the child finds the loop closed, and ends the parent's handlers a second time."""
    printed = run_script(
        "asyncio",
        {},
        """
import asyncio

registry = stube.create_registry("asyncio", on_error=lambda cid, event, exc: print("on_error", os.getpid(), flush=True))

async def dispatch(cid, event):
    try:
        await asyncio.sleep(3600)
    finally:
        print("clean-up", os.getpid(), flush=True)

async def main():
    registry.install_dispatch(dispatch)
    registry.schedule_event(cid="c", instance_id="i", delay_ms=0, event="tick")
    while not registry.stats().running:
        await asyncio.sleep(0)

loop = asyncio.new_event_loop()
loop.run_until_complete(main())
loop.close()
child = os.fork()
if not child:
    assert registry.stats() == stube.Stats(), registry.stats()
    os._exit(0)
assert os.waitpid(child, 0)[1] == 0
print(os.getpid(), flush=True)
assert registry.stats().failed == 1
""",
    )
    me, *rest = printed.splitlines()
    assert rest == [f"clean-up {me}", f"on_error {me}"]


def test_a_delivery_whose_awaitable_is_never_awaited_is_reported(
    make: Make, caplog: pytest.LogCaptureFixture, recwarn: pytest.WarningsRecorder
) -> None:
    """G19. Fault: a delivery whose runner ends before its first step fails silently, or with "never awaited"."""
    errors: list[BaseException] = []
    registry = make(on_error=lambda cid, event, exc: errors.append(exc))

    async def work() -> None:
        raise AssertionError("it must not run")

    async def main() -> None:
        registry.install_dispatch(lambda cid, event: work())
        tick(registry)
        await until(lambda: registry._driver._claims.boxes)
        (box,) = registry._driver._claims.boxes.values()
        assert isinstance(box.server, asyncio.Task)
        box.server.cancel()
        registry.install_dispatch(lambda cid, event: None)
        assert await registry.settled()

    asyncio.run(main())
    gc.collect()
    assert [type(error) for error in errors] == [asyncio.CancelledError]
    assert [record.levelname for record in caplog.records if record.name == "stube"] == ["ERROR"]
    assert registry.stats() == Stats(accepted=1, failed=1)
    assert not recwarn.list


@pytest.mark.parametrize("coroutine", [False, True], ids=["function", "coroutine"])
def test_ctrl_c_in_on_error_about_an_unstarted_task_is_not_raised_later(make: Make, coroutine: bool) -> None:
    """Fault: the KeyboardInterrupt, which nothing could raise then, is raised after another delivery, which did not
    fail."""

    def on_error(cid: str, event: Event, exc: BaseException) -> None:
        raise KeyboardInterrupt

    async def work(cid: str = "", event: Event | None = None) -> None:
        pass

    registry = make(on_error=on_error)

    async def main() -> None:
        registry.install_dispatch(lambda cid, event: work())
        tick(registry)
        await until(lambda: registry._driver._claims.boxes)
        (box,) = registry._driver._claims.boxes.values()
        assert isinstance(box.server, asyncio.Task)
        box.server.cancel()
        registry.install_dispatch(work if coroutine else lambda cid, event: None)
        assert await registry.settled()
        tick(registry)
        assert await registry.settled()

    asyncio.run(main())
    assert registry.stats() == Stats(accepted=2, delivered=1, failed=1)


def test_an_overflow_without_a_loop_is_reported_immediately(make: Make) -> None:
    """Fault: `on_error` hears of the dropped message only when a loop runs, which may never happen, or not at all."""
    dropped: list[Any] = []
    registry = make(max_queued=1, on_error=lambda cid, event, exc: dropped.append(event.payload))
    listen(registry)
    for number in range(3):
        registry.publish("t", number)
    assert dropped == [0]
    assert registry.sizes()["overflows"] == 0


# -- contexts ------------------------------------------------------------------------------------------------

current: contextvars.ContextVar[Any] = contextvars.ContextVar("current", default=None)


@pytest.mark.parametrize("kind", ["function", "coroutine"])
def test_no_context_of_a_caller_is_kept_or_seen(registry: AsyncioRegistry, kind: str) -> None:
    """G13. Fault: the loop copies the context of the caller, which keeps a request alive for an hour."""
    seen: list[Any] = []

    def function(cid: str, event: Event) -> None:
        seen.append(current.get())
        current.set("a handler's")

    async def coroutine(cid: str, event: Event) -> None:
        function(cid, event)

    async def call() -> weakref.ref[Box]:
        request = Box()
        current.set(request)
        tick(registry, HOUR)
        tick(registry)
        listen(registry)
        registry.publish("t", 1)
        return weakref.ref(request)

    async def main() -> None:
        registry.install_dispatch(function if kind == "function" else coroutine)
        watched = await asyncio.create_task(call())
        await asyncio.create_task(call())
        await asyncio.sleep(0)
        gc.collect()
        assert watched() is None
        assert await registry.settled()
        tick(registry, cid="c2")
        assert await registry.settled()
        registry.reset_state()

    asyncio.run(main())
    if kind == "function":
        assert seen == [None] * 5
    else:  # each conversation has a runner, and each runner one context
        assert seen[0] is seen[-1] is None
        assert not any(isinstance(each, Box) for each in seen)


# -- time ----------------------------------------------------------------------------------------------------


class EarlyLoop(asyncio.SelectorEventLoop):
    """A loop whose timers fire fifty milliseconds early, and that counts how many it was given."""

    armed = 0

    @override
    def call_later(  # type: ignore[override]
        self, delay: float, callback: Any, *args: Any, **options: Any
    ) -> asyncio.TimerHandle:
        self.armed += 1
        return super().call_later(delay - 0.05, callback, *args, **options)


def test_early_timers_of_a_loop_cause_no_early_delivery_and_no_busy_loop(registry: AsyncioRegistry) -> None:
    """Case 28b, G9. Fault: the driver trusts the loop's timer; or it sets a new one again and again until it is due."""
    early: list[float] = []

    async def main() -> int:
        loop = asyncio.get_running_loop()
        assert isinstance(loop, EarlyLoop)
        for number in range(5):
            due = loop.time() + number / 10
            registry.schedule_event(cid=f"c{number}", instance_id="main", delay_ms=100 * number, event=("tick", due))
        registry.install_dispatch(lambda cid, event: early.append(loop.time() - event.payload))
        before = loop.armed
        assert await registry.joined(PATIENCE)
        return loop.armed - before

    with asyncio.Runner(loop_factory=EarlyLoop) as runner:
        armed = runner.run(main())
    assert len(early) == 5
    assert min(early) >= 0
    assert armed < 5 * 20  # each timer twice as late as the one before; a busy loop sets thousands within these 200 ms


def test_no_timer_begins_early_on_any_loop(registry: AsyncioRegistry, run: Any) -> None:
    """Case 28b, G9. Fault: the driver trusts a loop that counts whole milliseconds."""
    late: list[float] = []

    async def main() -> None:
        def dispatch(cid: str, event: Event) -> None:
            late.append(stube.monotonic_ns() - event.payload)

        registry.install_dispatch(dispatch)
        for number in range(500):
            delay_ms = number * 0.37
            due = stube.monotonic_ns() + int(delay_ms * 1e6)
            registry.schedule_event(cid=f"c{number}", instance_id="i", delay_ms=delay_ms, event=("tick", due))
        assert await registry.joined(PATIENCE)

    run(main())
    assert len(late) == 500
    assert min(late) >= 0


def test_an_idle_registry_leaves_the_loop_alone(registry: AsyncioRegistry, monkeypatch: pytest.MonkeyPatch) -> None:
    """G10, G13. Fault: the driver polls; or it sets a timer of the loop for each timer, and keeps them all."""
    rounds = 0

    async def main() -> None:
        nonlocal rounds
        loop = asyncio.get_running_loop()
        original = LoopDriver.run_round

        def counting(driver: LoopDriver, rang_for: int | None) -> None:
            nonlocal rounds
            rounds += 1
            original(driver, rang_for)

        monkeypatch.setattr(LoopDriver, "run_round", counting)
        for number in range(100):
            tick(registry, HOUR - number)
            await asyncio.sleep(0)
        scheduled = [handle for handle in loop._scheduled if not handle.cancelled()]  # type: ignore[attr-defined]
        assert len(scheduled) == 1
        await asyncio.sleep(0.01)
        rounds = 0
        await asyncio.sleep(0.1)  # real time, in which nothing must happen
        assert rounds == 0
        registry.reset_state()

    asyncio.run(main())


# -- the factory ---------------------------------------------------------------------------------------------


def test_the_factory_returns_an_async_backend() -> None:
    """Fault: the return type of the overload has methods that the object lacks."""
    registry: stube.AsyncBackend = stube.create_registry("asyncio")
    assert {"coroutine_dispatch", "own_clock"} <= registry.capabilities
    dispatch: Callable[[str, Event], Awaitable[None]] = Recorder()
    registry.install_dispatch(dispatch)
    assert asyncio.run(registry.settled())
    assert asyncio.run(registry.joined())
    assert asyncio.run(registry.aclose())
    assert isinstance(registry, AsyncioRegistry)


@pytest.mark.parametrize("topics", [1, 5])
def test_handlers_that_go_on_together_keep_no_timer_waiting(registry: AsyncioRegistry, run: Any, topics: int) -> None:
    """G27, G2. Fault: when the handlers of many conversations return in one turn of the loop, the next message of each
    begins before a timer that is due; or it begins twice, or in another order."""
    many = 300
    go = asyncio.Event()
    seen: list[tuple[str, object]] = []
    due_at: list[int] = []

    async def dispatch(cid: str, event: Event) -> None:
        if event.payload == 0:
            await go.wait()
        elif cid == "c9" and event.payload == 1:
            registry.schedule_event(cid="clock", instance_id="main", delay_ms=0, event="tick")
            due_at.append(len(seen))
        seen.append((cid, event.payload))

    async def main() -> None:
        registry.install_dispatch(dispatch)
        for number in range(many):
            for topic in range(topics):
                registry.subscribe(cid=f"c{number}", instance_id=f"i{topic}", topic=f"t{topic}", event="said")
        for payload in range(5):
            registry.publish(f"t{payload % topics}", payload)
        await until(lambda: registry.stats().running == many)
        go.set()
        assert await registry.settled(PATIENCE)

    run(main())
    for number in range(many):
        assert [payload for cid, payload in seen if cid == f"c{number}"] == [0, 1, 2, 3, 4]
    between = seen[due_at[0] : [cid for cid, _ in seen].index("clock")]
    assert len(between) <= 64
