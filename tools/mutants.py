"""Mutation testing of the engine: is there a test for each thing that it does?

    python tools/mutants.py                            every module; continue where the last run stopped
    python tools/mutants.py _wheel _topics             these modules only
    python tools/mutants.py --changed-since yesterday  the modules that a commit has changed since then
    python tools/mutants.py --fast                     run the suite as `make test` does
    python tools/mutants.py --table docs/mutants.md    and write the page of the documentation

A mutant is the engine with one small change. A test that fails on it kills it. A mutant that survives shows that a test
is missing, or that the change has no effect that a test could notice. The second kind is listed in
`tools/mutants.toml`, each with its reason. The exit code is 1 when a mutant survives that is not listed, or when a
listed one was killed or does not exist.

mutmut knows how to mutate; removed statements and decided branches are added here. Its runner is not used: it puts a
trampoline in front of every function, and the suite, which interrupts every line of an operation and counts bytes,
would test the trampolines. Here a mutant is a whole module in a copy of the tree, the working tree is left alone, and
the tests run in a fork of this process, which has pytest loaded already (`tools/preloaded.py`).

The tests run in stages, and only a mutant that survives a stage meets the next one: the engine's own tests, the tests
of its module on other backends (`ELSEWHERE`), the quick tests of the suite on the virtual backend, and the slow ones,
which leave out the listed mutants. A test that is not one of the engine's own must fail twice to kill, because some of
these tests measure time. POSIX only, because it forks.
"""

from __future__ import annotations

import argparse
import difflib
import hashlib
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
import tomllib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from itertools import islice
from pathlib import Path
from types import CodeType, FrameType
from typing import Any, Final, NamedTuple

from tools.preloaded import ROOT, Ended, Running, Tree, preload, run_pytest

ENGINE: Final = Path("backends", "stube_backends", "engine")
ARGUMENTS: Final = Path("stube", "arguments.py")  # of the core, and tested with the engine, whose checks it has
ACCEPTED: Final = ROOT / "tools" / "mutants.toml"
MODULES: Final = (  # all but `_claims`, a protocol, in which there is no code to change
    "_engine",
    "_rings",
    "_tables",
    "_topics",
    "_wheel",
    "_timers",
    "_records",
    "_order",
    "_turns",
    "_serial",
    "_ledger",
    "_mailboxes",
    "_backlogs",
    "_core",
    "_deferred",
    "_driver",
    "_thread_driver",
    "_delivery",
    "_awaiting",
    "_waiting",
    "_failures",
    "_local",
    "_options",
    "_process",
    "_arguments",
    "arguments",
    "_inspection",
    "_recovery",
)
OWN: Final = "tests/backends/test_engine*.py"
ELSEWHERE: Final = {  # more tests of a module, of what the virtual backend does not use or only they try
    "_awaiting": ("tests/backends/test_virtual_async.py", "tests/backends/test_aio.py"),
    "_backlogs": ("tests/backends/test_back_pressure.py",),
    "_core": ("tests/backends/test_sharded.py",),
    "_driver": ("tests/backends/test_memory.py",),
    "_engine": ("tests/backends/test_back_pressure.py",),
    "_local": ("tests/backends/test_back_pressure.py",),
    "_order": ("tests/backends/test_back_pressure.py",),
    "_thread_driver": ("tests/backends/test_memory.py",),
}
OTHERS: Final = ("tests/test_conformance.py", "tests/backends/test_virtual.py", "tests/backends/test_reentrancy.py")
ON_VIRTUAL: Final = ("--stube-backend=virtual", "-k", "not [memory and not [sharded")

SLOW: Final = 0.1  # seconds; a test of the suite that takes longer belongs to the last stage
PATIENCE: Final = 5  # times as long as the tests take without a mutant, and so many seconds: then they hang
OVER: Final = ("killed", "timed out")


# Mutants


class Change(NamedTuple):
    """The lines of a function before and after the change. Without line numbers, because those move."""

    function: str  # with its module: `_wheel.TimerWheel.add`
    before: str
    after: str


@dataclass
class Mutant:
    """One change of one module, and its result."""

    change: Change
    source: str = field(repr=False)
    origin: str  # the digest of the module that was changed
    survived: dict[str, str] = field(default_factory=dict)  # stage: the digest of what ran in it
    status: str = "untried"
    by: str = ""  # the test that killed it

    @property
    def module(self) -> str:
        return self.change.function.partition(".")[0]


def mutants_of(module: str) -> list[Mutant]:
    """Return every mutant of a module, in the order of its lines. Two with the same text are one."""
    cst: Any = import_module("libcst")
    source = (ROOT / file_of(module)).read_text(encoding="utf-8")
    tree = cst.parse_module(source)
    origin = _digest([source])
    lines = source.splitlines()
    found: dict[Change, Mutant] = {}
    for function, old, new in _mutations(cst, tree):
        mutated = tree.deep_replace(old, new).code
        change = Change(f"{module}.{function}", *_difference(lines, mutated.splitlines()))
        found.setdefault(change, Mutant(change, mutated, origin))
    return list(found.values())


def _mutations(cst: Any, tree: Any) -> Iterator[tuple[str, Any, Any]]:
    """Yield the function, the node to replace and its replacement, for each mutant."""
    operators: list[tuple[Any, Callable[[Any], Iterable[Any]]]] = [
        *import_module("mutmut.mutation.mutators").mutation_operators,
        (cst.SimpleStatementLine, lambda node: _removed(cst, node)),
        (cst.If | cst.While | cst.CompIf, lambda node: _decided(cst, node)),
        (cst.Return, lambda node: _without_result(cst, node)),
    ]

    def visit(node: Any, inside: tuple[str, ...]) -> Iterator[tuple[str, Any, Any]]:
        if _is_left_alone(cst, node):
            return
        for kind, operator in operators:
            if isinstance(node, kind):
                for number, new in enumerate(operator(node)):
                    # One change of a string is enough, because tests compare whole messages.
                    if not (number and isinstance(node, cst.SimpleString)):
                        yield ".".join(inside) or "<module>", node, new
        if isinstance(node, cst.ClassDef | cst.FunctionDef):
            inside = (*inside, node.name.value)
        for child in node.children:
            yield from visit(child, inside)

    return visit(tree, ())


def _is_left_alone(cst: Any, node: Any) -> bool:
    """Return whether no test should notice a change: of types, slots, imports, and the checks that only tests call."""
    if isinstance(node, cst.FunctionDef):
        return bool(node.name.value == "_check")
    if isinstance(node, cst.Assign):
        return any(getattr(target.target, "value", None) == "__slots__" for target in node.targets)
    if isinstance(node, cst.AnnAssign):
        return "TypeAlias" in str(getattr(node.annotation.annotation, "value", ""))
    return isinstance(node, cst.Annotation | cst.Decorator | cst.Import | cst.ImportFrom)


def _removed(cst: Any, line: Any) -> Iterator[Any]:
    """Leave out a statement that is only a call, or a `del`."""
    for statement in line.body:
        called = isinstance(statement, cst.Expr) and isinstance(statement.value, cst.Call)
        if called or isinstance(statement, cst.Del):
            yield line.with_changes(body=[cst.Pass()])


def _decided(cst: Any, node: Any) -> Iterator[Any]:
    """Take a branch never or always, never enter a loop, let a filter pass everything."""
    if not isinstance(node, cst.CompIf):
        yield node.with_changes(test=cst.Name("False"))
    if not isinstance(node, cst.While):
        yield node.with_changes(test=cst.Name("True"))


def _without_result(cst: Any, node: Any) -> Iterator[Any]:
    """Return None instead of the result."""
    if node.value is not None and getattr(node.value, "value", "") != "None":
        yield node.with_changes(value=None)


def _difference(old: list[str], new: list[str]) -> tuple[str, str]:
    """Return the lines that differ, without their indentation."""
    before, after = [], []
    for kind, i1, i2, j1, j2 in difflib.SequenceMatcher(None, old, new, autojunk=False).get_opcodes():
        if kind != "equal":
            before += old[i1:i2]
            after += new[j1:j2]
    return "\n".join(line.strip() for line in before), "\n".join(line.strip() for line in after)


def _digest(texts: Iterable[str]) -> str:
    return hashlib.sha256("\0".join(texts).encode()).hexdigest()[:16]


# Running tests on a mutant


class Stage(NamedTuple):
    """Tests that run together."""

    name: str
    arguments: list[str]
    seconds: float  # without a mutant
    digest: str  # of the tests; a mutant that survived them need not meet them again
    reached: frozenset[str] | None = None  # the functions that these tests call; None for all of them
    module: str = ""  # the only one whose mutants these tests meet; empty for all of them


class Recorder:
    """A pytest plugin: which test failed first, how long each took, and which functions of the engine were called."""

    def __init__(self) -> None:
        self.failed = ""
        self.seconds: dict[str, float] = {}
        self._codes: set[CodeType] = set()

    def pytest_runtest_logreport(self, report: Any) -> None:
        self.seconds[report.nodeid] = self.seconds.get(report.nodeid, 0.0) + report.duration
        if report.failed and not self.failed:
            self.failed = report.nodeid

    def profile(self, frame: FrameType, _kind: str, _: object) -> None:
        self._codes.add(frame.f_code)

    def called(self) -> list[str]:
        inside = [code for code in self._codes if str(ENGINE) in code.co_filename or _is_arguments(code)]
        return sorted(f"{Path(code.co_filename).stem}.{code.co_qualname.replace('.<locals>', '')}" for code in inside)


def _is_arguments(code: CodeType) -> bool:
    return code.co_filename.endswith(str(ARGUMENTS))


def file_of(module: str) -> Path:
    """Return the file of a module, which its mutants replace."""
    return ARGUMENTS if module == ARGUMENTS.stem else ENGINE / f"{module}.py"


def start(tree: Tree, arguments: Sequence[str], *, own: bool, profiled: bool = False) -> Running:
    """Run tests in a fork of this process."""

    def body() -> dict[str, Any]:
        os.environ.update({"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"} if own else {})  # plugins take half of a short run
        return _run(arguments, own, profiled)

    return tree.start(body)


def _run(arguments: Sequence[str], own: bool, profiled: bool) -> dict[str, Any]:
    recorder = Recorder()
    if profiled:
        threading.setprofile(recorder.profile)
        sys.setprofile(recorder.profile)
    code = _pytest(arguments[:1], recorder) if own else 0  # alone, because collecting the others takes longer
    if code == 0:
        code = _pytest(arguments[1:] if own else arguments, recorder)
    if code == 1 and not own and recorder.failed and _pytest([*ON_VIRTUAL, recorder.failed], Recorder()) == 0:
        unsteady, recorder = recorder.failed, Recorder()
        code = _pytest([*arguments, f"--deselect={unsteady}"], recorder)
    sys.setprofile(None)
    return {
        "code": code,
        "failed": recorder.failed,
        "seconds": recorder.seconds,
        "called": recorder.called(),
    }


def _pytest(arguments: Sequence[str], recorder: Recorder) -> int:
    return run_pytest(["-x", *arguments], [recorder])


def stages(tree: Tree, modules: Iterable[str], *, fast: bool = False) -> Iterator[Stage]:
    """Yield the stages for mutants of these modules. Each is measured without a mutant when it is asked for.

    With `fast` there is one stage for the suite, which runs as `make test` runs it.
    """
    own = sorted(str(path.relative_to(ROOT)) for path in ROOT.glob(OWN))
    own_digest = _digest(_texts(OWN, f"{ENGINE}/*.py", str(ARGUMENTS)))
    own_seconds = _remembered(tree, f"own-{own_digest}", lambda: _measured(tree, own, own=True)["seconds"])
    called = _remembered(tree, f"called-{own_digest}", lambda: _measured(tree, own, own=True, profiled=True)["called"])
    yield Stage("own", own, sum(own_seconds.values()), _digest(_texts(OWN)), reached=frozenset(called))
    for module in modules:
        if module in ELSEWHERE:
            yield _elsewhere(tree, module)
    suite_digest = _digest(_texts("stube/**/*.py", *OTHERS, "backends/stube_backends/virtual/*.py"))
    seconds = _remembered(tree, f"seconds-{suite_digest}", lambda: _measured(tree, [*ON_VIRTUAL, *OTHERS])["seconds"])
    if fast:
        yield Stage("fast", [*ON_VIRTUAL, "--stube-quick", *OTHERS], sum(seconds.values()), suite_digest)
        return
    slow = [test for test, spent in seconds.items() if spent > SLOW]
    slow_seconds = sum(seconds[test] for test in slow)
    quick = [*ON_VIRTUAL, *OTHERS, *(f"--deselect={test}" for test in slow)]
    yield Stage("quick", quick, sum(seconds.values()) - slow_seconds, suite_digest)
    yield Stage("slow", [*ON_VIRTUAL, *slow], slow_seconds, suite_digest)


def _elsewhere(tree: Tree, module: str) -> Stage:
    """Return the stage of the tests of a module in `ELSEWHERE`."""
    files = ELSEWHERE[module]
    digest = _digest(_texts("stube/**/*.py", *files, "backends/stube_backends/**/*.py"))
    seconds = _remembered(tree, f"elsewhere-{module}-{digest}", lambda: _measured(tree, files)["seconds"])
    return Stage(f"elsewhere{module}", list(files), sum(seconds.values()), _digest(_texts(*files)), module=module)


def _remembered(tree: Tree, name: str, measure: Callable[[], Any]) -> Any:
    """Measure once for the same sources, because a test that changed its stage between two runs would be left out."""
    path = tree.folder.parent / f"{name}.json"
    if not path.exists():
        path.write_text(json.dumps(measure()))
    return json.loads(path.read_text())


def _texts(*patterns: str) -> list[str]:
    return [path.read_text(encoding="utf-8") for pattern in patterns for path in sorted(ROOT.glob(pattern))]


def _measured(tree: Tree, arguments: Sequence[str], *, own: bool = False, profiled: bool = False) -> dict[str, Any]:
    result = _result(start(tree, arguments, own=own, profiled=profiled).wait(limit=900))
    if result["code"] != 0:
        failed = result["failed"] or "pytest"
        raise SystemExit(f"{failed} failed without a mutant. Its output is in {tree.output}.")
    return result


def _result(ended: Ended) -> dict[str, Any]:
    """Return the result of `_run`; a failure or a timeout where it returned none."""
    return ended.result or {"code": None if ended.timed_out else 1, "failed": ""}


def run_stage(stage: Stage, mutants: Sequence[Mutant], trees: Sequence[Tree], record: Callable[[Mutant], None]) -> None:
    """Run a stage on the mutants that have survived so far, on as many at the same time as there are trees."""
    waiting = [mutant for mutant in mutants if _is_due(mutant, stage)]
    total, limit = len(waiting), PATIENCE * (stage.seconds + 1)
    done = 0
    busy: dict[Tree, tuple[Running, Mutant]] = {}
    deadly: dict[str, str] = {}  # by module, the file of tests that killed last
    while waiting or busy:
        for tree in trees:
            if tree in busy:
                running, mutant = busy[tree]
                ended = running.poll(limit)
                if ended is None:
                    continue
                _judge(mutant, stage, _result(ended))
                if (file := mutant.by.partition("::")[0]) in stage.arguments:
                    deadly[mutant.module] = file
                record(mutant)
                tree.restore(file_of(mutant.module))
                del busy[tree]
                done += 1
                if done % 50 == 0 or done == total:
                    _say(f"{stage.name}: {done} of {total}; {_figures(mutants)}")
            if waiting:
                mutant = waiting.pop(0)
                tree.write(file_of(mutant.module), mutant.source)
                arguments = stage.arguments.copy()
                if mutant.module in deadly:  # these tests will most likely kill it, as they killed its neighbour
                    arguments.insert(0, arguments.pop(arguments.index(deadly[mutant.module])))
                busy[tree] = start(tree, arguments, own=stage.name == "own"), mutant
        time.sleep(0.01)


def _is_due(mutant: Mutant, stage: Stage) -> bool:
    if mutant.status in OVER or mutant.survived.get(stage.name) == stage.digest:
        return False
    if stage.module not in ("", mutant.module):
        return False
    return stage.reached is None or mutant.change.function in stage.reached


def _judge(mutant: Mutant, stage: Stage, result: Mapping[str, Any]) -> None:
    if result["code"] == 0:
        mutant.status = "survived"
        mutant.survived[stage.name] = stage.digest
    elif result["code"] is None:
        mutant.status, mutant.by = "timed out", stage.name
    else:
        mutant.status, mutant.by = "killed", result["failed"] or f"{stage.name}, at its start"


def changed_since(when: str) -> set[str]:
    """Return the modules of the engine that a commit has changed since then."""
    command = ["git", "log", f"--since={when}", "--name-only", "--format=", "--", str(ENGINE), str(ARGUMENTS)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    return {Path(line).stem for line in done.stdout.splitlines()} & set(MODULES)


# Results


class Results:
    """The results of earlier runs, a line of JSON each, of which the last one counts.

    A kill holds as long as its module is the same; a survival as long as the tests are the same, too.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._known: dict[Change, dict[str, Any]] = {}
        if path.exists():
            for line in path.read_text(encoding="utf-8").splitlines():
                entry = json.loads(line)
                self._known[Change(*entry["change"])] = entry

    def recall(self, mutant: Mutant) -> None:
        known = self._known.get(mutant.change)
        if known is not None and known["origin"] == mutant.origin:
            mutant.status, mutant.by, mutant.survived = known["status"], known["by"], known["survived"]

    def record(self, mutant: Mutant) -> None:
        entry = {name: value for name, value in vars(mutant).items() if name != "source"}
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(entry) + "\n")


def accepted() -> dict[Change, str]:
    """Return the accepted survivors, each with the reason why no test can notice it."""
    with ACCEPTED.open("rb") as file:
        groups = tomllib.load(file)["survivors"]
    return {
        Change(group["function"], before, after): group["why"] for group in groups for before, after in group["changes"]
    }


# Reports


def report(mutants: Sequence[Mutant], known: Mapping[Change, str]) -> int:
    """Print the differences from the list of accepted survivors, and the totals; return the exit code."""
    wrong = 0
    for mutant in mutants:
        listed = mutant.change in known
        if listed == (mutant.status in OVER):
            wrong += 1
            what = f"is listed, and {mutant.status} by {mutant.by}" if listed else mutant.status
            _say(f"\n{mutant.change.function}: {what}")
            _say("\n".join(f"  - {line}" for line in mutant.change.before.splitlines()))
            _say("\n".join(f"  + {line}" for line in mutant.change.after.splitlines()))
    gone = known.keys() - {mutant.change for mutant in mutants}
    tried = {mutant.module for mutant in mutants}
    for change in sorted(gone):
        if change.function.partition(".")[0] in tried:
            wrong += 1
            _say(f"\n{change.function}: is listed, and there is no such mutant: {change.before!r} -> {change.after!r}")
    _say(f"\n{len(mutants)} mutants: {_figures(mutants)}; {len(known.keys() - gone)} of the survivors are accepted")
    return 1 if wrong else 0


def _figures(mutants: Iterable[Mutant]) -> str:
    counted = Counter(mutant.status for mutant in mutants)
    return ", ".join(f"{counted[status]} {status}" for status in (*OVER, "survived", "untried") if counted[status])


def _say(text: str) -> None:
    print(text, flush=True)


_PAGE: Final = """\
# Mutation testing of the engine

`make mutants` changes one place of the engine at a time and runs the tests on each of these mutants, in a copy of the
tree. A mutant that no test notices shows that a test is missing, or that the change has no effect that a test could
notice. The second kind is listed in `tools/mutants.toml`, with the reason.
`python tools/mutants.py --table docs/mutants.md` writes this page from that list and from the results.

mutmut's operators make the mutants; removed statements and decided branches are added. Left out are types, `__slots__`
and the `_check` methods, which only tests call. The tests are the engine's own, the suite on the virtual backend, and
the tests of other backends for what only they try (`ELSEWHERE` in `tools/mutants.py`). A mutant whose tests take five
times as long as usual has timed out, which counts as killed.

{figures}

## Accepted survivors

{survivors}
"""


def page(mutants: Sequence[Mutant], known: Mapping[Change, str]) -> str:
    """Return the text of `docs/mutants.md`."""
    groups: dict[tuple[str, str], list[Change]] = {}
    for change, why in known.items():
        groups.setdefault((change.function, why), []).append(change)
    survivors = ["| where | change | why no test notices it |", "|---|---|---|"]
    for (function, why), changes in groups.items():
        shown = "<br>".join(f"{_code(change.before)} → {_code(change.after)}" for change in changes)
        survivors.append(f"| `{function}` | {shown} | {why} |")
    return _PAGE.format(figures=_table_of_figures(mutants), survivors="\n".join(survivors))


def _table_of_figures(mutants: Sequence[Mutant]) -> str:
    """Return a row for each module of which every mutant was tried, and the names of the other modules."""
    by_module = {name: [mutant for mutant in mutants if mutant.module == name] for name in MODULES}
    measured = [name for name, made in by_module.items() if made and all(mutant.status != "untried" for mutant in made)]
    rows = ["| module | mutants | killed | timed out | survived |", "|---|---:|---:|---:|---:|"]
    for name in measured:
        counted = Counter(mutant.status for mutant in by_module[name])
        figures = (len(by_module[name]), *(counted[status] for status in (*OVER, "survived")))
        rows.append(f"| `{name}` | " + " | ".join(map(str, figures)) + " |")
    parts = ["\n".join(rows)] if measured else []
    if len(measured) < len(MODULES):
        missing = ", ".join(f"`{name}`" for name in MODULES if name not in measured)
        parts.append(f"Not measured since the last change of the module: {missing}.")
    return "\n\n".join(parts)


def _code(text: str) -> str:
    line = " ".join(text.split()).replace("|", "\\|")
    return f"`{line}`" if line else "nothing"


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("modules", nargs="*", metavar="MODULE", help=f"of {', '.join(MODULES)}; by default all")
    parser.add_argument("--jobs", type=int, default=2, help="how many mutants at once (%(default)s)")
    parser.add_argument("--stages", type=int, help="how many of the stages, in their order; by default all")
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir(), "stube-mutants"), help="to work in")
    parser.add_argument("--fast", action="store_true", help="run the suite as `make test` does, instead of two stages")
    parser.add_argument(
        "--changed-since", metavar="WHEN", help="only modules that a commit has changed since then, such as '1 day ago'"
    )
    parser.add_argument("--unlisted", action="store_true", help="try no mutant that is listed as a survivor")
    parser.add_argument("--fresh", action="store_true", help="forget the results of earlier runs")
    parser.add_argument("--table", type=Path, metavar="FILE", help="write the documentation's page")
    options = parser.parse_args(arguments)
    for name in options.modules:
        if name not in MODULES:
            parser.error(f"{name!r} is no module of the engine. Choose from {', '.join(MODULES)}.")
    options.folder.mkdir(parents=True, exist_ok=True)
    path = options.folder / "results.jsonl"
    if options.fresh:
        path.unlink(missing_ok=True)
    results = Results(path)
    preload()
    os.nice(10)
    modules: Sequence[str] = options.modules or MODULES
    if options.changed_since is not None:
        modules = sorted(changed_since(options.changed_since) & set(modules))
    if not modules:
        _say(f"No commit has changed the engine since {options.changed_since}.")
        return 0
    mutants = [mutant for module in modules for mutant in mutants_of(module)]
    for mutant in mutants:
        results.recall(mutant)
    _say(f"{len(mutants)} mutants; {_figures(mutants)}")
    trees = [Tree.copied(options.folder / f"tree-{number}") for number in range(options.jobs)]
    known = accepted()
    for stage in islice(stages(trees[0], modules, fast=options.fast), options.stages):
        without_listed = stage.name == "slow" or options.unlisted
        chosen = [mutant for mutant in mutants if not (without_listed and mutant.change in known)]
        run_stage(stage, chosen, trees, results.record)
    if options.table is not None:
        options.table.write_text(page(mutants, known), encoding="utf-8")
    return report(mutants, known)


if __name__ == "__main__":
    sys.exit(main())
