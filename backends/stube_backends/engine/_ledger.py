"""The ledger: every accepted delivery has exactly one fate, and each figure is counted where it changes."""

from __future__ import annotations

from stube import Stats


class Ledger:
    """The running figures of one registry. See `stube.Stats` for what each means.

    Three figures say where a delivery is (`timers`, `queued`, `running`), four what became of it; `accepted` says
    how many there were. None is computed from the others, so that it means something when their sum is right.
    """

    __slots__ = ("accepted", "cancelled", "delivered", "dropped", "failed", "queued", "running", "timers")

    def __init__(self) -> None:
        self.accepted = self.delivered = self.failed = self.cancelled = self.dropped = 0
        self.timers = self.queued = self.running = 0

    def drop_messages(self, count: int, live: int) -> None:
        """Count the fates of `count` messages that are forgotten: dropped for the `live` subscriptions among their
        targets, cancelled for those that have been removed."""
        self.dropped += live
        self.cancelled += count - live

    def snapshot(self, *, pending_flows: int, subscriptions: int) -> Stats:
        """Return the figures at this instant."""
        return Stats(
            pending_flows,
            subscriptions,
            self.timers,
            self.queued,
            self.running,
            self.accepted,
            self.delivered,
            self.failed,
            self.cancelled,
            self.dropped,
        )

    def _check(self) -> None:
        figures = {name: getattr(self, name) for name in self.__slots__}
        assert min(figures.values()) >= 0, f"a figure is negative: {figures}"
        if not self.running:
            assert self.snapshot(pending_flows=0, subscriptions=0).balanced, f"the ledger is out: {figures}"
