"""The virtual clock for coroutine handlers: `advance_async`, `settled` and `joined`."""

from __future__ import annotations

import asyncio
import contextvars
import sys
import threading
from collections.abc import Callable, Coroutine, Iterator
from datetime import timedelta
from functools import partial
from types import FrameType
from typing import Any, ClassVar

import pytest
from typing_extensions import override

import stube
from stube import Event, Stats, VirtualTimeError
from stube.testing._harness import Injector, check_ledger, tracing
from stube_backends.engine._topics import BEING_REMOVED, FanOut, Publication
from stube_backends.virtual import VirtualRegistry
from tests.backends.helpers import tick


@pytest.fixture
def registry() -> Iterator[VirtualRegistry]:
    with VirtualRegistry() as made:
        yield made
        made._check()
        check_ledger(made)


def listen(registry: VirtualRegistry, *cids: str) -> None:
    for cid in cids:
        registry.subscribe(cid=cid, instance_id="main", topic="t", event="said")


def run(main: Callable[[], Coroutine[Any, Any, None]]) -> None:
    asyncio.run(main())


class Recorder:
    """A coroutine function that takes some turns of the loop for each event, and records when it began."""

    def __init__(self, registry: VirtualRegistry) -> None:
        self.registry = registry
        self.seen: list[tuple[float, str, str]] = []
        self.inside = 0
        self.handlers: dict[str, Callable[[], Any]] = {}

    async def __call__(self, cid: str, event: Event) -> None:
        assert not self.inside, "two handlers run at the same time"
        self.inside += 1
        self.seen.append((self.registry.now_ms, cid, event.name))
        try:
            for _ in range(3):
                await asyncio.sleep(0)
            result = self.handlers.get(event.name, lambda: None)()
            if result is not None:
                await result
            assert self.registry.now_ms == self.seen[-1][0], "the clock moved while the handler ran"
        finally:
            self.inside -= 1


@pytest.fixture
def recorder(registry: VirtualRegistry) -> Recorder:
    made = Recorder(registry)
    registry.install_dispatch(made)
    return made


def test_each_handler_is_awaited_at_its_own_instant(registry: VirtualRegistry, recorder: Recorder) -> None:
    """Fault: the clock moves on while a handler waits, or a timer that it adds inside the step is not delivered."""

    async def main() -> None:
        recorder.handlers["again"] = lambda: [tick(registry, 10, "again"), None][1]
        tick(registry, 10, "again")
        tick(registry, 25, "once", "c2")
        await registry.advance_async(timedelta(milliseconds=30))
        assert recorder.seen == [(10, "c1", "again"), (20, "c1", "again"), (25, "c2", "once"), (30, "c1", "again")]
        assert registry.now_ms == 30
        assert registry.stats() == Stats(accepted=5, delivered=4, timers=1)

    run(main)


def test_two_runs_with_coroutine_handlers_are_equal() -> None:
    """Fault: the order of deliveries depends on turns of the loop."""

    async def play() -> tuple[Any, ...]:
        registry = VirtualRegistry()
        recorder = Recorder(registry)
        registry.install_dispatch(recorder)
        recorder.handlers["tick"] = lambda: registry.publish("t", 1) and None
        listen(registry, "a", "b", "c")
        for number in range(20):
            tick(registry, number * 7 % 5, "tick", "abc"[number % 3])
        await registry.advance_async(100)
        assert registry.stats().balanced
        return (*registry.trace,)

    first, second = (asyncio.run(play()) for _ in range(2))
    assert first == second
    assert len(first) == 20 + 20 * 3


def test_due_batches_and_fan_outs_are_claimed_one_by_one(registry: VirtualRegistry, recorder: Recorder) -> None:
    """G5. Fault: a due batch or a fan-out is claimed as a whole, and a delivery that a handler cancels still begins."""

    async def main() -> None:
        recorder.handlers["first"] = lambda: [registry.cancel_timers("c2"), None][1]
        recorder.handlers["said"] = lambda: [registry.unsubscribe(cid="c3", instance_id="main"), None][1]
        tick(registry, 5, "first")
        for number in range(20):
            tick(registry, 5, f"e{number}", f"c{number % 3}")
        await registry.advance_async(5)
        assert [name for _, _, name in recorder.seen] == [
            "first",
            *(f"e{number}" for number in range(20) if number % 3 != 2),
        ]
        listen(registry, "c1", "c2", "c3")
        registry.publish("t", 1)
        await registry.settled()
        assert [cid for _, cid, name in recorder.seen if name == "said"] == ["c1", "c2"]
        assert registry.stats() == Stats(subscriptions=2, accepted=24, delivered=17, cancelled=7)

    run(main)


@pytest.mark.parametrize("kind", ["timer", "batch", "fan_out"])
def test_a_handler_that_fails_stops_no_other(kind: str) -> None:
    """G19. Fault: the exception is raised by `advance_async`, or the deliveries behind the handler are lost."""
    errors: list[str] = []
    registry = VirtualRegistry(on_error=lambda cid, event, exc: errors.append(f"{cid} {exc}"))
    recorder = Recorder(registry)

    async def fails(cid: str, event: Event) -> None:
        await recorder(cid, event)
        if cid == "c2":
            raise ValueError("oh")
        if cid == "c3":
            raise SystemExit("no")
        if cid == "c4":
            raise asyncio.CancelledError

    async def main() -> None:
        registry.install_dispatch(fails)
        cids = [f"c{number}" for number in range(1, 6)]
        if kind == "fan_out":
            listen(registry, *cids)
            registry.publish("t", 1)
        for number, cid in enumerate(cids if kind != "fan_out" else ()):
            tick(registry, 1 if kind == "batch" else number, cid=cid)
        await registry.advance_async(10)
        assert [cid for _, cid, _ in recorder.seen] == cids
        assert errors == ["c2 oh", "c3 no", "c4 "]
        stats = registry.stats()
        assert (stats.delivered, stats.failed, stats.balanced) == (2, 3, True)

    run(main)


@pytest.mark.parametrize("kind", ["timer", "batch", "fan_out"])
def test_ctrl_c_in_a_handler_reaches_the_caller(registry: VirtualRegistry, recorder: Recorder, kind: str) -> None:
    """Case 23b, G19. Fault: Ctrl-C is swallowed, or the deliveries behind the handler are lost."""

    def interrupt() -> None:
        if len(recorder.seen) == 2:
            raise KeyboardInterrupt

    async def main() -> None:
        recorder.handlers = dict.fromkeys(("tick", "said"), interrupt)
        listen(registry, "a", "b", "c")
        if kind == "fan_out":
            registry.publish("t", 1)
        for number, cid in enumerate("abc" if kind != "fan_out" else ""):
            tick(registry, 1 if kind == "batch" else number, cid=cid)
        with pytest.raises(KeyboardInterrupt):
            await registry.advance_async(10)
        registry._check()
        assert (registry.stats().failed, registry.stats().running) == (1, 0)
        await registry.advance_async(10)
        assert [cid for _, cid, _ in recorder.seen] == ["a", "b", "c"]
        assert registry.stats() == Stats(subscriptions=3, accepted=3, delivered=2, failed=1)

    loop = asyncio.new_event_loop()
    try:
        playing = loop.create_task(main())
        with pytest.raises(KeyboardInterrupt):
            loop.run_until_complete(playing)  # because a loop raises it as well
        loop.run_until_complete(playing)
    finally:
        loop.close()


@pytest.mark.parametrize("kind", ["timer", "batch", "fan_out"])
@pytest.mark.parametrize("stubborn", [False, True], ids=["cancelled", "swallows it"])
def test_a_handler_that_does_not_return_is_reported_by_name(
    registry: VirtualRegistry, recorder: Recorder, kind: str, stubborn: bool
) -> None:
    """Fault: the test hangs; or the deliveries behind the handler are lost."""

    async def hang() -> None:
        try:
            await asyncio.get_running_loop().create_future()
        except asyncio.CancelledError:
            if not stubborn:
                raise

    async def main() -> None:
        recorder.handlers = {"tick": lambda: hang() if len(recorder.seen) == 2 else None}
        recorder.handlers["said"] = recorder.handlers["tick"]
        listen(registry, "a", "b", "c")
        if kind == "fan_out":
            registry.publish("t", 1)
        for number, cid in enumerate("abc" if kind != "fan_out" else ""):
            tick(registry, 1 if kind == "batch" else number, cid=cid)
        with pytest.raises(VirtualTimeError) as caught:
            await registry.advance_async(10, patience=0.01)
        name = "said" if kind == "fan_out" else "tick"
        assert str(caught.value) == (
            f"The handler of {name!r} of instance 'main' of conversation 'b' has not returned within 0.01 s of real "
            "time, and was cancelled. See what it waits for: the clock does not move while a handler runs."
        )
        registry._check()
        assert await registry.joined()
        assert [cid for _, cid, _ in recorder.seen] == ["a", "b", "c"]
        assert registry.stats() == Stats(subscriptions=3, accepted=3, delivered=2, failed=1)

    run(main)


def test_ctrl_c_in_on_error_about_a_hanging_handler_is_not_raised_later() -> None:
    """Fault: the KeyboardInterrupt, in whose place the hanging handler was reported, is raised after another delivery,
    which did not fail."""

    def on_error(cid: str, event: Event, exc: BaseException) -> None:
        raise KeyboardInterrupt

    async def dispatch(cid: str, event: Event) -> None:
        if event.name == "hang":
            await asyncio.get_running_loop().create_future()

    async def main() -> None:
        registry = VirtualRegistry(on_error=on_error)
        registry.install_dispatch(dispatch)
        tick(registry, event="hang")
        with pytest.raises(VirtualTimeError, match="has not returned"):
            await registry.advance_async(1, patience=0.01)
        tick(registry)
        await registry.advance_async(1)
        assert registry.stats() == Stats(accepted=2, delivered=1, failed=1)

    run(main)


def test_settled_and_joined_say_whether_the_registry_became_idle(registry: VirtualRegistry, recorder: Recorder) -> None:
    """Fault: `settled` moves the clock, or returns True although a handler hangs."""

    async def main() -> None:
        tick(registry)
        tick(registry, 5, "later")
        assert await registry.settled()
        assert recorder.seen == [(0, "c1", "tick")]
        recorder.handlers["later"] = lambda: asyncio.get_running_loop().create_future()
        tick(registry, event="later")
        assert not await registry.settled(0.01)
        recorder.handlers.clear()
        assert await registry.joined()
        assert registry.now_ms == 5
        tick(registry, 2000)
        assert not await registry.joined(1)
        assert registry.now_ms == 1005

    run(main)


@pytest.mark.parametrize("kind", ["timer", "batch", "fan_out"])
def test_cancelling_advance_async_leaves_the_state_consistent(
    registry: VirtualRegistry, recorder: Recorder, kind: str
) -> None:
    """Fault: after the cancel the clock still counts as being moved, or a delivery as running."""

    async def main() -> None:
        entered = asyncio.Event()
        recorder.handlers = dict.fromkeys(("tick", "said"), lambda: entered.set() or asyncio.sleep(60))  # type: ignore[func-returns-value]
        listen(registry, "a", "b")
        if kind == "fan_out":
            registry.publish("t", 1)
        for number, cid in enumerate("ab" if kind != "fan_out" else ""):
            tick(registry, 1 if kind == "batch" else number, cid=cid)
        advancing = asyncio.create_task(registry.advance_async(10))
        await entered.wait()
        advancing.cancel()
        with pytest.raises(asyncio.CancelledError):
            await advancing
        registry._check()
        assert (registry.stats().failed, registry.stats().running) == (1, 0)
        recorder.handlers.clear()
        await registry.advance_async(10)
        assert [cid for _, cid, _ in recorder.seen] == ["a", "b"]
        assert registry.stats() == Stats(subscriptions=2, accepted=2, delivered=1, failed=1)

    run(main)


def test_synchronous_calls_refuse_a_coroutine_dispatch(registry: VirtualRegistry, recorder: Recorder) -> None:
    """Fault: coroutines never run; or a delivery happens before the call is refused."""
    tick(registry)
    calls: dict[str, Callable[[], object]] = {
        "advance": lambda: registry.advance(5),
        "settle": registry.settle,
        "join": registry.join,
        "run_until_idle": registry.run_until_idle,
    }
    for name, call in calls.items():
        with pytest.raises(VirtualTimeError) as caught:
            call()
        assert str(caught.value) == (
            f"{name}() cannot await the coroutine function that was installed as dispatch. "
            "Await advance_async(), settled() or joined() instead."
        )
    assert registry.now_ms == 0
    assert registry.stats() == Stats(accepted=1, timers=1)


def test_wrapped_coroutine_functions_are_recognized(registry: VirtualRegistry) -> None:
    """Fault: only a plain `async def` counts as a coroutine function."""
    recorder = Recorder(registry)
    for dispatch in (recorder, partial(recorder), recorder.__call__):
        registry.install_dispatch(dispatch)
        with pytest.raises(VirtualTimeError, match="cannot await"):
            registry.advance(1)


def test_a_plain_function_is_called_and_its_awaitable_awaited(registry: VirtualRegistry) -> None:
    """Fault: `advance_async` supports no dispatch but an `async def`."""
    seen: list[str] = []

    async def work(name: str) -> None:
        await asyncio.sleep(0)
        seen.append(name)

    def dispatch(cid: str, event: Event) -> Any:
        return work(event.name) if event.name == "awaited" else seen.append(event.name)

    async def main() -> None:
        registry.install_dispatch(dispatch)
        for name in ("plain", "awaited", "plain again"):
            tick(registry, event=name)
        await registry.advance_async(0)
        assert seen == ["plain", "awaited", "plain again"]

    run(main)


def test_only_one_task_at_a_time_moves_the_clock(registry: VirtualRegistry, recorder: Recorder) -> None:
    """Fault: a handler, another task or another thread moves the clock while a handler waits."""
    refused: list[str] = []

    async def moves() -> None:
        for call in (lambda: registry.advance_async(1), registry.settled, registry.joined):
            try:
                await call()
            except (VirtualTimeError, RuntimeError) as exc:
                refused.append(str(exc).split("(")[0])

    async def main() -> None:
        recorder.handlers["tick"] = moves
        tick(registry, 5)
        advancing = asyncio.create_task(registry.advance_async(10))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert recorder.inside
        await moves()
        errors: list[BaseException] = []

        def elsewhere() -> None:
            try:
                asyncio.run(registry.advance_async(1))
            except VirtualTimeError as exc:
                errors.append(exc)

        thread = threading.Thread(target=elsewhere)
        thread.start()
        thread.join()
        await advancing
        assert refused == ["advance_async", "settled", "joined"] * 2
        assert "another thread moves the clock" in str(errors[0])
        assert recorder.seen == [(5, "c1", "tick")]

    run(main)


def test_a_chain_without_end_at_one_instant_is_reported(registry: VirtualRegistry) -> None:
    """Case 21. Fault: `advance_async` never returns."""

    async def dispatch(cid: str, event: Event) -> None:
        tick(registry)

    async def main() -> None:
        registry.install_dispatch(dispatch)
        tick(registry)
        with pytest.raises(VirtualTimeError, match="keep scheduling work for the same instant"):
            await registry.advance_async(1)
        registry.cancel_timers("c1")

    run(main)


@pytest.mark.parametrize("how", ["reset", "close"])
def test_a_handler_may_reset_or_close_the_registry(registry: VirtualRegistry, recorder: Recorder, how: str) -> None:
    """G18, G24. Fault: deliveries behind the reset or the close begin."""

    async def main() -> None:
        recorder.handlers["said"] = lambda: [registry.reset_state() if how == "reset" else registry.close(), None][1]
        listen(registry, "a", "b", "c")
        registry.publish("t", 1)
        tick(registry, 5)
        await registry.advance_async(10)
        assert recorder.seen == [(0, "a", "said")]
        assert registry.stats() == Stats(accepted=4, delivered=1, dropped=3)

    run(main)


def test_a_handler_may_await_aclose(registry: VirtualRegistry, recorder: Recorder) -> None:
    """Fault: `aclose` in a handler waits for the handler."""

    async def main() -> None:
        recorder.handlers["tick"] = lambda: registry.aclose()
        async with registry:
            tick(registry)
            await registry.advance_async(1)
        assert registry.stats() == Stats(accepted=1, delivered=1)

    run(main)


class Within(Injector):
    """Count only the lines of the awaiting deliverer that run without the lock: under it another thread would wait."""

    @override
    def __call__(self, frame: FrameType, event: str, argument: Any) -> Any:
        code = frame.f_code
        if not code.co_filename.endswith("_awaiting.py") or code.co_name == "_begin_locked":
            return None
        return super().__call__(frame, event, argument)


@pytest.mark.parametrize("kind", ["batch", "fan_out"])
def test_a_cancel_at_any_line_gives_each_delivery_one_fate(kind: str) -> None:
    """G5. Fault: finding a timer and claiming it are two steps, and another thread cancels the timer in between."""
    at = 0
    while True:
        registry = VirtualRegistry()
        recorder = Recorder(registry)
        registry.install_dispatch(recorder)
        if kind == "batch":
            for _ in range(3):
                tick(registry, 1)
        else:
            for topic in ("t", "u"):  # an instance that leaves several topics is marked first
                registry.subscribe(cid="c1", instance_id="main", topic=topic, event="said")
            registry.publish("t", 1)

        def leave(registry: VirtualRegistry = registry) -> None:
            def call() -> None:
                registry.cancel_timers("c1")
                registry.remove_subscriptions_for_cid("c1")

            thread = threading.Thread(target=call)
            thread.start()
            thread.join()

        injector = Within(at, leave)

        async def main(registry: VirtualRegistry = registry, injector: Within = injector) -> None:
            with tracing(injector):
                await registry.advance_async(5)

        asyncio.run(main())
        registry._check()
        assert {name for _, _, name in recorder.seen} <= {"tick", "said"}, injector.fired
        stats = registry.stats()
        assert stats.accepted == stats.delivered + stats.cancelled, f"{injector.fired} {stats}"
        assert stats.delivered == len(recorder.seen)
        if not injector.fired:
            break
        at += 1
    assert at > 20


@pytest.mark.parametrize("kind", ["function", "coroutine"])
def test_an_interrupt_at_a_removed_subscription_leaves_its_message_cancelled(kind: str) -> None:
    """G5, G19. Fault: the message has no fate, or counts as a failed delivery that `on_error` hears of. CPython runs a
    signal handler where a Python function is entered."""
    errors: list[str] = []
    registry = VirtualRegistry(on_error=lambda cid, event, exc: errors.append(cid))

    def leave(cid: str, event: Event) -> None:
        if cid == "a":
            registry.remove_subscriptions_for_cid("b")

    async def leave_later(cid: str, event: Event) -> None:
        leave(cid, event)

    async def settle() -> None:
        await registry.settled()

    def trace(frame: FrameType, event: str, argument: object) -> None:
        if frame.f_code is FanOut.pass_over.__code__:
            sys.settrace(None)
            raise KeyboardInterrupt

    registry.install_dispatch(leave if kind == "function" else leave_later)
    listen(registry, "a", "b", "c")
    registry.publish("t", 1)
    before = sys.gettrace()
    sys.settrace(trace)
    try:
        with pytest.raises(KeyboardInterrupt):
            registry.settle() if kind == "function" else asyncio.run(settle())
    finally:
        sys.settrace(before)
    if kind == "function":
        registry.settle()
    else:
        asyncio.run(settle())
    registry._check()
    assert registry.stats() == Stats(subscriptions=2, accepted=3, delivered=2, cancelled=1)
    assert errors == []


def test_claiming_a_message_reads_its_name_once() -> None:
    """G5. Fault: the name is read twice, and between the two it becomes the mark of a target that is leaving."""

    class Leaving:
        cid, instance_id = "c1", "main"
        names: ClassVar[list[str]] = ["said", BEING_REMOVED]

        @property
        def name(self) -> str:
            return self.names.pop(0)

    registry = VirtualRegistry()
    publication = Publication()
    publication.topic_name, publication.message, publication.due = "t", 1, 0
    leaving: Any = [Leaving()]
    publication.entries, publication.position, publication.length = leaving, 1, 1
    publication.targeted, publication.topic, publication.after = 0, None, None
    claims = registry._driver._awaiting._claims_of_fan_out(FanOut(publication, leaving))
    assert next(claims) == ("c1", Event("main", "said", 1))
    claims.close()


current: contextvars.ContextVar[str] = contextvars.ContextVar("current", default="the default")


def test_handlers_do_not_see_the_context_of_the_test(registry: VirtualRegistry) -> None:
    """Fault: a handler that relies on a context variable of its caller works here, and fails on asyncio."""
    seen: list[str] = []

    async def dispatch(cid: str, event: Event) -> None:
        seen.append(current.get())
        current.set("the handler's")

    async def main() -> None:
        current.set("the test's")
        registry.install_dispatch(dispatch)
        tick(registry)
        await registry.advance_async(1)
        assert (seen, current.get()) == (["the default"], "the test's")

    run(main)


def test_wrong_steps_and_times_are_refused(registry: VirtualRegistry, recorder: Recorder) -> None:
    """G15. Fault: the clock moves before the error is raised."""

    async def main() -> None:
        tick(registry)
        for step, error in ((-1, VirtualTimeError), (float("nan"), ValueError), ("1", TypeError)):
            with pytest.raises(error, match=r"step|go back"):
                await registry.advance_async(step)  # type: ignore[arg-type]
        with pytest.raises(ValueError, match="timeout must not be negative"):
            await registry.advance_async(1, patience=-1)
        with pytest.raises(ValueError, match="timeout must not be negative"):
            await registry.settled(-1)
        assert (registry.now_ms, recorder.seen) == (0, [])

    run(main)


def test_the_factory_returns_a_virtual_backend() -> None:
    """Fault: the Protocol has methods that the object lacks."""
    registry: stube.VirtualBackend = stube.create_registry("virtual")
    assert "coroutine_dispatch" in registry.capabilities

    async def main() -> None:
        async with registry:
            registry.install_dispatch(Recorder(registry))  # type: ignore[arg-type]
            await registry.advance_async(1)
            assert await registry.settled()
            assert await registry.joined()
        assert await registry.aclose()

    run(main)
