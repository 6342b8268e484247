"""The line that says how far a long run is."""

from __future__ import annotations

import shutil
from typing import Final, TextIO

from stube.testing._harness.clock import monotonic

__all__ = ["ProgressLine"]

_REDRAW: Final = 0.1  # seconds between two states of the line on a terminal
_LINE_EVERY: Final = 10.0  # seconds between two lines where there is no terminal


class ProgressLine:
    """On a terminal one line that is drawn again and again; elsewhere a new line every ten seconds.

    Args:
        stream: where the line is written.
        silent: seconds, where there is no terminal, until the first line.
    """

    def __init__(self, stream: TextIO, *, silent: float = 0.0) -> None:
        self.live = stream.isatty()
        self._stream = stream
        self._next = monotonic() + (0.0 if self.live else silent)
        self._drawn = False

    def due(self) -> bool:
        """Return whether enough time has passed since the last drawing, so that the caller should draw again."""
        return monotonic() >= self._next

    def draw(self, text: str) -> None:
        """Show the state."""
        self._next = monotonic() + (_REDRAW if self.live else _LINE_EVERY)
        if self.live:
            self._stream.write(f"\r\x1b[K{text[: shutil.get_terminal_size().columns - 1]}")
            self._drawn = True
        else:
            self._stream.write(f"{text}\n")
        self._stream.flush()

    def clear(self) -> None:
        """Leave the line empty for the next output."""
        if self._drawn:
            self._stream.write("\r\x1b[K")
            self._stream.flush()
            self._drawn = False

    def say(self, line: str) -> None:
        """Write a line that stays."""
        self.clear()
        self._stream.write(f"{line}\n")
        self._stream.flush()
