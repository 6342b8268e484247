"""The differential test: perform one program on a backend and on the model, and describe the first difference.

After every operation of the top level, everything that the public interface shows is compared: the answers of the
operation and of operations inside deliveries, the deliveries, `on_error`, each figure of the ledger, `subscriptions`,
`inspect`; and if the backend has them, the `sizes` of an empty registry and its own `_check`.

- **Exactly**, on a virtual clock: nothing depends on chance there, so the order over all conversations, every instant
  and the state inside a delivery are compared, too.
- **Settled**, on any clock: `settle` follows every operation, delays are zero or too long to become due, and handlers
  use their own conversation only. Then each conversation has one possible result, whatever the timing and however many
  conversations are served at the same time. The order between conversations is not compared.

A check is written twice, as values that are compared and as the source that is printed. `transcript` is for the test
that both say the same.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields, is_dataclass
from typing import Any, Final, NamedTuple, NoReturn

from stube import ConversationInfo, Event, RegistryClosed, RegistryFull, Stats
from stube.testing._harness import PATIENCE, blame, create
from stube.testing._model.model import ANY_FIGURE, Model, OneOf
from stube.testing._model.printing import source
from stube.testing._model.programs import (
    MOST_CALLBACKS,
    Answer,
    Call,
    InstallDispatch,
    Operation,
    Program,
    Raised,
    Stage,
    Touchy,
    touched,
)
from stube.testing._model.shrinking import smaller_programs

__all__ = ["Comparer", "Difference"]

_ON_THE_CLOCK: Final = frozenset({"advance", "join", "run_until_idle", "settle"})
_ENDING: Final = (  # performed after every program, and compared as well
    Call("settle"),
    Call("reset_state"),
    Call("close"),
    Call("put_pending_flow", ("c1", 1)),
    Call("schedule_event", (), (("cid", "c1"), ("instance_id", "i1"), ("delay_ms", 0), ("event", "a"))),
    Call("subscribe", (), (("cid", "c1"), ("instance_id", "i1"), ("topic", "t"), ("event", "a"))),
    Call("publish", ("t", 1)),
    InstallDispatch(),
    Call("pending_flow", ("c1",)),
    Call("cancel_timers", ("c1",)),
    Call("remove_subscriptions_for_cid", ("c1",)),
    Call("close"),
)
_MOST_ATTEMPTS: Final = 3000  # to make a program smaller; they take seconds
_OF_ERRORS: Final = ((RegistryFull, "G22"), (RegistryClosed, "G24"))
_OF_EXPRESSIONS: Final = (  # parts of a compared expression, each with the guarantee that a difference breaks
    ("errors", "G19"),
    ("sizes()", "G13"),
    ("publish(", "G16"),
    ("subscriptions()", "G16"),
    ("cancel", "G5"),
    ("unsubscribe(", "G5"),
    ("remove_subscriptions_for_cid(", "G5"),
    ("pending_flow", "G8"),
    ("settle()", "G10"),
    ("now_ms", "G9"),
    ("next_due_ms", "G9"),
    ("trace", "G2"),
)
_PLAIN: Final = (str, int, float, bool, type(None))
_NOTHING: Final = ConversationInfo()


class Difference(AssertionError):  # noqa: N818 - a finding
    """A backend differs from the model. `source` is a program that shows it."""

    def __init__(self, expression: str, wanted: object, got: object, source: str) -> None:
        super().__init__(
            f"The backend differs from the model in\n\n    {expression}\n\nwanted: {wanted!r}\ngot:    {got!r}\n\n"
            f"This program shows it:\n\n{source}"
        )
        self.source = source


class _Check(NamedTuple):
    """One thing to compare: the expression as it is printed, and both values."""

    expression: str
    wanted: Any
    got: Any


class Comparer:
    """Compares a backend with the model, program by program, each on a fresh registry.

    Args:
        spec: as `create_registry` takes it.
        options: those that the backend itself needs.
        exactly: compare everything, on a virtual clock; otherwise what holds when everything has settled.
    """

    def __init__(self, spec: Any, options: Mapping[str, Any], *, exactly: bool) -> None:
        self._spec = spec
        self._options = dict(options)
        self.exactly = exactly
        self.patience = PATIENCE
        """Seconds to wait for a registry to settle. Fewer after it once did not, because shrinking repeats the wait."""
        self.performed = 0
        """How many operations of the top level have been performed and compared."""

    def compare(self, program: Program) -> None:
        """Perform a program on both; raise the first `Difference`."""
        with self._performance(program) as performance:
            performance.run()

    def transcript(self, program: Program) -> str:
        """Return the program as source, followed by assertions of everything that is compared at its end."""
        with self._performance(program) as performance:
            performance.run(ending=())
            return self.source(performance, performance.assertions(), last=True)

    def smallest(self, program: Program, difference: Difference) -> Difference:
        """Shrink a program that shows `difference`; return the difference of the smallest program that was found."""
        attempts = _MOST_ATTEMPTS if self.patience == PATIENCE else _MOST_ATTEMPTS // 50
        while True:
            for smaller in smaller_programs(program):
                attempts -= 1
                if not attempts:
                    return difference
                try:
                    self.compare(smaller)
                except Difference as exc:
                    program, difference = smaller, exc
                    break
            else:
                return difference

    @contextmanager
    def _performance(self, program: Program) -> Iterator[_Performance]:
        touched.clear()
        actual, ideal = Stage(program.handlers), Stage(program.handlers)
        options = {**self._options, **program.options}
        actual.registry = create(self._spec, **options, on_error=actual.on_error)
        fair = "fair" in actual.registry.capabilities
        max_pending = options.get("max_pending", 1_000_000)
        ideal.registry = Model(max_pending=max_pending, on_error=ideal.on_error, fair=fair)
        try:
            yield _Performance(self, program, actual, ideal)
        finally:
            actual.registry.close(self.patience)

    def source(self, performance: _Performance, assertion: str, *, last: bool) -> str:
        """Return what was performed, as source. With `last` the assertion follows the last operation."""
        stages = (performance.actual, performance.ideal)
        return source(
            performance.program,
            performance.performed if last else performance.performed[:-1],
            assertion,
            spec=self._spec,
            options=self._options,
            settles=not self.exactly,
            raised=[
                answer.operation for stage in stages for answer in stage.answers if isinstance(answer.value, Raised)
            ],
            exhausted=any(count > MOST_CALLBACKS for stage in stages for count in stage.callbacks.values()),
        )


class _Performance:
    """One program on both stages."""

    def __init__(self, comparer: Comparer, program: Program, actual: Stage, ideal: Stage) -> None:
        self.comparer = comparer
        self.program = program
        self.actual = actual
        self.ideal = ideal
        self.performed: list[tuple[Operation, Any]] = []
        self._exactly = comparer.exactly
        self._by_reference = "by_reference" in actual.registry.capabilities
        self._sizes: Callable[[], Mapping[str, int]] | None = (
            actual.registry.sizes if "sizes" in actual.registry.capabilities else None
        )
        self._sizes_at_first = {} if self._sizes is None else dict(self._sizes())
        self._own_check: Callable[[], None] | None = getattr(actual.registry, "_check", None)
        ideal.registry.full = self._was_full

    def run(self, ending: tuple[Operation, ...] = _ENDING) -> None:
        for operation in (*self.program.operations, *ending):
            if self.ideal.registry.closed and isinstance(operation, Call) and operation.name in _ON_THE_CLOCK:
                continue  # the contract does not define what it means to move the clock of a closed registry
            self._step(operation)
            self.comparer.performed += 1

    def _step(self, operation: Operation) -> None:
        got = self.actual.perform(operation)
        self.performed.append((operation, got))
        wanted = self.ideal.perform(operation)
        if not self._exactly and not self.ideal.registry.closed:
            self.ideal.registry.settle()
            if not self.actual.registry.settle(self.comparer.patience):
                self.comparer.patience = 1.0
                self._differs(_Check("registry.settle()", True, False))
        for check in self._seen():
            if not self._agree(check.wanted, check.got):
                self._differs(check)
        if not self._same_answer(wanted, got):
            self._differs_in_answer(operation, wanted, got)
        for check in self._shown():
            if not self._agree(check.wanted, check.got):
                self._differs(check)
        if self._own_check is not None:
            try:
                self._own_check()
            except AssertionError as exc:
                self._raise(_Check("registry._check()", None, exc), "registry._check()", last=True)

    def _was_full(self) -> bool:
        """Tell whether the backend had no room in the call in which the model asks."""
        if self.ideal.registry.delivering:
            answers = self.actual.answers[len(self.ideal.answers) :]
            answer = answers[0].value if answers else None
        else:
            answer = self.performed[-1][1]
        return isinstance(answer, Raised) and issubclass(answer.error, RegistryFull)

    # -- what is compared --------------------------------------------------------------------------------------

    def _seen(self) -> Iterator[_Check]:
        """Yield the checks of what happened in deliveries."""
        actual, ideal = self.actual, self.ideal
        if self._exactly:
            yield _Check("seen", ideal.seen, actual.seen)
            yield _Check("errors", ideal.errors, actual.errors)
            yield from self._answers("answers", ideal.answers, actual.answers)
        else:
            cids = {cid for stage in (actual, ideal) for _, cid, _ in stage.seen}
            for cid in sorted(cids):
                ours = [[entry for entry in stage.seen if entry[1] == cid] for stage in (ideal, actual)]
                yield _Check(f"[entry for entry in seen if entry[1] == {cid!r}]", *ours)
                told = [[entry for entry in stage.errors if entry[0] == cid] for stage in (ideal, actual)]
                yield _Check(f"[entry for entry in errors if entry[0] == {cid!r}]", *told)
                given = [[answer for answer in stage.answers if answer.cid == cid] for stage in (ideal, actual)]
                yield from self._answers(f"[answer for answer in answers if answer[0] == {cid!r}]", *given)
        yield _Check("overlaps", [], actual.overlaps)
        if self._by_reference:
            yield _Check("touched", [], touched)

    def _answers(self, text: str, wanted: list[Answer], got: list[Answer]) -> Iterator[_Check]:
        # A difference in the deliveries would have been found before, so there are as many answers on both sides.
        for number, (ours, theirs) in enumerate(zip(wanted, got, strict=True)):
            # If the model permits the answer, the assertion states the answer itself.
            value = theirs.value if self._same_answer(ours.value, theirs.value) else ours.value
            yield _Check(f"{text}[{number}][1]", value, theirs.value)

    def _shown(self) -> Iterator[_Check]:
        """Yield the checks of what the registry shows of itself."""
        registry, model = self.actual.registry, self.ideal.registry
        got_stats, stats = registry.stats(), model.stats()
        for name in Stats.__dataclass_fields__:
            yield _Check(f"registry.stats().{name}", getattr(stats, name), getattr(got_stats, name))
        yield _Check("registry.stats().balanced", True, got_stats.balanced)
        yield from self._subscriptions()
        yield from self._conversations()
        if self._sizes is not None and model.empty:
            sizes = self._sizes()
            for name, size in self._sizes_at_first.items():
                yield _Check(f"registry.sizes()[{name!r}]", size, sizes[name])
        if self._exactly and not model.closed:
            yield _Check("registry.now_ms", model.now_ms, registry.now_ms)
            yield _Check("registry.next_due_ms()", model.next_due_ms(), registry.next_due_ms())
            trace = list(registry.trace)
            if len(trace) != len(model.trace):
                yield _Check("len(registry.trace)", len(model.trace), len(trace))
            yield _Check("registry.trace[-10:]", model.trace[-10:], trace[-10:])

    def _subscriptions(self) -> Iterator[_Check]:
        wanted, got = self.ideal.registry.subscriptions(), self.actual.registry.subscriptions()
        yield _Check("registry.subscriptions()", wanted, got)
        for topic, subscribers in wanted.items():
            if self._exactly:
                yield _Check(f"list(registry.subscriptions()[{topic!r}])", list(subscribers), list(got[topic]))
                continue
            for cid in {key[0] for key in subscribers}:
                own = [[key for key in keys if key[0] == cid] for keys in (subscribers, got[topic])]
                yield _Check(f"[key for key in registry.subscriptions()[{topic!r}] if key[0] == {cid!r}]", *own)

    def _conversations(self) -> Iterator[_Check]:
        wanted, got = self.ideal.registry.inspect(), self.actual.registry.inspect()
        for cid in sorted({*wanted, *got}):
            if cid not in wanted:
                yield _Check(f"({cid!r} in registry.inspect())", False, True)
            ours, theirs = wanted.get(cid, _NOTHING), got.get(cid, _NOTHING)
            shown = f"registry.inspect().get({cid!r}, ConversationInfo())"
            due = [timer.remaining_ms for timer in theirs.timers]
            text = f"(lambda due: due == sorted(due))([timer.remaining_ms for timer in {shown}.timers])"
            yield _Check(text, True, due == sorted(due))
            for name, mine, its in zip(self._texts(shown), self._parts(ours), self._parts(theirs), strict=True):
                yield _Check(name, mine, its)

    def _parts(self, info: ConversationInfo) -> tuple[Any, ...]:
        """Return a conversation's record, with those parts sorted for which no order is promised."""
        timers: Any = info.timers if self._exactly else [(timer.instance_id, timer.event) for timer in info.timers]
        subscriptions = sorted(info.subscriptions, key=repr)
        return sorted(timers, key=repr), subscriptions, info.queued, info.running, info.pending_flow

    def _texts(self, shown: str) -> tuple[str, ...]:
        """Return `_parts` as source."""
        timers = (
            f"{shown}.timers" if self._exactly else f"((timer.instance_id, timer.event) for timer in {shown}.timers)"
        )
        sources = (f"sorted({timers}, key=repr)", f"sorted({shown}.subscriptions, key=repr)")
        return (*sources, *(f"{shown}.{name}" for name in ("queued", "running", "pending_flow")))

    # -- how it is compared ------------------------------------------------------------------------------------

    def _same_answer(self, wanted: Any, got: Any) -> bool:
        if isinstance(wanted, Raised) and self.ideal.registry.closed and wanted.error in (TypeError, ValueError):
            return True  # a closed registry may check its arguments or its state first
        if isinstance(wanted, dict) and all(isinstance(each, ConversationInfo) for each in wanted.values()):
            if not isinstance(got, dict):
                return False
            return all(
                self._agree(self._parts(wanted.get(cid, _NOTHING)), self._parts(got.get(cid, _NOTHING)))
                for cid in {*wanted, *got}
            )
        return self._agree(wanted, got)

    def _agree(self, wanted: Any, got: Any) -> bool:
        """Tell whether the model permits what the backend shows. Payloads must be identical, if that is promised."""
        if wanted is got:
            return True
        if isinstance(wanted, (OneOf, Raised)) or wanted is ANY_FIGURE:
            return bool(got == wanted)
        if isinstance(wanted, Event):
            parts = ("instance_id", "name", "payload", "signals")
            return type(got) is Event and all(self._agree(getattr(wanted, part), getattr(got, part)) for part in parts)
        if is_dataclass(wanted):
            return type(got) is type(wanted) and all(
                self._agree(getattr(wanted, field.name), getattr(got, field.name)) for field in fields(wanted)
            )
        if isinstance(wanted, (tuple, list)):
            kind = tuple if isinstance(wanted, tuple) else list
            return isinstance(got, kind) and len(wanted) == len(got) and all(map(self._agree, wanted, got))
        if isinstance(wanted, dict):
            return (
                type(got) is dict
                and wanted.keys() == got.keys()
                and all(self._agree(value, got[key]) for key, value in wanted.items())
            )
        if type(wanted) in _PLAIN or not self._by_reference:
            return type(got) is type(wanted) and bool(got == wanted)
        return False

    # -- messages ------------------------------------------------------------------------------------------------

    def assertions(self) -> str:
        """Return everything that is compared now, as assertions."""
        return "\n".join(_assertion(check) for check in (*self._seen(), *self._shown()))

    def _differs(self, check: _Check) -> NoReturn:
        self._raise(check, _assertion(check), last=True)

    def _differs_in_answer(self, operation: Operation, wanted: Any, got: Any) -> None:
        call = operation.source()
        if isinstance(wanted, Raised):
            assertion = f"with pytest.raises({wanted.error.__name__}):\n    {call}"
        else:
            assertion = f"assert {call} {_same(wanted)} {wanted!r}"
        self._raise(_Check(call, wanted, got), assertion, last=False)

    def _raise(self, check: _Check, assertion: str, *, last: bool) -> NoReturn:
        difference = Difference(*check, self.comparer.source(self, assertion, last=last))
        raise blame(difference, [_guarantee_of(check)])


def _guarantee_of(check: _Check) -> str:
    """Return the guarantee that a difference breaks."""
    if check.expression in ("seen", "overlaps", "touched") or check.expression.startswith("[entry for entry in seen"):
        return _of_deliveries(check)
    if isinstance(check.wanted, Raised) or isinstance(check.got, Raised):
        errors = [answer.error for answer in (check.wanted, check.got) if isinstance(answer, Raised)]
        return next((number for error, number in _OF_ERRORS if issubclass(errors[0], error)), "G15")
    return next((number for part, number in _OF_EXPRESSIONS if part in check.expression), "G21")


def _of_deliveries(check: _Check) -> str:
    if check.expression in ("overlaps", "touched"):
        return "G1" if check.expression == "overlaps" else "G17"
    wanted, got = ([(cid, event.instance_id, event.name) for _, cid, event in seen] for seen in check[1:])
    if wanted == got:
        return "G21"  # the same deliveries, of which one has another payload or dispatch
    return "G2" if Counter(wanted) == Counter(got) else "G5"


def _assertion(check: _Check) -> str:
    if check.expression == "overlaps":
        return "# Two deliveries of one conversation at the same time: a race, so run this often."
    return f"assert {check.expression} {_same(check.wanted)} {check.wanted!r}"


def _same(wanted: object) -> str:
    """Return the operator that compares without touching a payload that must not be touched."""
    return "is" if wanted is None or isinstance(wanted, Touchy) else "=="
