"""`make test-all`: which interpreters it finds and chooses, and what it reports. The interpreters are scripts."""

from __future__ import annotations

import io
import json
import os
import re
import stat
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tools import test_all
from tools.test_all import Interpreter, newest_of_each, oldest

# An interpreter as the tool sees one: it describes itself, makes environments with a copy of itself, installs, tests.
SCRIPT = """#!/bin/sh
case "$*" in
  "-c"*) echo '{told}' ;;
  "-m venv --clear "*) mkdir -p "$4/bin" && cp "$0" "$4/bin/python" && echo venv >>"{log}" ;;
  "-m pip install "*) echo "pip $*" >>"{log}"; exit {pip} ;;
  "-m pytest"*) echo "pytest $*" >>"{log}"; echo "{release} tests"; echo "==== {result} ===="; exit {code} ;;
  *) exit 9 ;;
esac
"""


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine without an interpreter; its PATH is `bin`, next to the tools that scripts need."""
    tools = tmp_path / "tools"
    tools.mkdir()
    for name in ("mkdir", "cp"):
        found = next(Path(place, name) for place in ("/bin", "/usr/bin") if Path(place, name).exists())
        (tools / name).symlink_to(found)
    for name in ("PYENV_ROOT", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}{os.pathsep}{tools}")
    return tmp_path


Install = Callable[..., Path]


@pytest.fixture
def install(home: Path) -> Install:
    """A function that puts an interpreter below the home: its place, its release, and the result of its tests."""

    def put(
        place: str,
        release: str,
        *,
        result: str = "2 passed in 0.01s",
        code: int = 0,
        pip: int = 0,
        free_threaded: bool = False,
        venv: bool = True,
        implementation: str = "cpython",
        level: str = "final",
    ) -> Path:
        path = home / place
        told = {
            "implementation": implementation,
            "version": [int(part) for part in release.split(".")],
            "level": level,
            "free_threaded": free_threaded,
            "path": str(path),
            "venv": venv,
        }
        path.parent.mkdir(parents=True, exist_ok=True)
        script = SCRIPT.format(
            told=json.dumps(told), log=home / "log", release=release, result=result, code=code, pip=pip
        )
        path.write_text(script, encoding="utf-8")
        path.chmod(path.stat().st_mode | stat.S_IXUSR)
        return path

    return put


def run(home: Path, *arguments: str) -> tuple[int, list[str]]:
    """Return the exit code and the output without the seconds."""
    out = io.StringIO()
    code = test_all.main(["--folder", str(home / "venvs"), *arguments], out)
    return code, [re.sub(r"; \d+ s in all$", "", line) for line in out.getvalue().splitlines()]


def summary(lines: list[str]) -> list[str]:
    return lines[lines.index("##### summary") + 1 :]


def log(home: Path) -> list[str]:
    return (home / "log").read_text(encoding="utf-8").splitlines()


def test_each_version_is_tested_once_wherever_it_is_found(home: Path, install: Install) -> None:
    """Fault: pyenv's versions are not found, one version is tested twice, or one that is too old is tested."""
    install("bin/python3", "3.12.1")
    install("bin/python3.12", "3.12.1")
    install("bin/python3.10", "3.10.13")
    install("bin/python3-config", "3.15.0")
    install("bin/python2.7", "2.7.18")
    eleven = install(".pyenv/versions/3.11.7/bin/python", "3.11.7")
    install(".pyenv/versions/3.9.18/bin/python", "3.9.18")
    code, lines = run(home)
    assert code == 0
    assert [line for line in lines if line.startswith("#####")] == [
        f"##### Python 3.11.7 ({eleven})",
        f"##### Python 3.12.1 ({home / 'bin' / 'python3'})",
        "##### summary",
    ]
    assert "3.11.7 tests" in lines
    assert summary(lines) == ["3.11.7  2 passed in 0.01s", "3.12.1  2 passed in 0.01s"]


def test_the_versions_of_a_pyenv_are_found_by_its_shims(
    home: Path, install: Install, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Fault: if HOME is another folder, as in a job of CI, only the selected version is tested."""
    install("bin/python3", "3.11.7")
    install("elsewhere/versions/3.13.0/bin/python", "3.13.0")
    (home / "elsewhere" / "shims").mkdir()
    monkeypatch.setenv("PATH", f"{home / 'elsewhere' / 'shims'}{os.pathsep}{os.environ['PATH']}")
    code, lines = run(home)
    assert code == 0
    assert summary(lines) == ["3.11.7  2 passed in 0.01s", "3.13.0  2 passed in 0.01s"]


def test_a_failure_on_one_version_is_the_failure_of_all(home: Path, install: Install) -> None:
    """Fault: the last version decides, or the first failure keeps the others from being tested."""
    install("bin/python3.11", "3.11.9", result="1 failed, 1 passed in 0.01s", code=1)
    install("bin/python3.12", "3.12.1")
    code, lines = run(home)
    assert code == 1
    assert summary(lines) == ["3.11.9  FAILED: 1 failed, 1 passed in 0.01s", "3.12.1  2 passed in 0.01s"]


def test_an_interpreter_that_passes_and_then_ends_badly_has_failed(home: Path, install: Install) -> None:
    """Fault: the line that pytest prints decides, instead of its exit code."""
    install("bin/python3.11", "3.11.9", code=134)
    code, lines = run(home)
    assert code == 1
    assert summary(lines)[0] == "3.11.9  FAILED: 2 passed in 0.01s"


def test_an_environment_that_cannot_be_set_up_is_a_failure(home: Path, install: Install) -> None:
    """Fault: a version that was not tested is reported as tested, or ends the run with a traceback."""
    install("bin/python3.11", "3.11.9", pip=3)
    install("bin/python3.12", "3.12.1", venv=False)
    install("bin/python3.13", "3.13.0")
    code, lines = run(home)
    assert code == 1
    assert summary(lines) == [
        "3.11.9  FAILED: its environment could not be set up: pip ended with code 3",
        "3.12.1  FAILED: it cannot make virtual environments: it lacks venv or ensurepip "
        "(Debian: apt install python3-venv)",
        "3.13.0  2 passed in 0.01s",
    ]


def test_a_single_version_is_reported_as_the_only_one(home: Path, install: Install) -> None:
    """Fault: a developer who has one version believes that all were tested."""
    install("bin/python3.11", "3.11.9")
    install("bin/python3.13t", "3.13.0", free_threaded=True)
    code, lines = run(home)
    assert code == 0
    assert summary(lines) == [
        "3.11.9   2 passed in 0.01s",
        "3.13.0t  left out, for it is a free-threaded build (--free-threaded: with it)",
        "There is only one version here. Install another, with pyenv say, to see more than `make test` shows.",
    ]


@pytest.mark.parametrize(
    ("arguments", "tested"),
    [
        ((), ["3.11.9", "3.13.0"]),
        (("--free-threaded",), ["3.11.9", "3.13.0", "3.13.0t"]),
        (("--only", "3.13t"), ["3.13.0t"]),
        (("--only", "3.13"), ["3.13.0"]),
        (("--except", "3.11"), ["3.13.0"]),
        (("--except", "3.11", "--except", "3.13"), []),
        (("--except", "3.8"), ["3.11.9", "3.13.0"]),
    ],
)
def test_versions_are_chosen(home: Path, install: Install, arguments: tuple[str, ...], tested: list[str]) -> None:
    """Fault: a free-threaded build is taken for the usual one, or an excluded version is tested."""
    install("bin/python3.11", "3.11.9")
    install("bin/python3.13", "3.13.0")
    install(".cache/stube/python-free-threaded/bin/python3", "3.13.0", free_threaded=True)
    code, lines = run(home, *arguments)
    assert code == 0
    assert [line.split()[2] for line in lines if line.startswith("##### Python")] == tested
    assert len([line for line in summary(lines) if "left out, " in line]) == 3 - len(tested)


def test_a_version_that_is_not_there_cannot_be_chosen(home: Path, install: Install) -> None:
    """Fault: with a typo in --only nothing is tested, and the run passes."""
    install("bin/python3.11", "3.11.9")
    assert run(home, "--only", "3.41") == (1, ["There is no CPython 3.41 here. Choose from 3.11, or install it."])


def test_no_version_at_all_is_a_failure(home: Path, install: Install) -> None:
    """Fault: nothing is tested, and the run passes."""
    install("bin/python3", "3.10.13")
    install("bin/python3.12", "3.12.1", implementation="pypy")
    (home / "bin" / "python3.13").write_text("#!/bin/sh\nexit 127\n", encoding="utf-8")  # like a shim of pyenv
    (home / "bin" / "python3.13").chmod(0o755)
    (home / "bin" / "python3.14").write_text("no program", encoding="utf-8")
    assert run(home) == (1, ["There is no CPython 3.11 or later here. Install one, with pyenv say."])


def test_pytest_gets_the_other_arguments(home: Path, install: Install) -> None:
    """Fault: a selection is lost, or the reports of several versions overwrite one another."""
    install("bin/python3.11", "3.11.9")
    install("bin/python3.12", "3.12.1")
    code, _ = run(home, "-k", "publish or join", "tests/backends", "--junitxml=report-{python}.xml")
    assert code == 0
    assert [line for line in log(home) if line.startswith("pytest")] == [
        "pytest -m pytest -k publish or join tests/backends --junitxml=report-3.11.xml",
        "pytest -m pytest -k publish or join tests/backends --junitxml=report-3.12.xml",
    ]


def test_an_environment_is_made_once_and_anew_for_another_release(home: Path, install: Install) -> None:
    """Fault: every run installs everything, or an environment is kept although its interpreter was replaced."""
    install("bin/python3.11", "3.11.8")
    assert run(home)[0] == run(home)[0] == 0
    assert log(home).count("venv") == 1
    wanted = "--editable .[bench,browser,demo,examples,report,testing]"
    assert any("pip -m pip install" in line and wanted in line for line in log(home))
    install("bin/python3.11", "3.11.9")
    assert run(home)[0] == 0
    assert log(home).count("venv") == 2


def test_an_environment_that_was_half_made_is_made_again(home: Path, install: Install) -> None:
    """Fault: an interrupted download leaves an environment that is taken for complete."""
    install("bin/python3.11", "3.11.9", pip=1)
    assert run(home)[0] == 1
    install("bin/python3.11", "3.11.9")
    assert run(home)[0] == 0


def test_an_interrupt_ends_with_a_summary(home: Path, install: Install, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fault: an interrupt while the second version is tested loses the result of the first one."""
    install("bin/python3.11", "3.11.9")
    install("bin/python3.12", "3.12.1")
    tests = test_all.run_tests

    def interrupt(python: Path, arguments: list[str], out: io.StringIO) -> tuple[int, str]:
        if "3.12" in str(python):
            raise KeyboardInterrupt
        return tests(python, arguments, out)

    monkeypatch.setattr(test_all, "run_tests", interrupt)
    code, lines = run(home)
    assert code == 130
    assert summary(lines) == ["3.11.9  2 passed in 0.01s", "3.12.1  not begun", "Interrupted."]


def interpreter(
    version: tuple[int, ...], *, final: bool = True, free_threaded: bool = False, venv: bool = True, path: str = ""
) -> Interpreter:
    return Interpreter(path, version, final, free_threaded, venv)


def test_the_newest_release_of_a_version_is_taken() -> None:
    """Fault: the first one on PATH is tested, a preview instead of a release, or one that cannot be tested at all."""
    old, new = interpreter((3, 12, 1)), interpreter((3, 12, 10))
    preview, release = interpreter((3, 15, 0), final=False), interpreter((3, 14, 2))
    bare, able = interpreter((3, 11, 9), venv=False), interpreter((3, 11, 2))
    same = interpreter((3, 12, 10), path="found later")
    threads = interpreter((3, 14, 2), free_threaded=True)
    found = [old, preview, threads, bare, new, same, able, release, interpreter((3, 10, 9))]
    assert newest_of_each(found, (3, 11)) == [able, new, release, threads, preview]
    assert [one.name for one in newest_of_each(found, (3, 13))] == ["3.14", "3.14t", "3.15"]


def test_the_oldest_version_is_read_from_the_project() -> None:
    """Fault: the tool has a bound of its own, which is not updated with the project's."""
    assert oldest('[project]\nrequires-python = ">=3.12"') == (3, 12)
    with pytest.raises(ValueError, match="cannot read") as raised:
        oldest('[project]\nrequires-python = "~=3.12"')
    assert str(raised.value) == (
        "requires-python is '~=3.12', which this tool cannot read. Write '>=X.Y', or teach it."
    )


def test_the_real_interpreters_are_understood() -> None:
    """Fault: a real interpreter cannot answer the question that the tool asks it."""
    told = test_all.ask(Path(sys.executable))
    assert told is not None
    assert told.version == sys.version_info[:3]
    assert told.final == (sys.version_info.releaselevel == "final")
