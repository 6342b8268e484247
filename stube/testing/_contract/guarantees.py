"""The twenty-seven guarantees: number, title, theme and text, and the capability without which one is not promised.

The markers of the suite, the reports and the page in `docs` take the guarantees from here.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

__all__ = ["GUARANTEES", "THEMES", "Guarantee", "unknown_guarantee"]

THEMES: Final = ("Order", "Cancelling", "Batons", "Time", "State", "Faults", "Life")
"""The themes."""


@dataclass(frozen=True, slots=True)
class Guarantee:
    """One promise of every backend."""

    number: str
    """`G1` to `G27`."""
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
        "at which a publication was accepted; ties in the order of acceptance. This also holds for deliveries that "
        "became overdue behind a slow handler. Instants of acceptance never run backwards: each is the larger of the "
        "clock's reading and the latest instant that was accepted or delivered up to. An event shows its "
        "ready instant as `event.due`, in nanoseconds.",
    ),
    Guarantee(
        "G3",
        "asynchronous",
        "Order",
        "Dispatch never runs on the stack of the operation that caused it. This also holds at delay 0, and for the "
        "publisher's own subscription.",
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
        "After a cancel, an unsubscribe or a removal has returned, no delivery that it covers begins. Each timer is "
        "either counted by one cancel or delivered, never both, never neither. Subscribing again revives no old "
        "message.",
    ),
    Guarantee(
        "G6",
        "never interrupting",
        "Cancelling",
        "A delivery that has begun runs to its end. A handler may end its own conversation.",
    ),
    Guarantee(
        "G7",
        "whole",
        "Cancelling",
        "A timer whose `schedule_event` races with a cancel ends as scheduled or as cancelled; the same holds for "
        "subscribing and removing.",
    ),
    Guarantee(
        "G8",
        "one taker",
        "Batons",
        "When several callers call `pending_flow(cid)` at the same time, exactly one of them gets the baton.",
    ),
    Guarantee(
        "G9",
        "never early",
        "Time",
        "A timer never begins before its delay has passed by the registry's clock, even if a wait or an event loop "
        "wakes up too early.",
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
        "Every finite delay is waited for; fractions count, and a negative delay means 0. NaN and infinity raise "
        "`ValueError`; `bool`, `str` and `None` raise `TypeError`. A float is multiplied by 10⁶ "
        "as a float, and rounded up to whole nanoseconds.",
    ),
    Guarantee(
        "G12",
        "own clock",
        "Time",
        "A change of the wall clock has no effect, nor has replacing attributes of the `time` module. `clock=` may be "
        "passed in. `now_ns` is the present instant on this clock.",
    ),
    Guarantee(
        "G27",
        "fair",
        "Time",
        "While one publication is being delivered to many conversations, a timer of another conversation that becomes "
        "due begins after at most 64 further targets on the thread or loop that would deliver it, besides what that "
        "conversation itself has ready before it (G2).",
        "fair",
    ),
    Guarantee(
        "G13",
        "proportional",
        "State",
        "Memory is proportional to what is pending. Removing something immediately frees its keys, containers and "
        "payloads; a container that becomes empty gives its memory back. What was delivered is freed when `settle` "
        "returns. (A message queued for a subscription that was then removed may stay until the delivery thread "
        "reaches it.) A registry that is dropped with nothing pending is collected, and its threads end; with timers "
        "pending it delivers them first.",
    ),
    Guarantee(
        "G14",
        "own cost",
        "State",
        "The cost of subscribing, unsubscribing, cancelling and ending a conversation is proportional to what they "
        "touch. A publication costs its caller the same for any number of subscribers.",
    ),
    Guarantee(
        "G15",
        "whole or not at all",
        "State",
        "An operation that raises has changed nothing. (An exception that a signal handler raises in the middle of an "
        "operation interrupts it at that point. Everything that the registry shows agrees afterwards.)",
    ),
    Guarantee(
        "G16",
        "snapshot",
        "State",
        "A publication targets the subscribers of one instant. `subscriptions()` returns copies, and never raises "
        "because of a concurrent change.",
    ),
    Guarantee(
        "G17",
        "by reference",
        "State",
        "Within a process a payload is only passed on: it is never copied, compared, hashed, tested for truth or "
        "shown. Of a name that is an instance of a subclass of `str` no method is called.",
        "by_reference",
    ),
    Guarantee(
        "G18",
        "generations",
        "State",
        "No timer or publication that was accepted before `reset_state()` begins after it has returned.",
    ),
    Guarantee(
        "G19",
        "isolated",
        "Faults",
        "A delivery that raises any exception stops no other delivery. The failure is counted, logged once on `stube` "
        "and passed to `on_error`. Where dispatch runs on the caller's own thread or event loop, `KeyboardInterrupt` "
        "is counted and then raised. A backend that cannot await a returned coroutine closes it and counts the "
        "delivery as failed. A `ConversationEnded` out of a delivery is no failure: it is logged at DEBUG, and the "
        "delivery counts as delivered.",
    ),
    Guarantee(
        "G20",
        "re-entrant",
        "Faults",
        "Every operation may be called from inside a delivery, from a finalizer, and from a signal handler that "
        "interrupts another operation of the same registry. Such a re-entrant call takes effect at the latest when the "
        "interrupted operation returns, and may return 0; a re-entrant `pending_flow` that finds nothing leaves the "
        "baton. While user code runs (dispatch, `on_error`, `clock`, a destructor, a log handler), every other thread "
        "can complete every operation: none of it runs under a lock, or on a thread for which others wait.",
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
        "`max_pending` bounds timers and queued messages together. An operation that would exceed it raises "
        "`RegistryFull`, which names `max_pending` and its value, and changes nothing. Messages of a removed "
        "subscription count until the delivery thread reaches them.",
    ),
    Guarantee(
        "G23",
        "lazy",
        "Life",
        "Importing a backend and creating a registry start no thread. An operation that needs a thread which cannot be "
        "started raises and changes nothing.",
    ),
    Guarantee(
        "G24",
        "closing",
        "Life",
        "`close()` is idempotent, bounded by its timeout (any finite number of seconds, or None), may be called inside "
        "a delivery, and returns whether everything stopped. Afterwards operations that add raise `RegistryClosed`, "
        "and operations that remove do nothing. A program that ends without `close()` exits promptly with code 0.",
    ),
    Guarantee(
        "G25",
        "fork",
        "Life",
        "A forked child has an empty, usable registry with the same options and dispatch, even if a handler forked it. "
        "The parent's registry is not affected.",
        "fork",
    ),
    Guarantee("G26", "alone", "Life", "Two registries share nothing."),
)

GUARANTEES: Final[Mapping[str, Guarantee]] = MappingProxyType({one.number: one for one in _ALL})
"""Every guarantee by its number, `"G1"` to `"G27"`, in the order of the themes."""


def unknown_guarantee(numbers: Iterable[object]) -> str | None:
    """Return two sentences about the first of these that is no guarantee's number; None when all are."""
    for number in numbers:
        if number not in GUARANTEES:
            return f"There is no guarantee {number!r}. Choose from {', '.join(GUARANTEES)}."
    return None
