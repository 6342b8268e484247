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
    """What the fixture `virtual_registry` watches: the handlers that failed, and whether they may."""

    def __init__(self, *, allowed: bool) -> None:
        self.allowed = allowed
        self.registry: VirtualBackend | None = None
        # Every failure is counted; kept, until it is reported, is only one that was not allowed.
        self._collected = 0
        self._fresh: list[tuple[str, Event, BaseException]] = []

    def on_error(self, cid: str, event: Event, exception: BaseException) -> None:
        """Collect a failure of a handler, unless failures are allowed by now."""
        self._collected += 1
        if not self.allowed:
            self._fresh.append((cid, event, exception))

    def allow(self) -> None:
        """Permit failures from now on."""
        self.allowed = True

    def describe(self) -> tuple[str, BaseException] | None:
        """The failures that have not been reported yet, as a sentence, and the first of them."""
        fresh, self._fresh = self._fresh, []
        if not fresh:
            return None
        cid, event, exception = fresh[0]
        more = f" {len(fresh) - 1} more failed after it." if len(fresh) > 1 else ""
        sentence = (
            f"A handler failed: {event!r} of conversation {cid!r} raised {type(exception).__name__}.{more} "
            "Mend it, or permit it with @pytest.mark.allow_failures or the fixture allow_failures."
        )
        return sentence, exception

    def check(self) -> None:
        """Raise when a handler failed that was not allowed to, or when the ledger does not balance."""
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
    """Fail the test itself, rather than its teardown, when a handler failed in the course of it."""
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
    """A registry whose clock stands still until the test moves it: `virtual_registry.advance(1000)`.

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
    """A function that permits handlers to fail under `virtual_registry`, from the call on."""
    return _checks_of(request).allow
