"""The fixtures of the suite, and the helpers that its files share."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, Final, Protocol, cast

import pytest
from typing_extensions import override

from stube import Backend
from stube.testing._harness import HOUR, PATIENCE, Driver, blaming, live_threads, monotonic
from stube.testing.plugin import MakeRegistry

__all__ = [
    "AWKWARD_NAMES",
    "HOUR",
    "NOT_A_NAME",
    "OPERATIONS",
    "MakeRun",
    "Payload",
    "Untouchable",
    "costly",
    "guarantee",
    "logging_to",
    "make_run",
    "picture",
    "refused",
    "run",
    "threads_ended",
    "unchanged",
]

guarantee = pytest.mark.guarantee
costly = pytest.mark.stube_costly
"""Marks a test that takes longer than a fifth of a second on the backend `memory`: it runs behind all the others."""

NOT_A_NAME: Final[list[tuple[Any, type[Exception]]]] = [
    (None, TypeError),
    (7, TypeError),
    (b"c1", TypeError),
    (("c1",), TypeError),
    ("", ValueError),
]
"""Values that every operation refuses as a name, each with the error that it raises."""

AWKWARD_NAMES: Final = [
    "a", "a:b", "a::b", "a:", ":a", "a*", "*", "a b", " a", "a ", "a\0b", "\0", "a/b", "a.b", "{a}", "[a]", "a,b",
    " ", "\n", "é", "e\u0301", "🙂", "🙂:a", "\ud800", "None", "0", "A", "a" * 10_000,
]  # fmt: skip
"""Names that would collide if a backend built its keys by joining strings."""


class Untouchable:
    """A payload that fails the test if the registry does anything but pass it on."""

    def _refuse(self, *args: Any) -> Any:
        raise AssertionError("the registry looked into a payload: it compared, hashed, tested, copied or showed it")

    __eq__ = __ne__ = __lt__ = __le__ = __gt__ = __ge__ = __bool__ = __len__ = __iter__ = __getitem__ = _refuse
    __copy__ = __deepcopy__ = __reduce__ = __reduce_ex__ = __repr__ = __str__ = __format__ = _refuse
    __hash__ = _refuse


@contextmanager
def logging_to(emit: Callable[[logging.LogRecord], object], level: int = logging.NOTSET) -> Iterator[None]:
    """Hand every record of the logger `stube` to a function during the block, and let it log from this level on."""

    class Handler(logging.Handler):
        @override
        def emit(self, record: logging.LogRecord) -> None:
            emit(record)

    logger, handler = logging.getLogger("stube"), Handler()
    before = logger.level
    logger.addHandler(handler)
    logger.setLevel(level or before)
    try:
        yield
    finally:
        logger.setLevel(before)
        logger.removeHandler(handler)


class MakeRun(Protocol):
    """The type of the fixture `make_run`: a function that makes a driver over a fresh backend under test."""

    def __call__(self, **options: Any) -> Driver:
        """Make one."""
        ...


class Payload:
    """An object that can be watched through a weak reference."""

    __slots__ = ("__weakref__",)


@pytest.fixture
def make_run(make_registry: MakeRegistry) -> Iterator[MakeRun]:
    """Return a function that makes a driver over a fresh backend under test, with the given further options."""
    made: list[Driver] = []

    def make(**options: Any) -> Driver:
        driver = Driver(make_registry(**options))
        made.append(driver)
        return driver

    yield make
    for driver in made:
        driver.recorder.release_all()
    for driver in made:
        _check_overlaps(driver)


@pytest.fixture
def run(registry: Backend) -> Iterator[Driver]:
    """Return a driver over the registry under test. Its recorder is the dispatch, and checks G1 in every test."""
    driver = Driver(registry)
    yield driver
    driver.recorder.release_all()
    _check_overlaps(driver)


def _check_overlaps(driver: Driver) -> None:
    assert not driver.recorder.gave_up, "a call waited for a delivery that the test held up"
    with blaming("G1"):
        assert not driver.recorder.overlaps, f"two deliveries at the same time in {driver.recorder.overlaps[0]!r}"


def threads_ended(before: int) -> bool:
    """Wait until no more threads live than before; return whether that came about. No event tells of a thread's end."""
    deadline, pause = monotonic() + PATIENCE, threading.Event()
    while len(live_threads()) > before and monotonic() < deadline:
        pause.wait(0.002)
    return len(live_threads()) <= before


def picture(registry: Backend) -> tuple[object, ...]:
    """Return everything that the public interface shows of a registry, without the times that remain until timers."""
    conversations = {
        cid: replace(info, timers=tuple(replace(timer, remaining_ms=0.0) for timer in info.timers))
        for cid, info in registry.inspect().items()
    }
    sizes = dict(cast(Any, registry).sizes()) if "sizes" in registry.capabilities else None
    return (registry.stats(), registry.subscriptions(), conversations, sizes)


@contextmanager
def unchanged(registry: Backend) -> Iterator[None]:
    """Assert that the block changes nothing that the public interface shows (G15)."""
    before = picture(registry)
    yield
    assert picture(registry) == before


@contextmanager
def refused(
    value: object, error: type[Exception], match: str = "", *, registry: Backend | None = None
) -> Iterator[None]:
    """Assert that the block raises this error because of this value, and changes nothing of the registry (G15).

    One test checks a whole table of wrong values, so the failure names the value.
    """
    told = f"{match or 'the argument'} = {value!r}"
    before = None if registry is None else picture(registry)
    raised: Exception | None = None
    try:
        yield
    except Exception as exc:  # noqa: BLE001 - checked below
        raised = exc
    assert raised is not None, f"{told} is accepted; it must raise {error.__name__}"
    assert isinstance(raised, error), f"{told} raises {raised!r}; it must raise {error.__name__}"
    assert match in str(raised), f"{told} raises {raised!r}, which does not name {match}"
    assert registry is None or picture(registry) == before, f"{told} is refused, but something has changed"


OPERATIONS: Final[dict[str, Callable[[Backend, str], object]]] = {
    "install_dispatch": lambda registry, cid: registry.install_dispatch(lambda cid, event: None),
    "put_pending_flow": lambda registry, cid: registry.put_pending_flow(cid, "flow"),
    "pending_flow": lambda registry, cid: registry.pending_flow(cid),
    "forget_pending_flow": lambda registry, cid: registry.forget_pending_flow(cid),
    "schedule_event": lambda registry, cid: registry.schedule_event(
        cid=cid, instance_id="main", delay_ms=HOUR, event="later"
    ),
    "cancel_timers": lambda registry, cid: registry.cancel_timers(cid),
    "subscribe": lambda registry, cid: registry.subscribe(cid=cid, instance_id="main", topic="t", event="said"),
    "unsubscribe": lambda registry, cid: registry.unsubscribe(cid=cid, instance_id="main"),
    "remove_subscriptions_for_cid": lambda registry, cid: registry.remove_subscriptions_for_cid(cid),
    "publish": lambda registry, cid: registry.publish("t", "message"),
    "subscriptions": lambda registry, cid: registry.subscriptions(),
    "reset_state": lambda registry, cid: registry.reset_state(),
}
"""Each of the twelve operations as a call for one conversation."""
