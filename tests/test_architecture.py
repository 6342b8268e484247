"""The architecture: which module may import what, what is public, and how large a module may grow.

Every rule is a function from a module's source to the lines that break it. It is applied twice: to the source tree, in
which it must find nothing, and to samples that break it, so that a rule which can find nothing fails here.
"""

from __future__ import annotations

import ast
import importlib
import io
import json
import re
import subprocess
import sys
import tokenize
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import Any

import pytest
from typing_extensions import override

import stube
import stube.testing
import stube_backends.engine

ROOT = Path(__file__).parents[1]
MOST_LINES = 500  # of code in a module of the packages: without blank lines, comments and docstrings
MOST_LINES_OF_TESTS = 700  # in a file of the suite, which is a list and is read test by test

OPERATIONS = (
    "install_dispatch",
    "put_pending_flow",
    "pending_flow",
    "forget_pending_flow",
    "schedule_event",
    "cancel_timers",
    "subscribe",
    "unsubscribe",
    "remove_subscriptions_for_cid",
    "publish",
    "subscriptions",
    "reset_state",
)

# The packages that each part may import beyond the standard library and stube; the longest prefix of a module's name
# counts.
THIRD_PARTIES: dict[str, set[str]] = {
    "stube": {"typing_extensions"},
    "stube.asgi": {"sse_starlette", "starlette", "typing_extensions"},
    "stube.demo": {"httpx", "sse_starlette", "starlette", "typing_extensions", "uvicorn"},
    "stube.testing": {"hypothesis", "pytest", "typing_extensions", "uvloop"},
    "stube_backends": {"sortedcontainers", "typing_extensions"},
}
TESTING = stube.testing.__all__
# Modules of the core that are not public, and the parts that may use them.
LENT: dict[str, set[str]] = {
    "stube._secrets": {"stube.testing"},
}
# The engine has no clock, thread or log, except in the modules that put it behind a lock and deliver.
ENGINE = "stube_backends.engine"
LOCKED = {f"{ENGINE}.{name}" for name in ("_core", "_deferred", "_failures", "_local", "_process", "_waiting")}
IMPURE = {"_thread", "asyncio", "concurrent", "logging", "multiprocessing", "os", "selectors", "signal", "threading"}
IMPURE |= {"datetime", "queue", "sched", "socket", "subprocess", "time", "weakref"}
# One thread, for the backends that have their own; and coroutines, for those that await handlers.
THREADED = {f"{ENGINE}._thread_driver", f"{ENGINE}._awaiting"}
LOCKED_MAY_USE = {"get_ident", "Lock", "RLock"}  # the thread's identity, a waiter's lock, and the lock of a core
HEAVY = ("asyncio", "email", "http", "importlib.metadata", "logging", "multiprocessing", "socket", "subprocess")


@dataclass(frozen=True)
class Module:
    """One module of the packages, or a sample."""

    name: str
    tree: ast.Module
    source: str

    def within(self, *packages: str) -> bool:
        return _within(self.name, *packages)


@dataclass(frozen=True)
class Import:
    """`import module`, or `from module import name`."""

    module: str
    name: str | None
    line: int
    lazy: bool

    @override
    def __str__(self) -> str:
        return f"import {self.module}" if self.name is None else f"from {self.module} import {self.name}"

    @property
    def target(self) -> str:
        """The module that is loaded: a name imported from a package may be a module itself."""
        inner = f"{self.module}.{self.name}"
        return inner if inner in SOURCES else self.module


Rule = Callable[[Module], Iterator[str]]


def _within(name: str, *packages: str) -> bool:
    return any(name == package or name.startswith(f"{package}.") for package in packages)


def _sources() -> dict[str, Path]:
    found = {}
    for package, folder in (("stube", ROOT / "stube"), ("stube_backends", ROOT / "backends" / "stube_backends")):
        for path in sorted(folder.rglob("*.py")):
            parts = path.relative_to(folder).with_suffix("").parts
            found[".".join((package, *(part for part in parts if part != "__init__")))] = path
    return found


def _module(name: str, source: str) -> Module:
    return Module(name, ast.parse(source), source)


SOURCES = _sources()
MODULES = [_module(name, path.read_text(encoding="utf-8")) for name, path in SOURCES.items()]


def _imports(module: Module) -> Iterator[Import]:
    def visit(node: ast.AST, lazy: bool) -> Iterator[Import]:
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield Import(alias.name, None, node.lineno, lazy)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module.name}:{node.lineno}: a relative import; write the whole name"
            for alias in node.names:
                yield Import(node.module or "", alias.name, node.lineno, lazy)
        inside = lazy or isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        for child in ast.iter_child_nodes(node):
            yield from visit(child, inside)

    yield from visit(module.tree, False)


def _attributes(module: Module, of: str) -> Iterator[tuple[str, int]]:
    """Yield the names used as attributes of a module that was imported whole, each with its line."""
    for node in ast.walk(module.tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == of:
            yield node.attr, node.lineno


# The rules


def never_the_backends(module: Module) -> Iterator[str]:
    """stube imports no backend; a backend is found by its entry point."""
    if module.within("stube"):
        for one in _imports(module):
            if _within(one.module, "stube_backends"):
                yield f"{module.name}:{one.line}: {one}"


def the_core_alone(module: Module) -> Iterator[str]:
    """The core imports no stube.testing and no stube.demo, except lazily in the command line, and never stube.asgi."""
    if module.within("stube") and not module.within("stube.testing", "stube.demo", "stube.asgi"):
        for one in _imports(module):
            lazily = module.name == "stube.cli" and one.lazy and not _within(one.target, "stube.asgi")
            if _within(one.target, "stube.testing", "stube.demo", "stube.asgi") and not lazily:
                yield f"{module.name}:{one.line}: {one}"


def public_names_only(module: Module) -> Iterator[str]:
    """Backends, the demo, the glue and the suite use public names only, so that outsiders can write the same."""
    parts = ("stube_backends", "stube.asgi", "stube.demo", "stube.testing")
    home = next((part for part in parts if module.within(part)), None)
    if home is None:
        return
    for one in _imports(module):
        if one.target == "stube":
            allowed = one.name is None or one.name in stube.__all__
        else:
            allowed = not _within(one.target, "stube", "stube_backends") or _within(one.target, home)
            # These are public as well.
            allowed = allowed or one.target == "stube.arguments"
            allowed = allowed or (home == "stube.demo" and one.module == "stube.asgi")
            allowed = allowed or (home == "stube.demo" and one.target == "stube.testing" and one.name in TESTING)
            allowed = allowed or home in LENT.get(one.module, ())
        if not allowed:
            yield f"{module.name}:{one.line}: {one}"
    for name, line in _attributes(module, "stube"):
        if name not in (*stube.__all__, "__all__"):
            yield f"{module.name}:{line}: stube.{name}"


def backends_stand_on_the_engine(module: Module) -> Iterator[str]:
    """A backend imports the engine and nothing of another backend; the engine imports only itself.

    The backends that ship may use all of the engine. The backend of an outsider uses its public names.
    """
    if not module.within("stube_backends"):
        return
    for one in _imports(module):
        if not _within(one.module, "stube_backends"):
            continue
        own = ".".join(module.name.split(".")[:2])
        if not _within(one.module, own) and not _within(one.module, ENGINE):
            yield f"{module.name}:{one.line}: {one}"


def a_pure_engine(module: Module) -> Iterator[str]:
    """The parts of the engine have no lock, thread, clock or log."""
    if not module.within(ENGINE) or module.name in LOCKED | THREADED:
        return
    for one in _imports(module):
        if one.module.partition(".")[0] in IMPURE:
            yield f"{module.name}:{one.line}: {one}"


def no_thread_in_the_engine(module: Module) -> Iterator[str]:
    """The modules that put the engine behind a lock start no thread, read no clock and do not wait by themselves."""
    if module.name not in LOCKED:
        return
    for one in _imports(module):
        if one.module in {"time", "asyncio", "sched", "queue", "_thread"} or (one.module == "threading" and one.name):
            yield f"{module.name}:{one.line}: {one}"
    for name, line in _attributes(module, "threading"):
        if name not in LOCKED_MAY_USE:
            yield f"{module.name}:{line}: threading.{name}"


def one_file_takes_the_lock(module: Module) -> Iterator[str]:
    """Only `_core.py` changes `Core.mutating` and takes the lock of a core; all else calls the core's methods."""
    if not module.within("stube_backends") or module.name == f"{ENGINE}._core":
        return
    for node in ast.walk(module.tree):
        if not isinstance(node, ast.Attribute):
            continue
        of_core = isinstance(node.value, ast.Name | ast.Attribute) and ast.unparse(node.value).endswith("core")
        if (node.attr == "mutating" and isinstance(node.ctx, ast.Store)) or (
            of_core and node.attr in {"acquire", "release", "lock"}
        ):
            yield f"{module.name}:{node.lineno}: {ast.unparse(node)}"


def known_third_parties(module: Module) -> Iterator[str]:
    """A part imports only packages that its extra installs."""
    part = max((part for part in THIRD_PARTIES if module.within(part)), key=len)
    for one in _imports(module):
        top = one.module.partition(".")[0]
        ours = top in {"stube", "stube_backends"} or top in sys.stdlib_module_names
        if not ours and top not in THIRD_PARTIES[part]:
            yield f"{module.name}:{one.line}: {one}"


def the_protocols_order(module: Module) -> Iterator[str]:
    """A backend's class has its operations in the Protocol's order, so that the files read alike."""
    if not module.within("stube_backends"):
        return
    for node in ast.walk(module.tree):
        if isinstance(node, ast.ClassDef):
            names = [one.name for one in node.body if isinstance(one, ast.FunctionDef) and one.name in OPERATIONS]
            if names != sorted(names, key=OPERATIONS.index):
                yield f"{module.name}:{node.lineno}: {node.name} has {', '.join(names)}"


def not_too_long(module: Module) -> Iterator[str]:
    """A module is short enough to be read as a whole."""
    lines = _lines_of_code(module)
    most = MOST_LINES_OF_TESTS if module.name.startswith("stube.testing.suite.test_") else MOST_LINES
    if lines > most:
        yield f"{module.name}: {lines} lines of code, and {most} are the limit"


def _lines_of_code(module: Module) -> int:
    no_code = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER}
    lines: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(module.source).readline):
        if token.type not in no_code:
            lines.update(range(token.start[0], token.end[0] + 1))
    for node in ast.walk(module.tree):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            lines.difference_update(range(node.lineno, (node.end_lineno or node.lineno) + 1))
    return len(lines)


RULES: list[Rule] = [
    never_the_backends,
    the_core_alone,
    public_names_only,
    backends_stand_on_the_engine,
    a_pure_engine,
    no_thread_in_the_engine,
    one_file_takes_the_lock,
    known_third_parties,
    the_protocols_order,
    not_too_long,
]

BROKEN: list[tuple[Rule, str, str]] = [
    (never_the_backends, "stube._factory", "import stube_backends"),
    (never_the_backends, "stube._factory", "def f():\n    from stube_backends.memory import create"),
    (never_the_backends, "stube.testing.suite.test_publish", "import stube_backends.engine as engine"),
    (the_core_alone, "stube._factory", "from stube.testing import plugin"),
    (the_core_alone, "stube.__init__", "from stube import demo"),
    (the_core_alone, "stube._factory", "def f():\n    import stube.demo"),
    (the_core_alone, "stube.cli", "from stube.demo import serve"),
    (the_core_alone, "stube._conversations", "from stube.asgi import Host"),
    (the_core_alone, "stube.cli", "def f():\n    import stube.asgi"),
    (public_names_only, "stube_backends.memory", "from stube._registry import Registry"),
    (public_names_only, "stube_backends.memory", "from stube import _events"),
    (public_names_only, "stube_backends.engine._core", "from stube import arguments_for"),
    (public_names_only, "stube_backends.memory", "import stube._errors"),
    (public_names_only, "stube_backends.memory", "import stube\nerror = stube._errors.StubeError"),
    (public_names_only, "stube_backends.memory", "from stube.testing import plugin"),
    (public_names_only, "stube.testing.suite.test_publish", "from stube._stats import Stats"),
    (public_names_only, "stube.testing.suite.test_publish", "import stube._spec"),
    (public_names_only, "stube.testing.suite.test_publish", "from stube import _secrets"),
    (public_names_only, "stube_backends.memory", "from stube._secrets import Secrets"),
    (public_names_only, "stube.asgi._host", "from stube._conversations import Conversations"),
    (public_names_only, "stube.asgi._host", "from stube.demo import serve"),
    (public_names_only, "stube.demo.app", "from stube.asgi._host import Host"),
    (public_names_only, "stube.demo.app", "from stube.testing.plugin import HandlerFailed"),
    (public_names_only, "stube.demo.app", "from stube.testing import plugin"),
    (public_names_only, "stube.demo.app", "from stube.testing._history.recorder import RecordedRegistry"),
    (backends_stand_on_the_engine, "stube_backends.sharded", "from stube_backends.memory import MemoryRegistry"),
    (backends_stand_on_the_engine, "stube_backends.sharded._room", "import stube_backends.aio._link"),
    (backends_stand_on_the_engine, "stube_backends.engine._local", "from stube_backends import memory"),
    (a_pure_engine, "stube_backends.engine._wheel", "from threading import Lock"),
    (a_pure_engine, "stube_backends.engine._wheel", "import time"),
    (a_pure_engine, "stube_backends.engine._ledger", "def f():\n    import asyncio.locks"),
    (a_pure_engine, "stube_backends.engine._a_new_one", "import logging"),
    (no_thread_in_the_engine, "stube_backends.engine._core", "from threading import Thread"),
    (no_thread_in_the_engine, "stube_backends.engine._local", "import threading\nthreading.Thread()"),
    (no_thread_in_the_engine, "stube_backends.engine._local", "from time import sleep"),
    (one_file_takes_the_lock, "stube_backends.engine._local", "core.mutating = True"),
    (one_file_takes_the_lock, "stube_backends.sharded._registry", "def f(self):\n    self.core.acquire()"),
    (one_file_takes_the_lock, "stube_backends.x", "with core.lock: pass"),
    (known_third_parties, "stube._spec", "import sortedcontainers"),
    (known_third_parties, "stube.asgi._host", "import uvicorn"),
    (known_third_parties, "stube.cli", "from rich.console import Console"),
    (known_third_parties, "stube_backends.memory", "import pytest"),
    (known_third_parties, "stube.testing.suite.test_publish", "import trio"),
    (the_protocols_order, "stube_backends.x", "class X:\n  def publish(self): ...\n  def subscribe(self): ..."),
    (not_too_long, "stube.x", "x = 1\n" * (MOST_LINES + 1)),
    (not_too_long, "stube.testing.suite.test_x", "x = 1\n" * (MOST_LINES_OF_TESTS + 1)),
]


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_the_source_tree_keeps_the_rule(rule: Rule) -> None:
    assert [line for module in MODULES for line in rule(module)] == []


@pytest.mark.parametrize(("rule", "name", "source"), BROKEN)
def test_the_rule_finds_what_breaks_it(rule: Rule, name: str, source: str) -> None:
    assert list(rule(_module(name, source))), f"{rule.__name__} lets this pass"


def _circles(modules: Iterable[Module]) -> list[str]:
    """Return one circle of imports, if there is any; imports inside functions do not count."""
    names = {module.name for module in modules}
    graph = {
        module.name: {one.target for one in _imports(module) if not one.lazy and one.target in names} - {module.name}
        for module in modules
    }
    # A package imports its modules, and each of them loads the package first: that is no circle of their making.
    for name, targets in graph.items():
        graph[name] = {target for target in targets if not name.startswith(f"{target}.")}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as exc:
        return list(exc.args[1])
    return []


def test_no_module_imports_itself_by_way_of_another() -> None:
    """Fault: two modules that can only be understood, moved and tested together. Imports for type checkers count."""
    assert _circles(MODULES) == []


def test_a_circle_of_imports_is_found() -> None:
    """Fault: the rule above looks at nothing."""
    first = _module("stube._a", "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from stube._b import B")
    assert set(_circles([first, _module("stube._b", "import stube._a")])) == {"stube._a", "stube._b"}


def test_the_guide_and_the_example_use_all_that_the_engine_exports() -> None:
    """Fault: a public name that no author needs, or that no author is told of."""
    texts = [ROOT / "docs" / "write-a-backend.md", ROOT / "examples" / "acme_stube" / "acme_stube" / "__init__.py"]
    words = set(re.findall(r"\w+", " ".join(path.read_text(encoding="utf-8") for path in texts)))
    assert set(stube_backends.engine.__all__) - words == set()


def test_every_rule_has_a_sample_that_breaks_it() -> None:
    assert {rule.__name__ for rule in RULES} == {rule.__name__ for rule, _, _ in BROKEN}


def test_the_modules_that_rules_name_exist() -> None:
    pure = ("_arguments", "_engine", "_ledger", "_order", "_timers", "_topics", "_wheel")
    assert {*LOCKED, *(f"{ENGINE}.{name}" for name in pure)} <= set(SOURCES)
    assert {"stube.cli", "stube.demo.app", "stube.testing.suite", "stube_backends.memory"} <= set(SOURCES)


def test_a_comment_or_docstring_is_no_line_of_code() -> None:
    source = '"""One.\n\nTwo."""\n\n# three\nx = """a\nb"""\n\n\ndef f(\n    y: int,\n) -> None:\n    """Four."""\n'
    assert _lines_of_code(_module("stube.x", source)) == 5


# The cases


def _cases(text: str) -> set[str]:
    return set(re.findall(r"\bCase (\d+[a-z]?)\b", text))


def test_the_page_of_cases_has_the_cases_that_tests_name() -> None:
    """Fault: a test names a case that a reader cannot look up, or the page has one that no test proves."""
    page = (ROOT / "docs" / "cases.md").read_text(encoding="utf-8")
    tests = [*(ROOT / "tests").rglob("*.py"), *(ROOT / "stube" / "testing").rglob("*.py")]
    named = {case for path in tests for case in _cases(path.read_text(encoding="utf-8"))}
    described: list[str] = re.findall(r"^\*\*Case (\d+[a-z]?): ", page, re.MULTILINE)
    assert sorted(set(described)) == sorted(described)
    assert set(described) == named
    assert _cases(page) == named


# Public names


def _public_modules() -> Iterator[Module]:
    """Yield the modules that users import. Of the demo, which is an application, only the package is public."""
    for module in MODULES:
        parts = module.name.split(".")
        private = any(part.startswith("_") for part in parts)
        if not private and not module.name.startswith(("stube.demo.", "stube.testing.suite.")):
            yield module


def _public_names(module: Module) -> Iterator[str]:
    """Yield the names that a module offers: its classes and functions; in a package also the names of its modules.

    Hooks and fixtures are left out, because pytest finds them by itself.
    """
    package = SOURCES[module.name].name == "__init__.py"
    for node in module.tree.body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            fixture = any("pytest.fixture" in ast.unparse(one) for one in node.decorator_list)
            if not node.name.startswith(("_", "pytest_")) and not fixture:
                yield node.name
        elif package and isinstance(node, ast.ImportFrom) and _within(node.module or "", module.name):
            for alias in node.names:
                name = alias.asname or alias.name
                if not name.startswith(("_", "test_")):
                    yield name


@pytest.mark.parametrize("module", list(_public_modules()), ids=lambda module: module.name)
def test_all_is_complete(module: Module) -> None:
    offered = set(_public_names(module))
    listed = set(getattr(importlib.import_module(module.name), "__all__", ()))
    assert offered - listed == set(), f"add them to {module.name}.__all__, or begin their names with an underscore"


@pytest.mark.parametrize("name", [name for name in SOURCES if name != "stube.__main__"])
def test_all_exists_once(name: str) -> None:
    module = importlib.import_module(name)
    listed: list[str] = list(getattr(module, "__all__", ()))
    assert [one for one in listed if not hasattr(module, one)] == []
    assert len(set(listed)) == len(listed)


def test_the_registry_has_the_twelve_operations() -> None:
    def operations(protocol: Any) -> list[str]:
        return [name for name, value in vars(protocol).items() if callable(value) and not name.startswith("_")]

    assert tuple(operations(stube.Registry)) == OPERATIONS
    assert not [name for name in stube.Registry.__annotations__ if not name.startswith("_")]
    assert set(operations(stube.Backend)) == {"close", "settle", "join", "stats", "inspect"}
    assert issubclass(stube.Backend, stube.Registry)


def test_the_suite_has_a_file_for_each_operation() -> None:
    missing = [name for name in OPERATIONS if f"stube.testing.suite.test_{name}" not in SOURCES]
    assert missing == []


def test_every_file_of_the_suite_is_in_the_suite() -> None:
    suite = importlib.import_module("stube.testing.suite")
    tests = {name for name in SOURCES if name.startswith("stube.testing.suite.test_")}
    collected = {getattr(suite, name).__module__ for name in suite.__all__ if name.startswith("test_")}
    assert collected == tests


def test_importing_stube_loads_nothing_heavy() -> None:
    program = (
        "import json, sys; before = set(sys.modules); import stube; print(json.dumps([*set(sys.modules) - before]))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    loaded = sorted(json.loads(done.stdout))
    assert "stube._registry" in loaded
    ours = ("stube_backends", "stube.asgi", "stube.testing", "stube.demo", "stube.cli")
    theirs = ("pytest", "sortedcontainers", "typing_extensions")
    assert [name for name in loaded if _within(name, *HEAVY, *ours, *theirs)] == []
