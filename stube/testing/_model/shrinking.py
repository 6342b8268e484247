"""Shrinking: making a program that shows a difference smaller, until nothing more can be removed.

It is greedy and works on the program itself. First it removes operations in chunks of halving size (the complements of
Zeller and Hildebrandt, "Simplifying and Isolating Failure-Inducing Input", 2002), then handlers and their operations,
then the bound; then it replaces arguments by the first ones of their pools. No operation refers to the result of
another, so every part of a program is a program.
Hypothesis would shrink the choices behind a program. Here that took several times as long and, after the 500 steps that
Hypothesis permits itself, ended with programs twice as long.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any, Final

from stube.testing._model.programs import Alias, Call, CancelHandle, InstallDispatch, Operation, Program, Raise

__all__ = ["smaller_programs"]

_POOLS: Final[tuple[tuple[Any, ...], ...]] = (
    ("c1", "c2", "c3"),
    ("i1", "i2"),
    ("t", "u"),
    ("a", "b", "c"),
    (0,),  # and no delay that would become due on a real clock: see `settled_programs`
)
"""Pools of arguments, the simplest first."""


def smaller_programs(program: Program) -> Iterator[Program]:
    """Yield smaller programs, the much smaller ones first."""
    for operations in _shorter(program.operations):
        yield replace(program, operations=operations)
    for name, operations in program.handlers.items():
        others = {each: ours for each, ours in program.handlers.items() if each != name}
        yield replace(program, handlers=others)
        for fewer in _shorter(operations):
            if fewer:
                yield replace(program, handlers={**others, name: fewer})
    if program.max_pending is not None:
        yield replace(program, max_pending=None)
    for simpler in _simplified(program.operations):
        yield replace(program, operations=simpler)
    for name, operations in program.handlers.items():
        for simpler in _simplified(operations):
            yield replace(program, handlers={**program.handlers, name: simpler})


def _shorter(operations: tuple[Operation, ...]) -> Iterator[tuple[Operation, ...]]:
    size = len(operations)
    while size:
        for start in range(len(operations) - size, -1, -size):
            yield operations[:start] + operations[start + size :]
        size //= 2


def _simplified(operations: tuple[Operation, ...]) -> Iterator[tuple[Operation, ...]]:
    for number, operation in enumerate(operations):
        for simpler in _simpler(operation):
            yield (*operations[:number], simpler, *operations[number + 1 :])


def _simpler(operation: Operation) -> Iterator[Operation]:
    if isinstance(operation, CancelHandle):
        for cid in _simpler_values(operation.cid):
            yield replace(operation, cid=cid)
        for index in range(operation.index):
            yield replace(operation, index=index)
    elif isinstance(operation, InstallDispatch):
        if operation.number != 1:
            yield InstallDispatch()
    elif isinstance(operation, Raise):
        if operation.error is not LookupError:
            yield Raise(LookupError)
    else:
        yield from _simpler_calls(operation)


def _simpler_calls(call: Call) -> Iterator[Call]:
    for number, value in enumerate(call.positional):
        for simpler in _simpler_values(value):
            yield replace(call, positional=(*call.positional[:number], simpler, *call.positional[number + 1 :]))
    for number, (name, value) in enumerate(call.named):
        if name == "cid" and str(dict(call.named).get("topic")).startswith("topic of "):
            continue  # a topic of one conversation stays with it
        for simpler in _simpler_values(value):
            yield replace(call, named=(*call.named[:number], (name, simpler), *call.named[number + 1 :]))


def _simpler_values(value: Any) -> Iterator[Any]:
    if isinstance(value, (tuple, list)):
        yield from value[:1]
    elif isinstance(value, Alias):
        yield str.__str__(value)
    elif type(value) in (str, int, float):
        for pool in _POOLS:
            if value in pool:
                yield from pool[: pool.index(value)]
            elif type(value) is not str and pool[0] == 0:
                yield from pool
