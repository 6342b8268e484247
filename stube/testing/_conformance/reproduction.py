"""The shortest program that shows how a guarantee is broken, as a file to run and to change.

A test of the suite becomes a file with the test and what it uses of its own file, on the backend that failed. A random
program becomes itself, because the comparison with the model has made it small. Each file is run once. If a program
passes, because the fault needs luck, the file of its test takes its place.
"""

from __future__ import annotations

import ast
import inspect
import subprocess
import sys
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, Final

from stube._secrets import shown
from stube.testing._conformance.outcomes import Story
from stube.testing._conformance.report import Report

__all__ = ["write_reproductions"]

_SECONDS: Final = 60.0  # for one run of a file
_FIND_BACKEND: Final = "sys.path.append(os.getcwd())  # where the module of the backend may be"
_FIXTURES: Final = "from stube.testing.suite._fixtures import make_run, run  # fixtures"
_IMPORTS: Final = ("import os", "import sys", "import pytest")


def write_reproductions(
    folder: Path, report: Report, spec: str, environment: Mapping[str, str]
) -> Iterator[tuple[str, Path, bool]]:
    """Write `reproduce_G5.py` and the like for each broken guarantee.

    Args:
        folder: an existing folder; files of these names in it are replaced.
        report: of the backend.
        spec: the backend, as `create_registry` takes it. A password in it is not written.
        environment: the variables that say which loop serves the backend.

    Yields:
        The guarantee, the file, and whether the file failed when it was run.
    """
    promised = report["capabilities"]
    served = "coroutine_dispatch" in promised and "virtual_time" not in promised
    for number, one in report["guarantees"].items():
        stories = [test["story"] for test in report["tests"] if test["story"] is not None and number in test["blamed"]]
        if not stories:
            continue
        file = folder / f"reproduce_{number}.py"
        title = f"{number}, {one['title']}, is broken by the backend {report['backend']}."
        texts = sorted(
            (text for story in stories for text in _texts(title, story, spec, environment, served=served)), key=len
        )
        fails = False
        for text in texts[:2]:
            file.write_text(text, encoding="utf-8", errors="backslashreplace")
            fails = _fails(file)
            if fails:
                break
        yield number, file, fails


def _texts(title: str, story: Story, spec: str, environment: Mapping[str, str], *, served: bool) -> Iterator[str]:
    """Yield the files that may show a story. A program runs no event loop for a backend that must be served by one."""
    import stube.testing.suite as suite

    heading = [title, "", *textwrap.wrap(f"{story['promise']}.", 110)]
    if story["program"] and not served:
        program = f"import os\nimport sys\n\n{_FIND_BACKEND}\n\n{story['program']}"
        yield _file([*heading, "", "Run it with Python; it fails at its last statement."], program)
    name = story["test"].partition("[")[0]
    function = inspect.unwrap(getattr(suite, name))
    module = sys.modules[function.__module__]
    finding = [f"    {line}" for line in story["finding"].splitlines()[:10]]
    yield _file(
        [*heading, "", "It was:", *finding, "", "Run it with Python or with pytest."],
        "\n".join([_test_source(module, name), "", "", *_running(story["test"], spec, environment)]),
    )


def _file(heading: Sequence[str], body: str) -> str:
    # A finding may hold anything, so the heading is made of comments.
    return "\n".join([*(f"# {line}".rstrip() for line in heading), "", body])


def _running(test: str, spec: str, environment: Mapping[str, str]) -> Iterator[str]:
    """Yield the lines that name the backend and run the test."""
    named = repr(spec) if shown(spec) == spec else 'os.environ["STUBE_BACKEND"]  # the spec, which has a password'
    yield from ("@pytest.fixture", "def stube_backend():", f"    return {named}", "", "")
    yield 'if __name__ == "__main__":'
    for name, value in environment.items():
        yield f"    os.environ[{name!r}] = {value!r}"
    yield f"    {_FIND_BACKEND}"
    yield f"    test = __file__ + {'::' + test!r}"
    yield '    options = ["-q", "-c", os.devnull, "--rootdir", os.path.dirname(os.path.abspath(__file__))]'
    yield '    plugins = ["-p", "no:cacheprovider", "-p", "stube.testing.plugin"]'
    yield "    sys.exit(pytest.main([test, *options, *plugins]))"
    yield ""


def _fails(file: Path) -> bool:
    """Run a file; return whether it failed. One that hangs fails too."""
    try:
        done = subprocess.run(
            [sys.executable, str(file)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            timeout=_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return True
    return done.returncode != 0


# The source of a test


def _test_source(module: ModuleType, name: str) -> str:
    """Return a test with everything of its file that it uses, and the imports for that."""
    source = inspect.getsource(module)
    tree = ast.parse(source)
    defined: dict[str, ast.stmt] = {}
    imported: dict[str, ast.Import | ast.ImportFrom] = {}
    for node in tree.body:
        for each in _names_bound(node):
            if isinstance(node, (ast.Import, ast.ImportFrom)):
                imported[each] = node
            else:
                defined[each] = node
    wanted, queue = {name}, [name]
    while queue:
        for part in ast.walk(defined[queue.pop()]):
            if isinstance(part, ast.Name) and part.id in defined and part.id not in wanted:
                wanted.add(part.id)
                queue.append(part.id)
    kept = [node for node in tree.body if any(defined.get(each) is node for each in wanted)]
    used = {node.id for part in kept for node in ast.walk(part) if isinstance(node, ast.Name)}
    imports = _imports({each: imported[each] for each in sorted(used & imported.keys())})
    parts = ["\n".join(["from __future__ import annotations", "", *imports, "", _FIXTURES])]
    parts += [_source_of(source, node) for node in kept]
    return "\n\n\n".join(parts)


def _names_bound(node: ast.stmt) -> Iterator[str]:
    match node:
        case ast.Import() | ast.ImportFrom():
            yield from (alias.asname or alias.name.partition(".")[0] for alias in node.names)
        case ast.FunctionDef() | ast.AsyncFunctionDef() | ast.ClassDef():
            yield node.name
        case ast.Assign():
            yield from (each.id for target in node.targets for each in ast.walk(target) if isinstance(each, ast.Name))
        case ast.AnnAssign(target=ast.Name(id=name)):
            yield name


def _imports(imported: Mapping[str, ast.Import | ast.ImportFrom]) -> list[str]:
    """Return the lines that import these names, each by the statement that imports it in the suite."""
    whole: set[str] = set(_IMPORTS)
    parts: dict[str, list[str]] = {}
    for name, node in imported.items():
        alias = next(alias for alias in node.names if (alias.asname or alias.name.partition(".")[0]) == name)
        part = ast.unparse(alias)
        if isinstance(node, ast.Import):
            whole.add(f"import {part}")
        else:
            parts.setdefault(str(node.module), []).append(part)
    return [*sorted(whole), *(f"from {module} import {', '.join(names)}" for module, names in sorted(parts.items()))]


def _source_of(source: str, node: Any) -> str:
    first = min([node.lineno, *(each.lineno for each in getattr(node, "decorator_list", ()))])
    return "\n".join(source.splitlines()[first - 1 : node.end_lineno])
