"""Every example runs: the fenced blocks of README.md and docs/*.md, and the examples in docstrings.

The text after a fence's three backticks says what the block is:

- `python`: runs. Blocks of one file share a namespace, in order, and one scratch folder, which is on `sys.path`.
- `python file=NAME.py`: is written into the scratch folder, so that a later block can import or run it.
- `python no-run: REASON`: does not run, for a reason that the reader of the source can check.
- `pycon`, or `python` with a `>>>` prompt: a doctest in the same namespace (`...` in the output stands for anything).
- `console run`: each line `$ COMMAND` runs in the scratch folder and must succeed; the lines that follow it, up to the
  next command, must be its output. `stube` and `python` are this environment's; `NAME=VALUE` may precede them.
- `console run code=N`: the same, but each command must end with that code.
- `LANGUAGE part-of=examples/NAME/PATH`: is, line by line, a part of that file of the repository. The file is copied to
  PATH in the scratch folder, so that a later block can import or run it.
- anything else is text.

A file or module without an example makes no test.
"""

from __future__ import annotations

import ast
import doctest
import importlib
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = {"stube": ROOT / "stube", "stube_backends": ROOT / "backends" / "stube_backends"}
PATIENCE = 60.0  # seconds for one command
FLAGS = doctest.ELLIPSIS

_FENCE = re.compile(r"^(?P<indent> *)(?P<ticks>`{3,})(?P<info>[^`]*)$")
_PART = re.compile(r"part-of=(?P<file>examples/\w+/(?P<path>[\w./]+))")
_CODE = re.compile(r"run(?: code=(?P<code>\d+))?")
_ASSIGNMENT = re.compile(r"^([A-Za-z_][A-Za-z0-9_]*)=(.*)$", re.DOTALL)


class DocumentError(AssertionError):
    """A block cannot be run as it is marked, or does not do what the document says."""


@dataclass(frozen=True)
class Block:
    """A fenced block: its info string, its text, and the line of the file on which the text begins."""

    info: str
    text: str
    line: int

    @property
    def language(self) -> str:
        return self.info.partition(" ")[0]

    @property
    def option(self) -> str:
        return self.info.partition(" ")[2].strip()

    @property
    def interactive(self) -> bool:
        return self.language == "pycon" or re.search(r"^>>> ", self.text, re.MULTILINE) is not None


def blocks_of(text: str) -> Iterator[Block]:
    """Yield the fenced blocks of a Markdown text, in order; a block in a list item is unindented."""
    lines = iter(enumerate(text.splitlines(), start=1))
    for number, line in lines:
        opening = _FENCE.match(line)
        if opening is None:
            continue
        indent = len(opening["indent"])
        inside = []
        for _, content in lines:
            closing = _FENCE.match(content)
            if closing is not None and len(closing["ticks"]) >= len(opening["ticks"]) and not closing["info"].strip():
                break
            inside.append(content[indent:] if content[:indent].isspace() else content)
        else:
            raise DocumentError(f"line {number}: the fence is never closed")
        yield Block(opening["info"].strip(), "".join(f"{one}\n" for one in inside), number + 1)


def runs(block: Block) -> bool:
    """Return True if a block is an example; a block that is marked as none must give a reason."""
    if block.option.startswith("part-of="):
        return True
    if block.language in {"python", "pycon"}:
        if block.option.startswith("no-run"):
            if not block.option.partition(":")[2].strip():
                raise DocumentError(f"line {block.line}: say why the block does not run: `python no-run: REASON`")
            return False
        if block.option and not re.fullmatch(r"file=[\w.]+", block.option):
            raise DocumentError(f"line {block.line}: {block.option!r} means nothing behind `{block.language}`")
        return True
    if block.language == "console" and block.option and not _CODE.fullmatch(block.option):
        raise DocumentError(f"line {block.line}: {block.option!r} means nothing behind `console`")
    return block.language == "console" and block.option != ""


class Document:
    """Runs the blocks of one file in order.

    Args:
        path: the file, for messages.
        scratch: the folder in which the blocks run.
    """

    def __init__(self, path: Path, scratch: Path) -> None:
        self._path = path
        self._scratch = scratch
        self.module = ModuleType(re.sub(r"\W", "_", path.stem) + "_examples")

    def run(self, block: Block) -> None:
        if block.option.startswith("part-of="):
            self._part(block)
        elif block.language == "console":
            marked = _CODE.fullmatch(block.option)
            ending = int((marked and marked["code"]) or 0)
            for line, command, wanted in commands_of(block):
                self._command(line, command, wanted, ending)
        elif block.option.startswith("file="):
            (self._scratch / block.option.removeprefix("file=")).write_text(block.text, encoding="utf-8")
            importlib.invalidate_caches()
        elif block.interactive:
            self._doctest(block)
        else:
            # The empty lines in front make a traceback name the file's own line.
            code = compile("\n" * (block.line - 1) + block.text, str(self._path), "exec", dont_inherit=True)
            exec(code, vars(self.module))

    def _doctest(self, block: Block) -> None:
        name = f"{self._path.name}, line {block.line}"
        test = doctest.DocTestParser().get_doctest(block.text, vars(self.module), name, str(self._path), block.line - 1)
        test.globs = vars(self.module)  # not the copy, because the next block uses the same namespace
        _run_doctest(test, clear=False)

    def _part(self, block: Block) -> None:
        marked = _PART.fullmatch(block.option)
        if marked is None or not (ROOT / marked["file"]).is_file():
            raise DocumentError(f"line {block.line}: {block.option!r} names no file under examples/NAME/")
        whole = (ROOT / marked["file"]).read_text(encoding="utf-8")
        if not block.text.strip() or f"\n{block.text}" not in f"\n{whole}":
            raise DocumentError(f"line {block.line}: this is no part of {marked['file']}")
        copy = self._scratch / marked["path"]
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_text(whole, encoding="utf-8")
        importlib.invalidate_caches()

    def _command(self, line: int, command: str, wanted: str, ending: int) -> None:
        words = shlex.split(command)
        environment = {name: value for name, value in os.environ.items() if not name.startswith(("STUBE_", "PYTEST_"))}
        while words and (assignment := _ASSIGNMENT.match(words[0])):
            environment[assignment[1]] = assignment[2]
            del words[0]
        if words[:1] == ["stube"]:
            words[:1] = ["python", "-m", "stube"]
        if words[:1] != ["python"]:
            raise DocumentError(f"line {line}: only `stube` and `python` can be run here, not `{command}`")
        done = subprocess.run(
            [sys.executable, *words[1:]],
            cwd=self._scratch,
            env={**environment, "COLUMNS": "80"},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=PATIENCE,
            check=False,
        )
        if done.returncode != ending:
            raise DocumentError(f"line {line}: `{command}` ended with code {done.returncode}:\n{done.stdout}")
        if wanted and not doctest.OutputChecker().check_output(_trimmed(wanted), _trimmed(done.stdout), FLAGS):
            raise DocumentError(f"line {line}: `{command}` should print\n{wanted}\nand prints\n{done.stdout}")


def commands_of(block: Block) -> Iterator[tuple[int, str, str]]:
    """Yield the commands of a console block: the line, the command, and its expected output."""
    lines = block.text.splitlines(keepends=True)
    starts = [number for number, line in enumerate(lines) if line.startswith("$ ")]
    if not starts or starts[0] != 0:
        raise DocumentError(f"line {block.line}: a console block that runs begins with `$ COMMAND`")
    for start, end in zip(starts, [*starts[1:], len(lines)], strict=True):
        yield block.line + start, lines[start][2:].strip(), "".join(lines[start + 1 : end])


def _trimmed(output: str) -> str:
    return "".join(f"{line.rstrip()}\n" for line in output.strip().splitlines())


def _run_doctest(test: doctest.DocTest, *, clear: bool) -> None:
    output: list[str] = []
    runner = doctest.DocTestRunner(optionflags=FLAGS)
    runner.run(test, out=output.append, clear_globs=clear)
    if runner.failures:
        raise DocumentError("".join(output))


@pytest.fixture
def scratch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty folder in which the examples run; the modules that they import from it are unloaded afterwards."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delenv("STUBE_REGISTRY", raising=False)
    yield tmp_path
    for name, module in list(sys.modules.items()):
        if str(getattr(module, "__file__", None)).startswith(str(tmp_path)):
            del sys.modules[name]


def run_document(path: Path, scratch: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    document = Document(path, scratch)
    # As a module, because dataclasses look up the module that a class's `__module__` names.
    monkeypatch.setitem(sys.modules, document.module.__name__, document.module)
    for block in blocks_of(path.read_text(encoding="utf-8")):
        if runs(block):
            document.run(block)


def _documents() -> list[Path]:
    found = [ROOT / "README.md", *sorted((ROOT / "docs").glob("**/*.md"))]
    return [path for path in found if path.exists() and "```" in path.read_text(encoding="utf-8")]


def _modules() -> list[str]:
    """Return the modules of the packages that have an example in a docstring. Imports none of them."""
    found = []
    for package, folder in PACKAGES.items():
        for path in sorted(folder.rglob("*.py")):
            nodes = ast.walk(ast.parse(path.read_text(encoding="utf-8")))
            kinds = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
            if any(">>> " in (ast.get_docstring(node) or "") for node in nodes if isinstance(node, kinds)):
                parts = path.relative_to(folder).with_suffix("").parts
                found.append(".".join((package, *(part for part in parts if part != "__init__"))))
    return found


@pytest.mark.parametrize("path", _documents(), ids=lambda path: str(path.relative_to(ROOT)))
def test_the_examples_of_the_document_run(path: Path, scratch: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run_document(path, scratch, monkeypatch)


@pytest.mark.parametrize("name", _modules())
def test_the_examples_in_docstrings_run(name: str, scratch: Path) -> None:
    module = importlib.import_module(name)
    tests = [test for test in doctest.DocTestFinder().find(module) if test.examples]
    assert tests, f"an example of {name} is in a place where doctest does not find it"
    for test in tests:
        _run_doctest(test, clear=True)


# The reader itself


def _write(folder: Path, text: str) -> Path:
    path = folder / "sample.md"
    path.write_text(text, encoding="utf-8")
    return path


GOOD = """
Blocks share a namespace, also a doctest's.

```python
from dataclasses import dataclass
@dataclass
class Point:
    x: "int"
```
1. In a list:
   ```pycon
   >>> y = Point(1).x
   >>> Point(2)
   Point(x=2)
   ```
```python file=beside.py
z = 5
```
```python
import beside
assert (y, beside.z) == (1, 5)
```
```python no-run: there is no such module
import nothing_like_it
```
```text
$ anything else is text
```
````markdown
```python
1 / 0
```
````
```console
$ stube is-not-run-without-being-marked
```
```toml part-of=examples/acme_stube/pyproject.toml
[project.entry-points."stube.backends"]
acme = "acme_stube:AcmeRegistry"
```
```python
import tomllib
with open("pyproject.toml", "rb") as file:
    assert tomllib.load(file)["project"]["name"] == "acme-stube"
```
```console run code=3
$ python -c "print(4); exit(3)"
4
```
```console run
$ python -c "import beside; print(beside.z)"
5
$ STUBE_X='a b' python -c "import os; print(os.environ['STUBE_X']); print('and', 'more')"
a b
...more
$ stube --version
stube ...
```
"""

WRONG = {
    "an error": ("text\n\n```python\nx = 1\n1 / 0\n```\n", ZeroDivisionError, "division by zero"),
    "a doctest": ("```pycon\n>>> 1 + 1\n3\n```\n", DocumentError, 'File ".*sample.md", line 2'),
    "a doctest in python": ("```python\n>>> 1 + 1\n3\n```\n", DocumentError, "Expected:\n    3\nGot:\n    2"),
    "no reason": ("```python no-run:\nx\n```\n", DocumentError, "line 2: say why the block does not run"),
    "an unknown option": ("```python norun: x\nx\n```\n", DocumentError, "line 2: 'norun: x' means nothing"),
    "an unknown way to run": ("```console rum\nx\n```\n", DocumentError, "line 2: 'rum' means nothing"),
    "an open fence": ("\n```python\nx = 1\n", DocumentError, "line 2: the fence is never closed"),
    "an exit code": ('```console run\n$ python -c "exit(3)"\n```\n', DocumentError, "ended with code 3"),
    "another output": (
        '```console run\n$ python -c "print(1)"\n2\n```\n',
        DocumentError,
        "should print\n2\n\nand prints\n1",
    ),
    "no exit code": ('```console run code=1\n$ python -c "1"\n```\n', DocumentError, "ended with code 0"),
    "a part of nothing": (
        "```toml part-of=examples/acme_stube/pyproject.toml\nacme = 'elsewhere:create'\n```\n",
        DocumentError,
        "line 2: this is no part of examples/acme_stube/pyproject.toml",
    ),
    "half a line": (
        '```toml part-of=examples/acme_stube/pyproject.toml\n= "acme_stube:AcmeRegistry"\n```\n',
        DocumentError,
        "this is no part of",
    ),
    "a part of no example": ("```toml part-of=pyproject.toml\n[project]\n```\n", DocumentError, "names no file under"),
    "a part of no file": ("```toml part-of=examples/acme_stube/x\n```\n", DocumentError, "names no file under"),
    "another program": ("```console run\n$ rm -r .\n```\n", DocumentError, "not `rm -r .`"),
    "no prompt": ("```console run\nstube\n```\n", DocumentError, "begins with"),
}


# Where the files that a document names by the end of their path may be.
PLACES = (
    "",
    "stube",
    "stube/testing",
    "backends/stube_backends",
    "backends/stube_backends/engine",
    "tests",
    "examples",
    "examples/acme_stube",
)


@pytest.mark.parametrize(
    "path", [*ROOT.glob("*.md"), *sorted((ROOT / "docs").glob("*.md"))], ids=lambda path: path.name
)
def test_every_file_that_a_document_names_exists(path: Path) -> None:
    """Fault: a file was renamed, and a reader is sent to one that is not there."""
    named = set(re.findall(r"`((?:[\w.]+/)*\w+\.py)\b[^`]*`", path.read_text(encoding="utf-8")))
    assert [file for file in sorted(named) if not any((ROOT / place / file).exists() for place in PLACES)] == []


def test_the_reader_runs_every_example(scratch: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run_document(_write(scratch, GOOD), scratch, monkeypatch)


@pytest.mark.parametrize("fault", WRONG)
def test_the_reader_reports_every_mistake(fault: str, scratch: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text, error, message = WRONG[fault]
    with pytest.raises(error, match=message):
        run_document(_write(scratch, text), scratch, monkeypatch)


def test_an_error_names_the_line_of_the_document(scratch: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = _write(scratch, WRONG["an error"][0])
    with pytest.raises(ZeroDivisionError) as caught:
        run_document(path, scratch, monkeypatch)
    last = caught.traceback[-1]
    assert (last.path, last.lineno + 1) == (path, 5)
