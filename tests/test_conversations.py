"""`Conversations(on_end=...)`: how what a host keeps elsewhere learns that a conversation has ended."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from types import FrameType
from typing import Any

import pytest
from typing_extensions import override

import stube
from stube import _conversations
from stube.testing._harness import PATIENCE, RegistryProxy
from stube.testing._harness.recorder import Gate


def test_end_is_told_once_when_nothing_remains_and_before_it_returns() -> None:
    """Fault: told too early, twice, or not at all by an end that comes from elsewhere."""
    told: list[tuple[str, dict[str, stube.ConversationInfo], int]] = []
    with stube.create_registry("virtual") as registry:

        def on_end(conversation: stube.Conversation) -> None:
            assert conversation.ended
            assert conversations.get(conversation.cid) is None
            told.append((conversation.cid, registry.inspect(), len(conversations)))

        conversations = stube.Conversations(registry, on_end=on_end)
        registry.install_dispatch(lambda cid, event: conversations.open(cid).end())
        by_host, by_handler = conversations.open("by-host"), conversations.open("by-handler")
        with conversations.open("by-block") as by_block:
            by_block.subscribe("t", "said")
        assert told == [("by-block", {}, 2)]
        by_host.put_flow("flow")
        by_host.schedule("late", 10)
        by_host.end()
        by_host.end()
        assert told[1:] == [("by-host", {}, 1)]
        by_handler.schedule("go", 0)
        registry.settle()
        assert [cid for cid, _, _ in told] == ["by-block", "by-host", "by-handler"]


def test_end_is_told_once_however_many_end_it() -> None:
    """Fault: two threads that end one conversation both believe to be the first, or neither."""
    told: list[str] = []
    with stube.create_registry("virtual") as registry:
        conversations = stube.Conversations(registry, on_end=lambda conversation: told.append(conversation.cid))
        with ThreadPoolExecutor(4) as pool:
            for number in range(200):
                conversation = conversations.open(str(number))
                barrier = threading.Barrier(4)

                def end(conversation: stube.Conversation = conversation, barrier: Any = barrier) -> None:
                    barrier.wait(20)
                    conversation.end()

                for done in [pool.submit(end) for _ in range(4)]:
                    done.result(20)
    assert told == [str(number) for number in range(200)]


def test_successor_of_the_same_name_is_told_of_for_itself() -> None:
    """Fault: the second end of the first handle is taken for the end of the second."""
    told: list[stube.Conversation] = []
    with stube.create_registry("virtual") as registry:
        conversations = stube.Conversations(registry, on_end=told.append)
        first = conversations.open("c1")
        first.end()
        second = conversations.open("c1")
        first.end()
        assert told == [first]
        second.end()
        assert told == [first, second]


def test_on_end_runs_under_no_lock() -> None:
    """Fault: `on_end` waits forever for another thread that needs the same conversation."""

    def end_and_open(conversation: stube.Conversation) -> None:
        conversation.end()
        conversations.open(conversation.cid)

    with stube.create_registry("virtual") as registry:

        def on_end(conversation: stube.Conversation) -> None:
            thread = threading.Thread(target=end_and_open, args=(conversation,))
            thread.start()
            thread.join(20)
            assert not thread.is_alive()

        conversations = stube.Conversations(registry, on_end=on_end)
        conversations.open("c1").end()
        assert len(conversations) == 1


def test_error_of_on_end_reaches_the_caller_and_nothing_is_left() -> None:
    def on_end(conversation: stube.Conversation) -> None:
        raise ZeroDivisionError

    with stube.create_registry("virtual") as registry:
        conversation = stube.Conversations(registry, on_end=on_end).open("c1")
        conversation.schedule("late", 10)
        with pytest.raises(ZeroDivisionError):
            conversation.end()
        conversation.end()
        assert registry.inspect() == {}


def test_a_registry_of_the_twelve_operations_alone_cannot_count_from_an_event() -> None:
    """Fault: the handle counts from the beginning of some other clock, or the error says nothing of what to do."""

    class Twelve:
        @override
        def __repr__(self) -> str:
            return "Twelve()"

    conversation = stube.Conversations(Twelve()).open("c1")  # type: ignore[arg-type]
    with pytest.raises(TypeError) as raised:
        conversation.schedule("tick", 100, since=stube.Event("main", "tick", due=5))
    assert str(raised.value) == (
        "since needs a registry that shows the present instant, and Twelve() has no now_ns. "
        "Use a registry that is a stube.Backend."
    )


def test_two_threads_that_replace_a_timer_leave_one() -> None:
    """Fault: both cancel before either schedules, so that two time-outs fire."""
    with stube.create_registry("memory") as registry, ThreadPoolExecutor(2) as pool:
        conversation = stube.Conversations(registry).open("c1")
        for _ in range(200):
            barrier = threading.Barrier(2)

            def replace(barrier: Any = barrier) -> None:
                barrier.wait(20)
                conversation.schedule("idle", 3_600_000, replace=True)

            for done in [pool.submit(replace) for _ in range(2)]:
                done.result(20)
            assert registry.stats().timers == 1


class Told(RegistryProxy):
    """Records the operations of the twelve that it is asked for."""

    def __init__(self, registry: stube.Backend) -> None:
        super().__init__(registry)
        self.asked: list[str] = []

    @override
    def _operate(self, operation: str, call: Callable[..., Any], /, *positional: Any, **named: Any) -> Any:
        self.asked.append(operation)
        return super()._operate(operation, call, *positional, **named)


def test_a_registry_without_a_step_for_the_end_is_asked_for_each_removal() -> None:
    """Fault: the handle relies on `end_conversation`, which is none of the twelve operations; or a proxy passes it on,
    so that who watches the operations misses the end."""
    registry = Told(stube.create_registry("virtual"))
    with registry:
        stube.Conversations(registry).open("c1").end()
    assert registry.asked == ["cancel_timers", "remove_subscriptions_for_cid", "forget_pending_flow"]


@pytest.mark.parametrize("spec", ["memory", "virtual", "sharded", "asyncio"])
def test_a_registry_ends_a_conversation_in_one_step_as_the_three_operations_do(spec: str) -> None:
    """Fault: the one step forgets one of the three kinds, touches another conversation, or counts another fate."""
    after = []
    for in_one_step in (True, False):
        backend: Any = stube.create_registry(spec)
        with backend as registry:
            for cid in ("c1", "c2"):
                registry.put_pending_flow(cid, "flow")
                for number in range(12):  # more than a record keeps as one chain
                    names: Any = {"cid": cid, "instance_id": f"i{number}"}
                    registry.schedule_event(**names, delay_ms=3_600_000, event="tick")
                    registry.subscribe(**names, topic=f"t{number % 5}", event="said")
            if in_one_step:
                registry.end_conversation("c1")
            else:
                registry.cancel_timers("c1")
                registry.remove_subscriptions_for_cid("c1")
                registry.forget_pending_flow("c1")
            found = registry.inspect()
            assert list(found) == ["c2"]
            left = found["c2"]
            after.append((len(left.timers), left.subscriptions, left.pending_flow, registry.stats()))
            registry.end_conversation("c2")
            registry.end_conversation("nobody")
            assert set(registry.sizes().values()) == {0}
            with pytest.raises(TypeError, match="cid"):
                registry.end_conversation(7)
            with pytest.raises(ValueError, match="cid"):
                registry.end_conversation("")
    assert after[0] == after[1]


def test_a_second_end_removes_nothing_of_a_successor_that_is_opened_meanwhile() -> None:
    """Fault: an end that comes when everything is over removes what stands under the name, which is a successor's by
    then."""
    inner: Any = stube.create_registry("virtual")
    asked: list[str] = []

    class Watched(RegistryProxy):
        @override
        def cancel_timers(self, cid: str, /, *, instance_id: str | None = None) -> int:
            asked.append(cid)
            return super().cancel_timers(cid, instance_id=instance_id)

    with inner:
        conversations = stube.Conversations(Watched(inner))
        conversation = conversations.open("c1")
        conversation.end()
        conversation.end()
        assert asked == ["c1"]


class Slow(RegistryProxy):
    """Takes its time to cancel timers, once it has a gate."""

    gate: Gate | None = None

    @override
    def cancel_timers(self, cid: str, /, *, instance_id: str | None = None) -> int:
        if self.gate is not None:
            self.gate.pass_through()
        return super().cancel_timers(cid, instance_id=instance_id)


@pytest.mark.parametrize("spec", ["memory", "sharded://?shards=2"])
@pytest.mark.parametrize("way", ["end", "cancel_timers", "unsubscribe", "take_flow", "every", "replace"])
def test_a_finalizer_waits_for_no_thread_that_waits_for_the_registry(spec: str, way: str) -> None:
    """Fault: a finalizer that runs while its thread is inside an operation waits for the lock of the conversation,
    whose owner waits for the registry (G20); or what it asked for is not made when the operation is over."""
    inner: Any = stube.create_registry(spec)
    with inner:
        registry: Any = Slow(inner)
        ended: list[stube.Conversation] = []
        conversation = stube.Conversations(registry, on_end=ended.append).open("c1")
        conversation.subscribe("t", "said")
        conversation.put_flow("flow")
        conversation.schedule("tick", 3_600_000)
        gate = registry.gate = Gate("cancel")
        owner = threading.Thread(target=conversation.cancel_timers, daemon=True)
        owner.start()
        gate.wait_entered()  # it has the lock of the conversation
        registry.gate = None
        results: list[object] = []
        calls: dict[str, Callable[[], object]] = {
            "every": lambda: conversation.every("tick", 3_600_000),
            "replace": lambda: conversation.schedule("idle", 3_600_000, replace=True),
        }

        def finalize() -> None:
            gate.release()
            results.append(calls.get(way, getattr(conversation, way, None))())  # type: ignore[misc]

        core = inner._driver.core if spec == "memory" else inner._shard_of("c1").core
        inside = threading.Thread(target=core.run_locked, args=(finalize,), daemon=True)
        inside.start()
        for thread in (inside, owner):
            thread.join(PATIENCE)
            assert not thread.is_alive(), "two threads wait for each other"
        assert len(results) == 1
        info = inner.inspect().get("c1", stube.ConversationInfo())
        assert bool(info.subscriptions) == (way not in ("end", "unsubscribe"))
        assert info.pending_flow == (way != "end")  # a baton that nobody would get stays
        assert [each.cid for each in ended] == ["c1"] * (way == "end")
        if way == "end":
            assert stube.Conversations(registry).open("c1") is not conversation
        conversation.end()
        assert inner.inspect() == {}


class Interrupted(Exception):  # noqa: N818 - it is no error
    """What a signal handler raised."""


class Interruption:
    """Raises `Interrupted` where a signal handler may run, in one of these places in the code of the handles.

    CPython runs signal handlers at the beginning of a function and behind each call, but not inside the entry and the
    exit of a `with` block.
    """

    def __init__(self, place: int) -> None:
        self.left = place

    def __call__(self, frame: FrameType, event: str, _: object) -> None:
        if frame.f_code.co_filename != _conversations.__file__ or event not in ("call", "c_return"):
            return
        self.left -= 1
        if self.left < 0:
            sys.setprofile(None)
            raise Interrupted


CALLS: dict[str, Callable[[stube.Conversation], object]] = {
    "end": stube.Conversation.end,
    "cancel_timers": stube.Conversation.cancel_timers,
    "unsubscribe": stube.Conversation.unsubscribe,
    "take_flow": stube.Conversation.take_flow,
    "every": lambda conversation: conversation.every("tick", 1000),
    "replace": lambda conversation: conversation.schedule("tick", 1000, replace=True),
}


@pytest.mark.parametrize("way", CALLS)
def test_an_exception_of_a_signal_handler_leaves_no_conversation_locked(way: str) -> None:
    """Fault: it is raised between the line that takes the lock and the one that makes sure that it is released, and
    every other thread waits for ever."""
    place = 0
    while True:
        with stube.create_registry("virtual") as registry:
            conversation = stube.Conversations(registry).open("c1")
            sys.setprofile(Interruption(place))
            try:
                CALLS[way](conversation)
            except Interrupted:
                pass
            else:
                break  # there are no more places
            finally:
                sys.setprofile(None)
            other = threading.Thread(target=conversation.end, daemon=True)
            other.start()
            other.join(PATIENCE)
            assert not other.is_alive(), f"interrupted at its place {place}, it has left the conversation locked"
            assert conversation.ended
            assert registry.inspect() == {}
        place += 1
    assert place >= 2
