"""The harness of stube.testing: the proxy in front of a registry, the injector, ids and random steps."""

from __future__ import annotations

import random
import threading
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typing_extensions import override

import stube
import stube_backends
from stube import Backend
from stube.testing._harness import Injector, RandomSteps, RegistryProxy, ThreadChances, UniqueIds, run_threads

BACKENDS_FOLDER = str(Path(stube_backends.__file__).parent)
OPERATIONS = {name for name in vars(stube.Registry) if not name.startswith("_")}


class Watched(RegistryProxy):
    """Records the name of each operation."""

    def __init__(self, registry: Backend) -> None:
        super().__init__(registry)
        self.operations: list[str] = []

    @override
    def _operate(self, operation: str, call: Callable[..., Any], /, *positional: Any, **named: Any) -> Any:
        self.operations.append(operation)
        return super()._operate(operation, call, *positional, **named)


def test_the_proxy_passes_every_operation_on_and_shows_it_to_subclasses() -> None:
    """Fault: an operation that bypasses `_operate`, or an argument or a result that is lost on the way."""
    with Watched(stube.create_registry("virtual")) as registry:
        registry.install_dispatch(lambda cid, event: None)
        registry.put_pending_flow("c1", "flow")
        assert registry.pending_flow("c1") == "flow"
        assert registry.forget_pending_flow("c1") is False
        timer = registry.schedule_event(cid="c1", instance_id="i", delay_ms=5, event="tick")
        assert registry.cancel_timers("c1", instance_id="other") == 0
        assert timer.cancel()
        registry.subscribe(cid="c1", instance_id="i", topic="t", event="said")
        assert registry.subscriptions() == {"t": {("c1", "i"): "said"}}
        assert registry.publish("t", "message") == 1
        assert registry.unsubscribe(cid="c1", instance_id="i", topic="t") == 1
        assert registry.remove_subscriptions_for_cid("c1") == 0
        registry.reset_state()
        assert set(registry.operations) == OPERATIONS
        assert len(registry.operations) == len(OPERATIONS)


def test_the_proxy_is_a_backend_with_everything_that_the_other_registry_has() -> None:
    """Fault: a proxy of a virtual registry that is taken for one with another clock."""
    other = stube.create_registry("virtual")
    with RegistryProxy(other) as registry:
        assert stube.is_virtual(registry)
        assert not stube.is_async(registry)
        registry.schedule_event(cid="c1", instance_id="i", delay_ms=5, event="tick")
        registry.advance(5)
        assert registry.now_ms == 5
        assert registry.settle(1)
        assert registry.join(1)
        assert (registry.stats(), registry.inspect()) == (other.stats(), {})
    with pytest.raises(stube.RegistryClosed):
        other.publish("t", "message")


def subscribe(registry: Backend, topic: str = "t") -> None:
    registry.subscribe(cid="c1", instance_id="i", topic=topic, event="said")


def test_the_injector_counts_only_the_lines_of_its_folder_and_acts_once() -> None:
    """Fault: an action at a line of the test or of the standard library, at every line, or at another one."""
    with stube.create_registry("virtual") as registry:
        subscribe(registry)  # so that the next two calls execute the same lines
        counting = Injector(10_000, lambda: None, within=BACKENDS_FOLDER)
        counting.run(lambda: subscribe(registry))
        assert counting.lines > 5
        assert counting.fired == ""
        acted: list[str] = []
        last = Injector(counting.lines - 1, lambda: acted.append("here"), within=BACKENDS_FOLDER)
        last.run(lambda: subscribe(registry))
        assert acted == ["here"]
        assert last.fired.endswith(")")
        nowhere = Injector(0, lambda: acted.append("never"), within=str(Path(__file__).parent / "nowhere"))
        nowhere.run(lambda: subscribe(registry))
        assert (acted, nowhere.lines) == (["here"], 0)


def test_the_injector_raises_in_the_operation_or_keeps_the_error() -> None:
    """Fault: a failing action that nobody notices, or that breaks an operation which it must not break."""

    def fail() -> None:
        raise LookupError("injected")

    with stube.create_registry("virtual") as registry:
        keeping = Injector(0, fail, within=BACKENDS_FOLDER, keep_error=True)
        keeping.run(lambda: subscribe(registry))
        assert isinstance(keeping.error, LookupError)
        assert registry.subscriptions() == {"t": {("c1", "i"): "said"}}
        raising = Injector(0, fail, within=BACKENDS_FOLDER)
        with pytest.raises(LookupError, match="injected"):
            raising.run(lambda: subscribe(registry, "u"))
        assert raising.error is None


def test_ids_of_many_threads_are_used_once() -> None:
    """Fault: two threads that count with the same prefix."""
    new_id, made = UniqueIds(), list[str]()
    run_threads(*[lambda: made.extend(new_id("t") for _ in range(100))] * 4)
    assert len(set(made)) == 400


def test_every_step_is_taken_as_often_as_its_weight_says() -> None:
    """Fault: a step of the table that is never taken, or a further step that does not replace one of the table."""
    weights = {
        "schedule": 3.0, "cancel handle": 1, "cancel timers": 1, "subscribe": 1, "unsubscribe": 1, "remove": 1,
        "publish": 1, "put": 1, "take": 1, "forget": 1, "read subscriptions": 1, "reset": 1, "more": 1,
    }  # fmt: skip
    taken = Counter[str]()
    with Watched(stube.create_registry("virtual")) as registry:
        steps = RandomSteps(
            registry,
            cids=("c1",),
            instances=("i",),
            topics=("t",),
            delays=(0,),
            handles=2,
            more={"more": lambda chance, cid: taken.update(["more"]), "reset": lambda chance, cid: None},
        )
        chance = random.Random(1)
        for _ in range(1500):
            steps.perform(chance, weights)
        counts = Counter(registry.operations)
    assert set(counts) == OPERATIONS - {"install_dispatch", "reset_state"}
    assert 200 < counts["schedule_event"] < 400
    assert all(50 < count < 200 for name, count in (counts + taken).items() if name != "schedule_event")


def test_each_thread_has_the_chances_of_its_number() -> None:
    """Fault: two threads that share one generator, or a seed that changes nothing."""

    def drawn(seed: int) -> list[float]:
        chances, found = ThreadChances(seed), list[float]()
        for _ in range(2):
            thread = threading.Thread(target=lambda: found.append(chances.mine().random()))
            thread.start()
            thread.join(30)
        return found

    assert drawn(1) == drawn(1)
    assert len({*drawn(1), *drawn(2)}) == 4
