"""The optional promises of a backend, each with its meaning, and the marker that asks for one.

A backend promises the capabilities that it names in `capabilities`. Tests that need another one are skipped, with a
reason that names it. Everything that has no capability here is mandatory.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from types import MappingProxyType
from typing import Final

import pytest

__all__ = ["CAPABILITIES", "REAL_TIME", "backend_name", "missing_reason", "requires", "with_real_time"]

CAPABILITIES: Final[Mapping[str, str]] = MappingProxyType(
    {
        "common_topic_order": "All subscribers of a topic see its messages in one common order, from all publishers.",
        "fair": "A timer does not wait until a publication has been delivered to all of many conversations: after at "
        "most 64 of them it has its turn.",
        "one_instant_snapshot": "`stats`, `inspect` and `subscriptions` each show the whole registry at one instant.",
        "by_reference": "A payload may be any object, and arrives as the same object.",
        "fork": "A forked child has an empty, usable registry, and the parent's is not affected.",
        "coroutine_dispatch": "Dispatch may be a coroutine function, which the backend awaits.",
        "virtual_time": "The clock moves only when the caller moves it. The backend is a `VirtualBackend`.",
        "own_clock": "The option `clock` takes a callable that returns monotonic nanoseconds.",
        "cross_process": "Payloads cross a process boundary. The call refuses a payload that cannot be serialized.",
        "sizes": "The method `sizes() -> Mapping[str, int]` returns the length of every internal container except "
        "those that only wake a thread. When nothing is held, it returns what it returned at first.",
    }
)
"""Every known capability and what it promises."""

REAL_TIME: Final = "real_time"
"""What `requires` takes besides the capabilities. No backend names it: time is real where it is not virtual."""


def requires(*capabilities: str) -> pytest.MarkDecorator:
    """Mark a test that needs optional capabilities or `REAL_TIME`: it is skipped on a backend without them.

    Raises:
        ValueError: a name is not a known capability. Otherwise a spelling mistake would skip the test everywhere.
    """
    unknown = sorted(set(capabilities) - {*CAPABILITIES, REAL_TIME})
    if unknown:
        raise ValueError(f"Unknown capability {unknown[0]!r}. Choose from {', '.join(sorted(CAPABILITIES))}.")
    return pytest.mark.stube_requires(*capabilities)


def missing_reason(name: str, promised: Collection[str], wanted: Iterable[str]) -> str | None:
    """Return the reason to skip: the first wanted capability that the backend `name` does not promise, or None."""
    for capability in wanted:
        if capability not in with_real_time(promised):
            return f"capability {capability} is not promised by {name}"
    return None


def with_real_time(promised: Collection[str]) -> set[str]:
    """Return the capabilities that a backend names, and `REAL_TIME` unless it names `virtual_time`."""
    return {*promised} if "virtual_time" in promised else {*promised, REAL_TIME}


def backend_name(spec: object) -> str:
    """Return the name of the backend in a spec, for test ids and reasons.

    The rest of a URL is left out, because it may hold a password.
    """
    if isinstance(spec, Mapping):
        spec = spec.get("backend", "unnamed")
    return str(spec).partition("://")[0]
