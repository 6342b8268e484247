"""Run pytest on changed copies of the sources, in forks of a process that has loaded it already.

Loading pytest and what the tests import takes a second; a fork takes milliseconds. `tools/mutants.py` forks itself. A
process that has loaded stube cannot do so, because its forks would test that stube instead of the copy. It makes a
`Server`, which runs this file as a program and sends it requests over a pipe. POSIX only.
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from types import TracebackType
from typing import Any, Final, NamedTuple, Self

ROOT: Final = Path(__file__).resolve().parents[1]
MEMORY: Final = 4 << 30  # bytes of address space; a changed copy that allocates without end stops here
STACK: Final = 1 << 20  # bytes of it for each thread, because some tests of a sharded registry have hundreds


def preload() -> None:
    """Load what every run needs and no copy changes. Not stube, which each fork loads out of its copy."""
    for module in ("pytest", "hypothesis", "asyncio", "concurrent.futures"):
        import_module(module)


class Tree:
    """A copy of the sources and the tests, in which files can be changed and restored."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._written = 0

    @classmethod
    def copied(cls, folder: Path) -> Tree:
        """Make the copy; what the folder held before is gone."""
        shutil.rmtree(folder, ignore_errors=True)
        for part in ("stube", "backends", "tests"):
            shutil.copytree(ROOT / part, folder / part, ignore=shutil.ignore_patterns("__pycache__"))
        for file in ("pyproject.toml", "conftest.py"):
            shutil.copy2(ROOT / file, folder)
        return cls(folder)

    @property
    def output(self) -> Path:
        """The file with everything that the latest run has printed."""
        return self.folder / "output.txt"

    def write(self, file: Path, text: str) -> None:
        """Change a file; its path is relative to the sources."""
        target = self.folder / file
        target.write_text(text, encoding="utf-8")
        # Python takes a compiled file for fresh by size and second, so each change gets a second of its own.
        self._written += 1
        os.utime(target, (self._written, self._written))

    def restore(self, file: Path) -> None:
        """Put a file back as it is in the sources."""
        shutil.copy2(ROOT / file, self.folder / file)

    def start(self, body: Callable[[], Any]) -> Running:
        """Call a function in a fork of this process that sees the copy; its result is JSON."""
        report = self.folder / "report.json"
        report.unlink(missing_ok=True)
        sys.stdout.flush()
        pid = os.fork()
        if pid == 0:
            try:
                self._enter()
                report.write_text(json.dumps(body()))
            except BaseException:  # noqa: BLE001 - this process is a copy, which must end here whatever happens
                traceback.print_exc()
            finally:
                sys.stdout.flush()
                os._exit(0)
        return Running(pid, report, time.monotonic())

    def _enter(self) -> None:
        os.setsid()
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
        threading.stack_size(STACK)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        output = os.open(self.output, os.O_CREAT | os.O_TRUNC | os.O_WRONLY)
        for stream in (1, 2):
            os.dup2(output, stream)
        os.chdir(self.folder)
        places = [str(self.folder), str(self.folder / "backends")]
        sys.path[:0] = places
        os.environ["PYTHONPATH"] = os.pathsep.join(places)
        # The first run compiles the copy for all later ones, whatever the user has set.
        sys.dont_write_bytecode = False


class Running(NamedTuple):
    """A function that runs in a fork."""

    pid: int
    report: Path
    since: float

    def poll(self, limit: float) -> Ended | None:
        """Return how it ended; None while it runs. It is killed after `limit` seconds."""
        hangs = time.monotonic() - self.since > limit
        if not hangs and os.waitpid(self.pid, os.WNOHANG)[0] == 0:
            return None
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)  # it, or what it has left behind
        if hangs:
            os.waitpid(self.pid, 0)
        finished = not hangs and self.report.exists()
        return Ended(hangs, json.loads(self.report.read_text()) if finished else None)

    def wait(self, limit: float) -> Ended:
        """Wait until it has ended, `limit` seconds at most."""
        while (ended := self.poll(limit)) is None:
            time.sleep(0.01)
        return ended


class Ended(NamedTuple):
    """How a function in a fork has ended."""

    timed_out: bool
    result: Any
    """None if it returned nothing, because it raised or the process died."""


def run_pytest(arguments: Sequence[str], plugins: Sequence[object] = ()) -> int:
    """Run pytest in a fork."""
    pytest: Any = import_module("pytest")
    # What is loaded before the fork cannot have its assertions rewritten, and does not need it.
    options = ["-q", "-p", "no:cacheprovider", "-W", "ignore::pytest.PytestAssertRewriteWarning"]
    return int(pytest.main([*options, *arguments], plugins=list(plugins)))


class Answering:
    """A process that answers requests, each a line of JSON, until it is left.

    Args:
        command: what it runs.
        more: further arguments of `subprocess.Popen`.
    """

    def __init__(self, command: Sequence[str], **more: Any) -> None:
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, **more)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait()
        self._process.stdout.close()

    def ask(self, request: Mapping[str, object]) -> Any:
        """Send a request and wait for the answer."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        print(json.dumps(request), file=self._process.stdin, flush=True)
        return json.loads(self._process.stdout.readline())


class Server(Answering):
    """A process of its own that has pytest loaded, and a tree for its forks.

    >>> with Server(folder) as server:  # doctest: +SKIP
    ...     server.run({"stube/_clock.py": "..."}, ["tests/test_factory.py"], {}, limit=60)
    """

    def __init__(self, folder: Path) -> None:
        self.tree = Tree.copied(folder)
        super().__init__([sys.executable, __file__, str(folder)])

    def run(
        self, changes: Mapping[Path, str], arguments: Sequence[str], environment: Mapping[str, str], *, limit: float
    ) -> Ended:
        """Run pytest on the tree with these files changed; its exit code is the result."""
        for file, text in changes.items():
            self.tree.write(file, text)
        try:
            request = {"arguments": list(arguments), "environment": dict(environment), "limit": limit}
            return Ended(*self.ask(request))
        finally:
            for file in changes:
                self.tree.restore(file)


def serve(folder: Path) -> None:
    """Answer the requests of a `Server` until it closes the pipe."""
    preload()
    tree = Tree(folder)
    for line in sys.stdin:
        request = json.loads(line)

        def body(request: Any = request) -> int:
            os.environ.update(request["environment"])
            return run_pytest(request["arguments"])

        print(json.dumps(tree.start(body).wait(request["limit"])), flush=True)


if __name__ == "__main__":
    serve(Path(sys.argv[1]))
