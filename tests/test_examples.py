"""The example of a backend by an outsider: small, built on public names only, equal to its page, and conforming.

A step of CI shows that it also conforms when it is installed next to stube's wheel and selected by name.
"""

from __future__ import annotations

import ast
import doctest
import importlib
import os
import subprocess
import sys
import threading
import tomllib
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import stube
import stube_backends.engine
from stube.testing import suite
from stube.testing._harness import watchdog
from tests.test_architecture import Module, _lines_of_code
from tests.test_docs import blocks_of

ROOT = Path(__file__).parents[1]
EXAMPLE = ROOT / "examples" / "acme_stube"
GLOBEX = ROOT / "examples" / "globex_stube"
BACKENDS = {"acme": "acme_stube:AcmeRegistry", "globex": "globex_stube:GlobexRegistry"}
SOURCE = EXAMPLE / "acme_stube" / "__init__.py"
PAGE = ROOT / "docs" / "write-a-backend.md"
MOST_LINES = 100  # of code
PATIENCE = 120.0  # seconds for a command that takes ten
PUBLIC = {"stube": stube.__all__, "stube_backends.engine": stube_backends.engine.__all__, "stube.testing.suite": ["*"]}


def _parts(path: str) -> list[str]:
    """Return the parts of a file of the example that the page shows, in the page's order."""
    wanted = f"part-of=examples/acme_stube/{path}"
    return [block.text for block in blocks_of(PAGE.read_text(encoding="utf-8")) if block.option == wanted]


def _solid(text: str) -> list[str]:
    return [line for line in text.splitlines() if line.strip()]


def _private(source: str) -> Iterator[str]:
    """Yield the private modules and names of stube that a module uses."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
            yield from (name for name in names if name.startswith("stube") and name != "stube")
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("stube"):
            allowed = PUBLIC.get(node.module or "", ())
            yield from (f"{node.module}.{alias.name}" for alias in node.names if alias.name not in allowed)
        elif isinstance(node, ast.Attribute) and ast.unparse(node.value) == "stube" and node.attr not in stube.__all__:
            yield f"stube.{node.attr}"


@pytest.fixture
def acme(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """The module of the first example, imported from its sources."""
    yield from _imported("acme", monkeypatch)


@pytest.fixture(params=BACKENDS)
def example(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """The module of each example of a backend, imported from its sources."""
    yield from _imported(request.param, monkeypatch)


def _imported(name: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    monkeypatch.syspath_prepend(str(ROOT / "examples" / f"{name}_stube"))
    yield importlib.import_module(f"{name}_stube")
    for module in [module for module in sys.modules if module.partition(".")[0] == f"{name}_stube"]:
        del sys.modules[module]


def test_the_example_is_less_than_a_hundred_lines() -> None:
    """Fault: the engine lacks something that every backend needs, so each outsider writes it anew."""
    source = SOURCE.read_text(encoding="utf-8")
    assert _lines_of_code(Module("acme_stube", ast.parse(source), source)) <= MOST_LINES


@pytest.mark.parametrize(
    "path", sorted(path.relative_to(ROOT) for folder in (EXAMPLE, GLOBEX) for path in folder.rglob("*.py")), ids=str
)
def test_the_example_stands_on_public_names(path: Path) -> None:
    """Fault: there is no public way, so the model for outsiders uses private names, which may change at any time."""
    assert list(_private((ROOT / path).read_text(encoding="utf-8"))) == []


@pytest.mark.parametrize("path", sorted(path.relative_to(ROOT) for path in GLOBEX.rglob("*.py")), ids=str)
def test_globex_uses_nothing_of_the_engine(path: Path) -> None:
    """Fault: the second example shows no other style, because the engine does its work."""
    assert "stube_backends" not in (ROOT / path).read_text(encoding="utf-8")


@pytest.mark.parametrize(
    "source",
    [
        "import stube_backends.memory",
        "from stube._factory import GROUP",
        "from stube_backends.engine._core import Core",
        "from stube_backends.engine import _core",
        "from stube_backends.memory import MemoryRegistry",
        "import stube\nstube._errors",
    ],
)
def test_a_private_name_is_found(source: str) -> None:
    """Fault: the test above finds nothing, so it always passes."""
    assert list(_private(source))


def test_the_entry_point_is_the_factory(example: ModuleType) -> None:
    """Fault: the name that is installed leads to no function, or to one whose options cannot be read."""
    name = example.__name__.removesuffix("_stube")
    folder = ROOT / "examples" / example.__name__
    project = tomllib.loads((folder / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert project["entry-points"] == {"stube.backends": {name: BACKENDS[name]}}
    made_by = getattr(example, BACKENDS[name].partition(":")[2])
    assert made_by.__module__ == example.__name__
    with stube.create_registry(BACKENDS[name], max_pending=1) as one:
        assert isinstance(one, made_by)
    assert (folder / example.__name__ / "py.typed").read_text(encoding="utf-8") == ""


def test_the_examples_in_its_docstrings_run(example: ModuleType) -> None:
    """Fault: the first thing that a reader tries does not work."""
    results = doctest.testmod(example)
    assert results.attempted > 0
    assert results.failed == 0


def test_the_parts_on_the_page_make_up_the_example() -> None:
    """Fault: the page omits a part of the module, shows one twice, or shows the parts in another order."""
    for path in ("pyproject.toml", "acme_stube/__init__.py", "tests/test_acme.py"):
        whole = (EXAMPLE / path).read_text(encoding="utf-8")
        assert _solid("".join(_parts(path))) == _solid(whole), path
    assert "py.typed" in PAGE.read_text(encoding="utf-8")


@pytest.mark.parametrize("file", [EXAMPLE / "tests" / "test_acme.py", GLOBEX / "tests" / "test_globex.py"])
def test_the_whole_test_file_of_an_outsider_is_an_import_and_a_fixture(file: Path) -> None:
    """Fault: the suite needs more from an author than a name, so that each author writes other tests."""
    statements = ast.parse(file.read_text(encoding="utf-8")).body
    kinds = [type(statement) for statement in statements]
    assert kinds == [ast.Expr, ast.Import, ast.ImportFrom, ast.FunctionDef]


def _run(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("STUBE_", "PYTEST_"))}
    environment["PYTHONPATH"] = str(EXAMPLE)
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=folder, env=environment, capture_output=True, text=True, timeout=PATIENCE, check=False,
    )  # fmt: skip


def test_the_example_passes_a_selection_of_the_suite(tmp_path: Path) -> None:
    """Fault: a change of the engine keeps the shipped backends correct and breaks those of other authors.

    Runs in an empty folder, with the example's own test file. The selected tests concern what the example adds to the
    engine: how its delivery thread is started, woken and ended, and that this thread delivers.
    """
    (tmp_path / "test_acme.py").write_bytes((EXAMPLE / "tests" / "test_acme.py").read_bytes())
    names = {
        "test_no_timer_begins_early_and_none_is_lost",
        "test_a_new_earliest_timer_wakes_the_scheduler",
        "test_a_schedule_just_before_the_scheduler_sleeps_is_not_lost",
        "test_an_idle_registry_uses_no_cpu",
        "test_an_operation_that_cannot_start_a_thread_changes_nothing",
        "test_close_drops_what_has_not_begun_and_is_idempotent",
        "test_close_waits_for_a_running_delivery_within_its_timeout",
        "test_close_inside_a_delivery_does_not_wait_for_itself",
        "test_close_ends_the_threads",
        "test_an_unreferenced_registry_with_nothing_pending_is_collected",
        "test_an_unreferenced_registry_still_delivers_its_timers",
        "test_a_program_that_does_not_close_exits_promptly_and_silently",
        "test_a_forked_child_has_an_empty_usable_registry",
        "test_a_child_forked_in_a_handler_delivers_no_event_of_its_parent",
        "test_the_first_operation_may_be_interrupted",
        "test_a_handler_may_call_every_operation",
    }
    assert names <= set(suite.__all__)
    done = _run(
        tmp_path, "-m", "pytest", "-q", "-W", "error", "-p", "no:cacheprovider",
        "--stube-backend=acme_stube:AcmeRegistry", *(f"test_acme.py::{name}" for name in sorted(names)),
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert "skipped" not in done.stdout


# Behaviour that the suite cannot know: the option `executor`, and a start that an asynchronous exception interrupts.


def test_the_executor_is_the_hosts_and_the_close_shuts_it_down(acme: ModuleType) -> None:
    """Fault: the option is accepted but not used, two deliveries run in a pool at the same time, or threads stay."""
    threads = threading.active_count()
    running, most, seen = 0, 0, set()

    def dispatch(cid: str, event: stube.Event) -> None:
        nonlocal running, most
        running += 1
        most = max(most, running)
        seen.add(threading.current_thread().name)
        running -= 1

    with acme.AcmeRegistry(executor=lambda: ThreadPoolExecutor(4, thread_name_prefix="host")) as registry:
        assert threading.active_count() == threads
        registry.install_dispatch(dispatch)
        for number in range(200):
            registry.schedule_event(cid=f"c{number}", instance_id="main", delay_ms=number % 3, event="tick")
        assert registry.join(30)
    assert seen == {"host_0"}
    assert most == 1
    assert threading.active_count() == threads


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
def test_a_forked_child_makes_an_executor_of_its_own(tmp_path: Path) -> None:
    """Fault: the child submits to the parent's pool, whose threads do not exist in the child, and never returns.

    Runs in a process of its own, because the process of the tests may have threads.
    """
    program = """
import os
from concurrent.futures import ThreadPoolExecutor
from warnings import filterwarnings
import acme_stube
filterwarnings("ignore", category=DeprecationWarning)  # this test forks while threads are running, on purpose
made = []
registry = acme_stube.AcmeRegistry(executor=lambda: made.append(os.getpid()) or ThreadPoolExecutor(1))
registry.install_dispatch(lambda cid, event: made.append(event.name))
registry.schedule_event(cid="c1", instance_id="main", delay_ms=0, event="of the parent")
assert registry.settle(30)
child = os.fork()
if child == 0:
    registry.schedule_event(cid="c1", instance_id="main", delay_ms=0, event="of the child")
    whole = registry.settle(30) and made[2:] == [os.getpid(), "of the child"] and registry.close(30)
    os._exit(0 if whole else 1)
assert os.waitpid(child, 0)[1] == 0, made
assert made == [os.getpid(), "of the parent"], made
assert registry.close(30)
"""
    done = _run(tmp_path, "-c", program)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


class Interrupted(Exception):  # noqa: N818 - stands for the exception of a signal handler
    """An asynchronous exception in the middle of a start."""


@pytest.mark.parametrize("when", ["before", "after"])
def test_interrupted_start_changes_nothing_and_the_next_one_serves(acme: ModuleType, when: str) -> None:
    """Fault: after the first operation raised, later ones assume that a delivery thread runs; or two tasks deliver.

    The start is interrupted before the task is submitted, or after, when the task already runs.
    """
    tasks: list[Future[object]] = []

    class Flaky(acme.DaemonExecutor):  # type: ignore[misc, name-defined]
        def submit(self, *arguments: Any) -> Future[Any]:
            if when == "before" and not tasks:
                tasks.append(Future())
                raise Interrupted
            task: Future[Any] = super().submit(*arguments)
            tasks.append(task)
            if len(tasks) == 1:
                raise Interrupted
            return task

    seen: list[str] = []
    with acme.AcmeRegistry(executor=Flaky) as registry:
        registry.install_dispatch(lambda cid, event: seen.append(event.name))
        with pytest.raises(Interrupted):
            registry.schedule_event(cid="c1", instance_id="main", delay_ms=0, event="lost")
        assert registry.stats() == stube.Stats()
        assert when == "before" or tasks[0].result(30) is None
        for number in range(20):
            registry.schedule_event(cid="c1", instance_id="main", delay_ms=0, event=str(number))
        assert registry.settle(30)
        assert seen == [str(number) for number in range(20)]
        assert len(tasks) == 2
        assert not tasks[1].done()
    assert tasks[1].result(0) is None


def test_task_of_an_interrupted_start_never_delivers_beside_another(acme: ModuleType) -> None:
    """Fault: the first task has just seen that it is still wanted, so two tasks deliver for one round (G1).

    Real time: if two tasks delivered, the second delivery would begin within microseconds; the test allows 0.2 s.
    """
    looking, released, second = (threading.Event() for _ in range(3))
    tasks: list[Future[object]] = []
    beside: list[bool] = []

    def clock() -> int:
        if len(tasks) == 0 and threading.current_thread().name == "acme":
            looking.set()
            assert released.wait(30)
        return stube.monotonic_ns()

    class Flaky(acme.DaemonExecutor):  # type: ignore[misc, name-defined]
        def submit(self, *arguments: Any) -> Future[Any]:
            task: Future[Any] = super().submit(*arguments)
            if not tasks:
                assert looking.wait(30)
                tasks.append(task)
                raise Interrupted
            return task

    def dispatch(cid: str, event: stube.Event) -> None:
        if event.name == "first":
            beside.append(second.wait(0.2))
        else:
            second.set()

    with acme.AcmeRegistry(executor=Flaky, clock=clock) as registry:
        registry.install_dispatch(dispatch)
        with pytest.raises(Interrupted):
            registry.schedule_event(cid="c1", instance_id="main", delay_ms=0, event="lost")
        for name in ("first", "second"):
            registry.schedule_event(cid="c1", instance_id="main", delay_ms=0, event=name)
        released.set()
        assert registry.settle(30)
    assert beside == [False]
    assert second.is_set()


def test_a_close_in_the_middle_of_a_start_does_not_wait(acme: ModuleType) -> None:
    """Fault: a signal handler closes the registry within a submit, and deadlocks on the executor's own lock."""

    lock = threading.Lock()  # a ThreadPoolExecutor has such a lock

    class Locking(acme.DaemonExecutor):  # type: ignore[misc, name-defined]
        def submit(self, *arguments: Any) -> Future[Any]:
            with lock:
                assert registry.close(30)
                task: Future[Any] = super().submit(*arguments)
                return task

        def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
            with lock:
                super().shutdown(wait)

    registry = acme.AcmeRegistry(executor=Locking)
    with watchdog(30), pytest.raises(stube.RegistryClosed):
        registry.schedule_event(cid="c1", instance_id="main", delay_ms=0, event="tick")
    assert registry.close(30)
    assert registry.stats() == stube.Stats()
