"""The result of the self-check: named figures, as a table or as JSON."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field


@dataclass(frozen=True)
class Figure:
    """One thing that was counted twice: the number expected, and the number seen."""

    name: str
    expected: int
    seen: int

    @property
    def ok(self) -> bool:
        return self.expected == self.seen


@dataclass
class Report:
    """All figures, and the step that did not finish, if any."""

    backend: str
    clients: int
    figures: list[Figure] = field(default_factory=list)
    stuck: str | None = None
    """The step that did not finish, and the reason."""
    seconds: float = 0.0

    @property
    def wrong(self) -> list[Figure]:
        return [figure for figure in self.figures if not figure.ok]

    @property
    def ok(self) -> bool:
        return not self.wrong and self.stuck is None

    def as_json(self) -> str:
        return json.dumps(
            {
                "ok": self.ok,
                "backend": self.backend,
                "clients": self.clients,
                "seconds": round(self.seconds, 3),
                "stuck": self.stuck,
                "figures": [{**asdict(figure), "ok": figure.ok} for figure in self.figures],
            },
            indent=2,
        )

    def as_table(self) -> str:
        width = max([len(figure.name) for figure in self.figures], default=6)
        head = f"{'figure':{width}}  expected      seen  ok"
        lines = (
            f"{figure.name:{width}}  {figure.expected:8}  {figure.seen:8}  {'yes' if figure.ok else 'NO'}"
            for figure in self.figures
        )
        return "\n".join([head, *lines, "", self._verdict()])

    def _verdict(self) -> str:
        head = f"{self.backend}, {self.clients} clients, {self.seconds:.1f} s:"
        if self.ok:
            return f"{head} all {len(self.figures)} figures agree."
        parts = [f"{figure.name} (expected {figure.expected}, seen {figure.seen})" for figure in self.wrong]
        sentences = [f"wrong: {', '.join(parts)}."] if parts else []
        if self.stuck is not None:
            sentences.append(f"stuck: {self.stuck}.")
        return f"{head} {' '.join(sentences)}"
