"""The fixture for hosts: a registry on a virtual clock, and the check that no handler failed."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator

import pytest

from stube import Event, VirtualBackend, create_registry

__all__ = ["HandlerFailed", "VirtualChecks"]

_checks_key: pytest.StashKey[list[VirtualChecks]] = pytest.StashKey()


class HandlerFailed(AssertionError):  # noqa: N818 - a state that is met, not a mistake
    """A handler failed under `virtual_registry`; the handler's own exception is the cause."""


class VirtualChecks:
    """The checks of the fixture `virtual_registry`: which handlers failed, and whether they may."""

    def __init__(self, *, allowed: bool) -> None:
        self.allowed = allowed
        self.registry: VirtualBackend | None = None
        # Every failure is counted. Those that were not allowed are also kept until they are reported.
        self._collected = 0
        self._fresh: list[tuple[str, Event, BaseException]] = []

    def on_error(self, cid: str, event: Event, exception: BaseException) -> None:
        """Count a failure of a handler, and keep it if failures are not allowed."""
        self._collected += 1
        if not self.allowed:
            self._fresh.append((cid, event, exception))

    def allow(self) -> None:
        """Permit failures from now on."""
        self.allowed = True

    def describe(self) -> tuple[str, BaseException] | None:
        """Return a sentence about the failures not reported yet, and the first exception; None if there are none."""
        fresh, self._fresh = self._fresh, []
        if not fresh:
            return None
        cid, event, exception = fresh[0]
        more = f" {len(fresh) - 1} more failed after it." if len(fresh) > 1 else ""
        sentence = (
            f"A handler failed: {event!r} of conversation {cid!r} raised {type(exception).__name__}.{more} "
            "Fix it, or permit it with @pytest.mark.allow_failures or the fixture allow_failures."
        )
        return sentence, exception

    def check(self) -> None:
        """Raise if a handler failed and was not allowed to, or if the ledger does not balance."""
        found = self.describe()
        if found is not None:
            raise HandlerFailed(found[0]) from found[1]
        if self.registry is not None:
            stats = self.registry.stats()
            assert stats.balanced, f"The ledger does not balance: {stats.equation}"
            uncollected = stats.failed - self._collected
            assert uncollected <= 0, f"{uncollected} deliveries failed without reaching on_error: {stats}"


def _checks_of(request: pytest.FixtureRequest) -> VirtualChecks:
    checks = request.node.stash.setdefault(_checks_key, [])
    if not checks:
        checks.append(VirtualChecks(allowed=request.node.get_closest_marker("allow_failures") is not None))
    found: VirtualChecks = checks[0]
    return found


@pytest.hookimpl(wrapper=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> Generator[None, object, object]:
    """Fail the test itself, not its teardown, when a handler failed during the test."""
    checks = pyfuncitem.stash.get(_checks_key, [])
    try:
        result = yield
    except Exception as exc:
        for check in checks:
            found = check.describe()
            if found is not None:
                exc.add_note(f"{found[0]}\nIt was: {found[1]!r}")
        raise
    for check in checks:
        check.check()
    return result


@pytest.fixture
def virtual_registry(request: pytest.FixtureRequest) -> Iterator[VirtualBackend]:
    """Return a registry whose clock only the test moves: `virtual_registry.advance(1000)`.

    The test fails when a handler failed, showing the handler's own exception as the cause, or when the ledger does not
    balance. Permit failures with the marker or the fixture `allow_failures`.
    """
    checks = _checks_of(request)
    with create_registry("virtual", on_error=checks.on_error) as registry:
        checks.registry = registry
        yield registry
        checks.check()


@pytest.fixture
def allow_failures(request: pytest.FixtureRequest) -> Callable[[], None]:
    """Return a function that permits handlers to fail under `virtual_registry`, from its call on."""
    return _checks_of(request).allow
