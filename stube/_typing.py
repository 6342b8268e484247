"""The parts of `typing_extensions` that Python 3.11 lacks and that are needed at run time.

Type checkers see the real ones. At run time `import stube` does without that module, so that it stays cheap. A name
that is used only in annotations, such as `TypeIs`, is imported from `typing_extensions` under `TYPE_CHECKING`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

__all__ = ["override"]

if TYPE_CHECKING:
    from typing_extensions import override
else:
    _Method = TypeVar("_Method")

    def override(method: _Method, /) -> _Method:
        """Mark a method that overrides one of a base class, or that implements one of a Protocol."""
        try:
            method.__override__ = True
        except (AttributeError, TypeError):  # a property, for example, has no place for it
            pass
        return method
