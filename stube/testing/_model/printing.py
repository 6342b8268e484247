"""A performed program as straight-line Python source that can be pasted into a test."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import stube
from stube.testing._model.programs import MOST_CALLBACKS, Operation, Program, Raise, Raised

__all__ = ["source"]


def source(
    program: Program,
    performed: Sequence[tuple[Operation, Any]],
    assertion: str,
    *,
    spec: object,
    options: Mapping[str, Any],
    settles: bool,
    raised: Collection[Operation] = (),
    exhausted: bool = False,
) -> str:
    """Return what was performed of a program, as Python source that ends with `assertion`.

    Args:
        program: for its handlers and options.
        performed: operations of the top level, each with its answer.
        assertion: the last statement. If it mentions `answers` or `errors`, the source records them.
        spec: as `create_registry` takes it.
        options: those that the backend itself needs.
        settles: whether `settle` follows every operation.
        raised: operations in handlers that raised.
        exhausted: whether a conversation had more than `MOST_CALLBACKS` deliveries that do something.
    """
    body: list[str] = []
    for operation, answer in performed:
        call = operation.source()
        body += [f"with suppress({answer.error.__name__}):", f"    {call}"] if isinstance(answer, Raised) else [call]
        body += ["registry.settle()"] * settles
    body += assertion.splitlines()
    kept = [name for name in ("answers", "errors", "touched") if _mentions(name, [assertion])]
    arguments = [repr(spec), *(f"{name}={value!r}" for name, value in {**options, **program.options}.items())]
    if "errors" in kept:
        arguments.append("on_error=lambda cid, event, exc: errors.append((cid, event, type(exc).__name__))")
    setting = [
        "seen, handles = [], defaultdict(list)",
        *("touched.clear()" if name == "touched" else f"{name} = []" for name in kept),
        *["calls = Counter()"] * exhausted,
        f"registry = create_registry({', '.join(arguments)})",
        "",
        "def dispatch(cid, event, number=1):",
        "    seen.append((number, cid, event))",
        *_handlers(program.handlers, "answers" in kept, raised, exhausted),
        "",
    ]
    return "\n".join([*_imports([*setting, *body]), *setting, *body]) + "\n"


def _handlers(
    handlers: Mapping[str, tuple[Operation, ...]], keeps_answers: bool, raised: Collection[Operation], exhausted: bool
) -> list[str]:
    lines = []
    if exhausted:
        lines += [f"    calls[cid] += event.name in {sorted(handlers)}"]
        lines += [f"    if calls[cid] > {MOST_CALLBACKS}:", "        return"]
    for name, operations in handlers.items():
        lines.append(f"    if event.name == {name!r}:")
        for operation in operations:
            text = operation.source()
            if keeps_answers and not isinstance(operation, Raise):
                text = f"answers.append((cid, outcome(lambda: {text})))"
            elif any(operation is each for each in raised):
                lines.append("        with suppress(Exception):")
                text = f"    {text}"
            lines.append(f"        {text}")
    return lines


def _mentions(name: str, lines: list[str]) -> bool:
    return any(re.search(rf"\b{name}\b", line) for line in lines)


def _imports(lines: list[str]) -> list[str]:
    """Return the imports that these lines need."""
    ours = ("FIRST", "SECOND", "Alias", "Interrupt", "Raised", "Unusual", "outcome", "touched")
    homes: dict[str, tuple[str, ...]] = {
        "collections": ("Counter", "defaultdict"),
        "contextlib": ("suppress",),
        "functools": ("partial",),
        "math": ("inf", "nan"),
        "stube": tuple(stube.__all__),
        "stube.testing._model.model": ("ANY_FIGURE", "OneOf"),
        "stube.testing._model.programs": ours,
    }
    modules = [f"import {name}" for name in ("datetime", "pytest") if _mentions(name, lines)]
    found = {home: [name for name in names if _mentions(name, lines)] for home, names in homes.items()}
    return [*modules, *(f"from {home} import {', '.join(names)}" for home, names in found.items() if names), ""]
