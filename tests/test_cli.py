"""The command line: its output, its exit codes, and that no mistake of a user leads to a traceback."""

from __future__ import annotations

import importlib
import json
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import stube
from stube import BackendInfo, cli
from stube.testing import GUARANTEES

ROOT = Path(__file__).parents[1]

BACKENDS = [
    BackendInfo("memory", "stube", "0.1.0", loads=True, options=("max_pending", "clock")),
    BackendInfo("redis", "acme-redis", "12.0", loads=False, error="It is broken. Fix it."),
]


class Demo(ModuleType):
    """A stand-in for the demo that records how it was called."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        super().__init__("stube.demo")
        self.calls: list[tuple[object, ...]] = []
        self.code = 0
        self.error: BaseException | None = None
        monkeypatch.setitem(sys.modules, "stube.demo", self)
        monkeypatch.setattr(stube, "demo", self, raising=False)

    def serve(self, spec: object, *, host: str, port: int) -> int:
        return self._called("serve", spec, host, port)

    def self_check(self, spec: object, *, clients: int, json: bool) -> int:
        return self._called("self_check", spec, clients, json)

    def _called(self, *call: object) -> int:
        self.calls.append(call)
        if self.error is not None:
            raise self.error
        return self.code


@pytest.fixture
def demo(monkeypatch: pytest.MonkeyPatch) -> Demo:
    return Demo(monkeypatch)


@pytest.fixture(autouse=True)
def width(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Makes the usage text wrap at the same place everywhere and have no colour."""
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.delenv("FORCE_COLOR", raising=False)
    monkeypatch.delenv("STUBE_REGISTRY", raising=False)
    return iter([None])


def environment() -> dict[str, str]:
    """Return this environment, extended so that a process finds stube where this one did."""
    paths = [str(Path(stube.__file__).parents[1]), str(ROOT / "backends"), os.environ.get("PYTHONPATH", "")]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))}


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run an interpreter with these arguments."""
    command = [sys.executable, "-W", "error", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, env=environment())


def only_error(capsys: pytest.CaptureFixture[str]) -> str:
    """Return the text on stderr; stdout must be empty."""
    captured = capsys.readouterr()
    assert captured.out == ""
    return captured.err


# backends


def test_backends_prints_a_table(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(cli, "available_backends", lambda: BACKENDS)
    assert cli.main(["backends"]) == 0
    assert capsys.readouterr() == (
        "NAME    DISTRIBUTION  VERSION  LOADS\n"
        "memory  stube         0.1.0    yes\n"
        "redis   acme-redis    12.0     no: It is broken. Fix it.\n",
        "",
    )


def test_backends_prints_json(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(cli, "available_backends", lambda: BACKENDS)
    assert cli.main(["backends", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == [
        {
            "name": "memory",
            "distribution": "stube",
            "version": "0.1.0",
            "loads": True,
            "error": None,
            "options": ["max_pending", "clock"],
        },
        {
            "name": "redis",
            "distribution": "acme-redis",
            "version": "12.0",
            "loads": False,
            "error": "It is broken. Fix it.",
            "options": [],
        },
    ]


def test_backends_finds_none(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(cli, "available_backends", list)
    assert cli.main(["backends"]) == 1
    assert only_error(capsys) == "No backend is installed. Reinstall stube, which brings some.\n"
    assert cli.main(["backends", "--json"]) == 1
    assert capsys.readouterr() == ("[]\n", "")


# demo: the arguments


def test_demo_serves(demo: Demo) -> None:
    assert cli.main(["demo"]) == 0
    assert cli.main(["demo", "--host", "::1", "--port", "0", "--registry", "memory"]) == 0
    assert demo.calls == [("serve", None, "127.0.0.1", 8000), ("serve", "memory", "::1", 0)]


def test_demo_checks_itself(demo: Demo) -> None:
    assert cli.main(["demo", "--self-check"]) == 0
    assert cli.main(["demo", "--self-check", "--clients", "3", "--json", "--registry", "memory"]) == 0
    assert demo.calls == [("self_check", None, 20, False), ("self_check", "memory", 3, True)]


@pytest.mark.parametrize("code", [0, 1, 2])
def test_the_code_of_the_demo_is_the_code_of_the_command(demo: Demo, code: int) -> None:
    demo.code = code
    assert cli.main(["demo"]) == code
    assert cli.main(["demo", "--self-check"]) == code


def test_the_table_of_a_config_file_is_the_spec(demo: Demo, tmp_path: Path) -> None:
    file = tmp_path / "stube.toml"
    file.write_text('title = "x"\n[registry]\nbackend = "sharded"\nshards = 8\n')
    assert cli.main(["demo", "--config", str(file)]) == 0
    assert demo.calls == [("serve", {"backend": "sharded", "shards": 8}, "127.0.0.1", 8000)]


def test_an_empty_spec_is_passed_on_and_not_taken_for_none(demo: Demo) -> None:
    assert cli.main(["demo", "--registry", ""]) == 0
    assert demo.calls == [("serve", "", "127.0.0.1", 8000)]


def test_the_most_clients_are_those_that_the_demo_allows() -> None:
    pytest.importorskip("starlette", exc_type=ImportError)
    pytest.importorskip("httpx", exc_type=ImportError)
    assert cli.MOST_CLIENTS == importlib.import_module("stube.demo.check").MOST_CLIENTS


# Wrong usage

DEMO_USAGE = (
    "usage: stube demo [-h] [--registry SPEC | --config FILE] [--host HOST] [--port PORT] [--self-check] "
    "[--clients N] [--json]"
)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "stube: error: the following arguments are required: COMMAND"),
        (["--registry", "memory"], None),
        (["demo", "--port", "65536"],
         "stube demo: error: argument --port: '65536' is not a port; give one from 0 to 65535"),
        (["demo", "--port", "-1"],
         "stube demo: error: argument --port: '-1' is not a port; give one from 0 to 65535"),
        (["demo", "--self-check", "--clients", "0"],
         "stube demo: error: argument --clients: '0' is not a number of clients; give one from 1 to 100"),
        (["demo", "--self-check", "--clients", "101"],
         "stube demo: error: argument --clients: '101' is not a number of clients; give one from 1 to 100"),
        (["demo", "--self-check", "--clients", "two"],
         "stube demo: error: argument --clients: 'two' is not a number of clients; give one from 1 to 100"),
        (["demo", "--registry", "memory", "--config", "x.toml"],
         "stube demo: error: argument --config: not allowed with argument --registry"),
        (["demo", "--json"],
         "stube demo: error: --clients and --json belong to --self-check; add it, or leave them out"),
        (["demo", "--clients", "3"],
         "stube demo: error: --clients and --json belong to --self-check; add it, or leave them out"),
        (["demo", "--self"], "stube: error: unrecognized arguments: --self"),
        (["demo", "redis://user:hunter2@host"], "stube: error: unrecognized arguments: redis:***@host"),
        (["demo", "--port", "redis://user:hunter2@host"],
         "stube demo: error: argument --port: 'redis:***@host' is not a port; give one from 0 to 65535"),
    ],
)  # fmt: skip
def test_a_wrong_usage_ends_with_2(
    demo: Demo, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str | None
) -> None:
    assert cli.main(arguments) == 2
    lines = only_error(capsys).splitlines()
    assert lines[0].startswith("usage: stube")
    assert "hunter2" not in "".join(lines)
    if message is not None:
        assert lines[-1] == message
    assert demo.calls == []


def test_a_usage_error_shows_the_usage_of_the_command(demo: Demo, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["demo", "--json"]) == 2
    usage = re.sub(r"\s+", " ", only_error(capsys))
    assert usage.startswith(DEMO_USAGE)


def test_a_config_file_that_is_missing(demo: Demo, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = str(tmp_path / "none.toml")
    assert cli.main(["demo", "--config", file]) == 2
    assert only_error(capsys) == (
        f"stube: The file {file!r} cannot be read: No such file or directory. Give a TOML file's path.\n"
    )
    assert cli.main(["demo", "--config", str(tmp_path)]) == 2
    assert only_error(capsys) == (
        f"stube: The file {str(tmp_path)!r} cannot be read: Is a directory. Give a TOML file's path.\n"
    )


@pytest.mark.parametrize("content", [b"[registry\n", b"backend = \n", b"\xff\xfe"])
def test_a_config_file_that_is_no_toml(
    demo: Demo, tmp_path: Path, capsys: pytest.CaptureFixture[str], content: bytes
) -> None:
    file = tmp_path / "broken.toml"
    file.write_bytes(content)
    with pytest.raises(ValueError, match=r".") as why:
        tomllib.loads(content.decode())
    assert cli.main(["demo", "--config", str(file)]) == 2
    assert only_error(capsys) == f"stube: The file {str(file)!r} is not valid TOML: {why.value}. Correct it there.\n"


@pytest.mark.parametrize("content", ["", 'backend = "memory"\n', 'registry = "memory"\n', "[[registry]]\n"])
def test_a_config_file_without_the_table(
    demo: Demo, tmp_path: Path, capsys: pytest.CaptureFixture[str], content: str
) -> None:
    file = tmp_path / "empty.toml"
    file.write_text(content)
    assert cli.main(["demo", "--config", str(file)]) == 2
    assert only_error(capsys) == (
        f'stube: The file {str(file)!r} has no table [registry]. Add one with backend = "memory".\n'
    )
    assert demo.calls == []


# conformance: the arguments; test_conformance_command.py tests what the command does


@pytest.fixture
def conform(monkeypatch: pytest.MonkeyPatch) -> list[tuple[object, ...]]:
    """The calls of a stand-in for the command, which returns 1."""
    calls: list[tuple[object, ...]] = []

    def stand_in(spec: str, **options: object) -> int:
        calls.append((spec, options))
        return 1

    monkeypatch.setattr("stube.testing._conformance.command.conform", stand_in)
    return calls


def test_conformance_takes_its_arguments(conform: list[tuple[object, ...]]) -> None:
    """Fault: an option is parsed but not passed on, or the exit code is lost."""
    assert cli.main(["conformance", "memory"]) == 1
    arguments = ["--guarantee", "G5", "--guarantee", "G7", "--json", "a", "--html", "b", "--limit", "2.5", "-q"]
    arguments += ["--loop", "uvloop", "--dispatch", "coroutine", "-k", "cancel", "-x", "--reproduce", "found"]
    assert cli.main(["conformance", "acme", *arguments]) == 1
    nothing: dict[str, object] = {
        "guarantees": [],
        "json_file": None,
        "html_file": None,
        "reproductions": None,
        "keyword": "",
        "first_only": False,
        "limit": 60.0,
        "quiet": False,
        "loop": "asyncio",
        "dispatch": "function",
    }
    options = {"json_file": Path("a"), "html_file": Path("b"), "limit": 2.5, "quiet": True}
    options |= {"loop": "uvloop", "dispatch": "coroutine"}
    options |= {"keyword": "cancel", "first_only": True, "reproductions": Path("found")}
    assert conform == [("memory", nothing), ("acme", {"guarantees": ["G5", "G7"], **options})]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "the following arguments are required: SPEC"),
        (["memory", "--limit", "0"], "argument --limit: '0' is not a time limit; give seconds, at most 86400"),
        (["memory", "--limit", "nan"], "argument --limit: 'nan' is not a time limit; give seconds, at most 86400"),
        (["memory", "--limit", "soon"], "argument --limit: 'soon' is not a time limit; give seconds, at most 86400"),
        (
            ["memory", "--guarantee", "g5"],
            f"argument --guarantee: There is no guarantee 'g5'. Choose from {', '.join(GUARANTEES)}.",
        ),
    ],
)
def test_a_wrong_usage_of_conformance_ends_with_2(
    conform: list[tuple[object, ...]], capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    """Fault: a mistake is reported only after the run, or as a traceback."""
    assert cli.main(["conformance", *arguments]) == 2
    lines = only_error(capsys).splitlines()
    assert lines[0].startswith("usage: stube conformance")
    assert lines[-1] == f"stube conformance: error: {message}"
    assert conform == []


def test_conformance_without_pytest_names_the_extra() -> None:
    """Fault: a user who has installed stube without the extra gets a traceback."""
    without = "import sys; sys.modules['pytest'] = None; from stube.cli import main"
    result = run("-c", f"{without}; sys.exit(main(['conformance', 'memory']))")
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr == (
        "stube: The conformance suite needs the package 'pytest', which is not installed: "
        "pip install 'stube[testing]'\n"
    )


# Errors on the way


def test_an_error_of_stube_is_a_message_and_2(demo: Demo, capsys: pytest.CaptureFixture[str]) -> None:
    demo.error = stube.ConfigError("This is wrong. Do that.")
    assert cli.main(["demo"]) == 2
    assert only_error(capsys) == "stube: This is wrong. Do that.\n"


def test_an_interruption_is_130(demo: Demo, capsys: pytest.CaptureFixture[str]) -> None:
    demo.error = KeyboardInterrupt()
    assert cli.main(["demo"]) == 130
    assert only_error(capsys) == ""


def test_a_fault_of_the_demo_is_not_hidden(demo: Demo) -> None:
    demo.error = ZeroDivisionError("oh")
    with pytest.raises(ZeroDivisionError, match=r"^oh$"):
        cli.main(["demo"])


class Refuses:
    """A finder for which a module is not installed."""

    def __init__(self, name: str, error: ImportError) -> None:
        self.name, self.error = name, error

    def find_spec(self, name: str, *_: Any) -> None:
        if name == self.name:
            raise self.error


@pytest.fixture
def without_demo(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.startswith("stube.demo")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.delattr(stube, "demo", raising=False)


@pytest.mark.parametrize("kind", [ImportError, ModuleNotFoundError])
def test_a_missing_package_names_the_extra(
    without_demo: None,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    kind: type[ImportError],
) -> None:
    refusal = Refuses("stube.demo", kind("no", name="starlette"))
    monkeypatch.setattr(sys, "meta_path", [refusal, *sys.meta_path])
    assert cli.main(["demo"]) == 2
    assert only_error(capsys) == (
        "stube: The demo needs the package 'starlette', which is not installed: pip install 'stube[demo]'\n"
    )


@pytest.mark.parametrize("name", ["stube.demo._panel", None])
def test_a_missing_part_of_stube_itself_is_a_fault(
    without_demo: None, monkeypatch: pytest.MonkeyPatch, name: str | None
) -> None:
    refusal = Refuses("stube.demo", ImportError("broken", name=name))
    monkeypatch.setattr(sys, "meta_path", [refusal, *sys.meta_path])
    with pytest.raises(ImportError, match=r"^broken$"):
        cli.main(["demo"])


# Help, version, processes


def test_the_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr() == (f"stube {stube.__version__}\n", "")


@pytest.mark.parametrize(
    ("arguments", "lessons"),
    [
        (["--help"], ["backends", "demo", "stube demo --self-check", "stube demo --help"]),
        (["conformance", "--help"], ["--guarantee G5", "--html", "--limit", "exit codes:", "130"]),
        (["backends", "--help"], ["stube backends --json", "'stube.backends'", "exit codes:"]),
        (["demo", "--help"], ["[registry]", 'backend = "memory"', "STUBE_REGISTRY", "--clients", "exit codes:"]),
    ],
)
def test_the_help_teaches(capsys: pytest.CaptureFixture[str], arguments: list[str], lessons: list[str]) -> None:
    assert cli.main(arguments) == 0
    text, errors = capsys.readouterr()
    assert errors == ""
    assert [lesson for lesson in lessons if lesson not in text] == []
    assert "examples:\n" in text


def test_every_example_of_the_help_parses(
    capsys: pytest.CaptureFixture[str], demo: Demo, monkeypatch: pytest.MonkeyPatch
) -> None:
    import shlex

    monkeypatch.setattr("stube.testing._conformance.command.conform", lambda spec, **options: 0)
    for command in ([], ["backends"], ["conformance"], ["demo"]):
        cli.main([*command, "--help"])
        examples = re.findall(r"^  (?:STUBE_REGISTRY=\S+ )?stube (.+?)(?:   .*)?$", capsys.readouterr().out, re.M)
        assert examples
        for example in examples:
            assert cli.main(shlex.split(example)) in (0, 1), example
            capsys.readouterr()


def test_python_dash_m_stube_is_the_command() -> None:
    result = run("-m", "stube", "--version")
    assert (result.returncode, result.stdout, result.stderr) == (0, f"stube {stube.__version__}\n", "")
    result = run("-m", "stube", "nonsense")
    assert result.returncode == 2
    assert result.stdout == ""
    assert "Traceback" not in result.stderr


def test_the_console_script_is_main() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    module, _, function = project["project"]["scripts"]["stube"].partition(":")
    assert getattr(importlib.import_module(module), function) is cli.main


def test_listing_the_backends_loads_no_demo() -> None:
    code = "import sys; from stube.cli import main; main(['backends']); print(*sys.modules)"
    result = run("-c", code)
    assert result.stderr == ""
    loaded = set(result.stdout.splitlines()[-1].split())
    assert "stube.cli" in loaded
    assert not {"stube.demo", "stube.testing", "pytest", "starlette", "uvicorn", "httpx", "tomllib"} & loaded


@pytest.mark.skipif(sys.platform == "win32", reason="a pipe breaks otherwise there")
@pytest.mark.parametrize(
    ("arguments", "unbuffered"), [(["backends", "--json"], ""), (["backends", "--json"], "1"), (["--help"], "")]
)
def test_a_broken_pipe_ends_the_command_with_141(arguments: list[str], unbuffered: str) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    try:
        process = subprocess.run(
            [sys.executable, "-W", "error", "-m", "stube", *arguments],
            stdout=writer,
            stderr=subprocess.PIPE,
            text=True,
            timeout=60,
            env={**environment(), "PYTHONUNBUFFERED": unbuffered},
        )
    finally:
        os.close(writer)
    assert (process.returncode, process.stderr) == (141, "")


def test_a_broken_pipe_with_a_stdout_that_is_no_file(demo: Demo, capsys: pytest.CaptureFixture[str]) -> None:
    demo.error = BrokenPipeError()
    assert cli.main(["demo"]) == 141
    assert only_error(capsys) == ""
