"""The twenty-six guarantees: number, title, theme and sentence, and the capability on which a whole one depends.

The markers of the suite, the reports and the page in `docs` take the guarantees from here.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

__all__ = ["GUARANTEES", "THEMES", "Guarantee", "unknown_guarantee"]

THEMES: Final = ("Order", "Cancelling", "Batons", "Time", "State", "Faults", "Life")
"""The themes, in the order of the numbers."""


@dataclass(frozen=True, slots=True)
class Guarantee:
    """One promise of every backend."""

    number: str
    """`G1` to `G26`."""
    title: str
    theme: str
    sentence: str
    """The whole promise; Markdown."""
    capability: str | None = None
    """The capability without which a backend does not promise this at all; None where the guarantee is mandatory."""


_ALL: Final = (
    Guarantee("G1", "serial", "Order", "At most one delivery of a conversation runs at any moment."),
    Guarantee(
        "G2",
        "in order",
        "Order",
        "A conversation's deliveries begin in the order of their ready instants: a timer's due instant, the instant "
        "at which a publication was accepted; ties in the order of acceptance. Also for what became overdue behind a "
        "slow handler.",
    ),
    Guarantee(
        "G3",
        "asynchronous",
        "Order",
        "Dispatch never runs on the stack of the operation that caused it, at delay 0 and for the publisher's own "
        "subscription neither.",
    ),
    Guarantee(
        "G4",
        "topic order",
        "Order",
        "One publisher's messages on one topic reach each subscriber in the order of publishing. With "
        "`common_topic_order` all subscribers of a topic see one order.",
    ),
    Guarantee(
        "G5",
        "final",
        "Cancelling",
        "After a cancel, an unsubscribe or a removal has returned, nothing that it covers begins. Each timer is "
        "counted by one cancel or delivered, never both, never neither. Subscribing again revives no old message.",
    ),
    Guarantee(
        "G6",
        "never interrupting",
        "Cancelling",
        "What has begun runs to its end. A handler may end its own conversation.",
    ),
    Guarantee(
        "G7",
        "whole",
        "Cancelling",
        "A schedule that races with a cancel ends as scheduled or as cancelled; the same for subscribing and removing.",
    ),
    Guarantee("G8", "one taker", "Batons", "However many call `pending_flow(cid)` at once, one gets the baton."),
    Guarantee(
        "G9",
        "never early",
        "Time",
        "A timer begins at or after its delay by the registry's clock, whatever a wait or a loop does.",
    ),
    Guarantee(
        "G10",
        "prompt",
        "Time",
        "A new earliest timer wakes the scheduler, from any thread; an idle registry uses no CPU.",
    ),
    Guarantee(
        "G11",
        "any delay",
        "Time",
        "Every finite delay is waited for, fractions count, a negative one means 0; NaN and infinity are a "
        "`ValueError`, `bool`, `str` and `None` a `TypeError`. A fraction is read as the float's product with 10⁶ ns,"
        " rounded up.",
    ),
    Guarantee(
        "G12",
        "own clock",
        "Time",
        "Neither the wall clock nor replacing attributes of the `time` module changes anything. `clock=` may be "
        "passed in.",
    ),
    Guarantee(
        "G13",
        "proportional",
        "State",
        "Memory follows what is pending. What goes, goes at once: keys, containers, payloads. (A message queued for a"
        " subscription that was then removed may stay until the delivering thread reaches it.)",
    ),
    Guarantee(
        "G14",
        "own cost",
        "State",
        "Subscribing, unsubscribing, cancelling and ending cost in proportion to what they touch; a publication costs"
        " its caller the same at any number of subscribers.",
    ),
    Guarantee("G15", "whole or not at all", "State", "An operation that raises has changed nothing."),
    Guarantee(
        "G16",
        "snapshot",
        "State",
        "A publication targets the subscribers of one instant; `subscriptions()` never raises under change and "
        "returns copies.",
    ),
    Guarantee(
        "G17",
        "by reference",
        "State",
        "Within a process a payload is passed on and nothing else: not copied, compared, hashed or tested.",
        "by_reference",
    ),
    Guarantee("G18", "generations", "State", "After `reset_state()` nothing accepted before it begins."),
    Guarantee(
        "G19",
        "isolated",
        "Faults",
        "A delivery that raises, whatever it raises, stops no other: counted, logged once on `stube`, handed to "
        "`on_error`. Where dispatch runs on the caller's stack, `KeyboardInterrupt` is counted and then raised. A "
        "coroutine that nobody can await is closed and the delivery has failed.",
    ),
    Guarantee(
        "G20",
        "re-entrant",
        "Faults",
        "Every operation may be called from inside a delivery, from a finalizer, and from a signal handler that "
        "interrupts another operation of the same registry; there it takes effect at the latest when the interrupted "
        "one returns, and may return 0. No user code and no logging runs under a lock.",
    ),
    Guarantee(
        "G21",
        "any thread",
        "Faults",
        "Every operation may be called from any thread and has taken effect when it returns.",
    ),
    Guarantee(
        "G22",
        "bounded",
        "Faults",
        "`max_pending` bounds timers and queued messages together; what would pass it raises `RegistryFull` and "
        "changes nothing.",
    ),
    Guarantee(
        "G23",
        "lazy",
        "Life",
        "Importing and creating start no thread. If one is needed and cannot be started, the operation raises and "
        "nothing has changed.",
    ),
    Guarantee(
        "G24",
        "closing",
        "Life",
        "`close()` is idempotent, bounded, allowed inside a delivery, and says whether everything stopped. Afterwards"
        " what adds raises `RegistryClosed`, what removes is silent. A program that just ends exits promptly with "
        "code 0.",
    ),
    Guarantee(
        "G25",
        "fork",
        "Life",
        "A forked child has an empty, usable registry with the same options and dispatch, also when a handler forked "
        "it. The parent is undisturbed.",
        "fork",
    ),
    Guarantee("G26", "alone", "Life", "Two registries share nothing."),
)

GUARANTEES: Final[Mapping[str, Guarantee]] = MappingProxyType({one.number: one for one in _ALL})
"""Every guarantee by its number, `"G1"` to `"G26"`, in that order."""


def unknown_guarantee(numbers: Iterable[object]) -> str | None:
    """Return two sentences about the first of these that is no guarantee's number; None when all are."""
    for number in numbers:
        if number not in GUARANTEES:
            return f"There is no guarantee {number!r}. Choose from {', '.join(GUARANTEES)}."
    return None
