"""What an engine asks of the part that begins deliveries.

There are two: `SerialClaims` (see `_serial`) begins one delivery after the other, for one delivery thread;
`MailboxClaims` (see `_mailboxes`) lets conversations overlap.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from stube_backends.engine._order import Arrival
from stube_backends.engine._timers import Timer
from stube_backends.engine._topics import Subscription


class Claims(Protocol):
    """Knows what has left the ready order and is not over. One call at a time, under the lock of the engine."""

    @property
    def batch(self) -> object | None:
        """What `waiting_timers` looks through; None where it would find nothing."""
        ...

    def is_idle(self) -> bool:
        """Say whether nothing runs and nothing has left the order that must still begin."""
        ...

    def running_cids(self) -> set[str]:
        """Return the conversations that have a delivery running."""
        ...

    def parked(self) -> list[Arrival]:
        """Return what has left the order and waits in other rings, in the ready order."""
        ...

    def waiting_timers(self, cid: str | None = None, instance_id: str | None = None) -> list[Timer]:
        """Return the timers that have left their conversations and have not begun; with `cid` one conversation's."""
        ...

    def waiting_targets(self) -> list[Subscription]:
        """Return the targets of a publication in progress that are live and have not begun."""
        ...

    def queued(self) -> int:
        """Return how many messages of a publication in progress the ledger counts as queued."""
        ...

    def sync_counts(self) -> None:
        """Bring the ledger up to date with what has begun without the lock."""
        ...

    def withdraw(self, timer: Timer) -> bool:
        """Cancel a timer that is CLAIMABLE, and count it; say whether it had not begun."""
        ...

    def cancel_messages(self, cid: str) -> None:
        """Cancel what is parked for a conversation whose last subscription has been removed."""
        ...

    def drop_in_progress(self) -> list[Any]:
        """Drop all that has left the order and has not begun; return what was held, for the caller to release."""
        ...

    def stop(self) -> None:
        """In a forked child: let nothing begin any more of what the parent had begun."""
        ...

    def take_back(self) -> tuple[list[Arrival], list[Timer]]:
        """Give back all that has left the order and has not begun, the arrivals and other timers, to be put in again.

        After an asynchronous exception; `recount` follows."""
        ...

    def recount(self) -> int:
        """Make the ledger's `running` anew, and add to `queued` what a publication in progress still has to begin.

        Returns:
            How many deliveries have begun and have no fate yet.
        """
        ...

    def sizes(self) -> Mapping[str, int]:
        """Return the length of every container."""
        ...

    def _check(self) -> None: ...
