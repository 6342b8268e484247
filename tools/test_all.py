"""The tests on every CPython that this machine has, from the oldest that stube allows.

    python tools/test_all.py                            the whole suite on each
    python tools/test_all.py -k publish tests/backends  what pytest shall do, on each
    python tools/test_all.py --only 3.12 --only 3.13    these alone
    python tools/test_all.py --except 3.11              all others

Looked for on PATH, among the versions of pyenv, and where tools/build-free-threaded.sh builds. Of each version the
newest release is taken, and it has a virtual environment of its own, .venvs/VERSION. A free-threaded build is a version
of its own, with a `t`, and left out unless --free-threaded or --only names it. `{python}` in an argument of pytest
stands for the version: --junitxml={python}.xml

The exit code is 1 when the tests fail on any of them, or cannot run.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import subprocess
import sys
import time
import tomllib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TextIO

ROOT: Final = Path(__file__).parents[1]
# What pip installs: as `make test` does; on a free-threaded build, for which few packages are built, the least, and an
# older version where the newest would have to be compiled.
WANTED: Final = {
    False: ["--editable", ".[bench,browser,demo,examples,report,testing]"],
    True: ["--prefer-binary", "--editable", ".[demo,testing]"],
}
_PATIENCE: Final = 20.0  # seconds for an interpreter to say what it is; one that takes longer is none
_FAILED, _INTERRUPTED = 1, 130

# `python` alone is not looked for on PATH: it is whatever somebody made it, and one of the others.
_NAMES: Final = re.compile(r"python3(\.\d+)?t?")
_QUESTION: Final = """
import importlib.util, json, sys, sysconfig
print(json.dumps({
    "implementation": sys.implementation.name,
    "version": sys.version_info[:3],
    "level": sys.version_info[3],
    "free_threaded": bool(sysconfig.get_config_var("Py_GIL_DISABLED")),
    "path": getattr(sys, "_base_executable", sys.executable),
    "venv": all(importlib.util.find_spec(name) for name in ("venv", "ensurepip")),
}))
"""


@dataclass(frozen=True)
class Interpreter:
    """One CPython."""

    path: str
    version: tuple[int, ...]
    """Three numbers."""
    final: bool
    free_threaded: bool
    makes_environments: bool

    @property
    def name(self) -> str:
        """`3.12`, or `3.14t` for a free-threaded build."""
        return f"{self.version[0]}.{self.version[1]}{'t' if self.free_threaded else ''}"

    @property
    def release(self) -> str:
        """`3.12.1`."""
        return ".".join(map(str, self.version)) + ("t" if self.free_threaded else "")


@dataclass
class Outcome:
    """What came of one version."""

    interpreter: Interpreter
    result: str
    passed: bool
    seconds: float


# Finding them


def candidates(environment: Mapping[str, str]) -> Iterator[Path]:
    """Where an interpreter may be, those on PATH first."""
    folders = [Path(folder) for folder in environment.get("PATH", "").split(os.pathsep) if folder]
    for folder in folders:
        yield from sorted(path for path in folder.glob("python3*") if _NAMES.fullmatch(path.name))
    home = Path(environment.get("HOME", "~")).expanduser()
    pyenvs = [Path(environment.get("PYENV_ROOT") or home / ".pyenv")]
    pyenvs += [folder.parent for folder in folders if folder.name == "shims"]  # another user's, or HOME is elsewhere
    for pyenv in pyenvs:
        yield from sorted(pyenv.glob("versions/*/bin/python"))
    cache = Path(environment.get("XDG_CACHE_HOME") or home / ".cache")
    yield cache / "stube" / "python-free-threaded" / "bin" / "python3"


def ask(path: Path) -> Interpreter | None:
    """What this is; None if it is no CPython that runs (pyenv leaves stand-ins for versions that are not selected)."""
    try:
        done = subprocess.run([path, "-c", _QUESTION], capture_output=True, text=True, timeout=_PATIENCE, check=True)
        told: dict[str, Any] = json.loads(done.stdout)
    except (OSError, subprocess.SubprocessError, ValueError):
        return None
    if told["implementation"] != "cpython":
        return None
    return Interpreter(
        told["path"], tuple(told["version"]), told["level"] == "final", told["free_threaded"], told["venv"]
    )


def oldest(pyproject: str) -> tuple[int, ...]:
    """The oldest version that `requires-python` allows, which says `>=` and a version."""
    required: str = tomllib.loads(pyproject)["project"]["requires-python"]
    found = re.fullmatch(r">=\s*(\d+)\.(\d+)", required)
    if found is None:
        raise ValueError(f"requires-python is {required!r}, which this tool cannot read. Write '>=X.Y', or teach it.")
    return tuple(map(int, found.groups()))


def newest_of_each(found: Iterable[Interpreter], at_least: tuple[int, ...]) -> list[Interpreter]:
    """Each version once, in order: the newest release of it, and the first that was found of that one.

    One that can make virtual environments comes before one that cannot, and a release before a preview.
    """
    best: dict[str, Interpreter] = {}
    for one in found:
        rank = (one.makes_environments, one.final, one.version)
        known = best.get(one.name)
        if one.version >= at_least and (known is None or rank > (known.makes_environments, known.final, known.version)):
            best[one.name] = one
    return sorted(best.values(), key=lambda one: (one.version[:2], one.free_threaded))


# Testing on one


def environment_of(interpreter: Interpreter, folder: Path, out: TextIO) -> Path:
    """The python of this version's virtual environment, made anew when pyproject.toml or the release has changed."""
    place = folder / interpreter.name
    python, stamp = place / "bin" / "python", place / "made-of"
    wanted = hashlib.sha256((ROOT / "pyproject.toml").read_bytes()).hexdigest()
    made_of = f"{interpreter.path} {interpreter.release} {wanted}"
    if stamp.is_file() and stamp.read_text(encoding="utf-8") == made_of:
        return python
    out.write(f"Setting up {place} ...\n")
    out.flush()
    pip = [str(python), "-m", "pip", "install", "-qq", "--disable-pip-version-check", "--no-input"]
    for command in (
        [interpreter.path, "-m", "venv", "--clear", str(place)],
        [*pip, *WANTED[interpreter.free_threaded]],
    ):
        subprocess.run(command, check=True, cwd=ROOT, env=_clean_environment())
    stamp.write_text(made_of, encoding="utf-8")
    return python


def run_tests(python: Path, arguments: Sequence[str], out: TextIO) -> tuple[int, str]:
    """Run pytest, its output passed on as it comes; the exit code, and the line in which pytest says the result."""
    colour = ["--color=yes"] if out.isatty() else []
    last = ""
    with subprocess.Popen(
        [python, "-m", "pytest", *colour, *arguments],
        cwd=ROOT,
        env=_clean_environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        encoding="utf-8",
        errors="replace",
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            out.write(line)
            out.flush()
            plain = re.sub(r"\x1b\[[\d;]*m", "", line).strip(" =\n")
            last = plain or last
    return process.returncode, last


def outcome_on(interpreter: Interpreter, arguments: Sequence[str], folder: Path, out: TextIO) -> Outcome:
    """The tests on one version."""
    started = time.monotonic()
    passed, result = False, ""
    if not interpreter.makes_environments:
        result = "it cannot make virtual environments: it lacks venv or ensurepip (Debian: apt install python3-venv)"
        out.write(f"{result}\n")
    else:
        try:
            python = environment_of(interpreter, folder, out)
            mine = [one.replace("{python}", interpreter.name) for one in arguments]
            code, result = run_tests(python, mine, out)
            passed = code == 0
        except subprocess.CalledProcessError as exc:
            result = f"its environment could not be set up: {exc.cmd[2]} ended with code {exc.returncode}"
            out.write(f"{result}\n")
    return Outcome(interpreter, result, passed, time.monotonic() - started)


def _clean_environment() -> dict[str, str]:
    """Nothing of whoever called: another Python's home, packages of the user."""
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONHOME", "PYTHONPATH")}
    return {**environment, "PIP_USER": "0", "PYTHONNOUSERSITE": "1"}


# All of it


def main(argv: Sequence[str] | None = None, out: TextIO = sys.stdout) -> int:
    """Test on every version; 0 when all passed, 1 when not, 130 when interrupted."""
    options, arguments = _parser().parse_known_args(argv)
    at_least = oldest((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    found = newest_of_each(filter(None, map(ask, dict.fromkeys(candidates(os.environ)))), at_least)
    if not found:
        out.write(f"There is no CPython {'.'.join(map(str, at_least))} or later here. Install one, with pyenv say.\n")
        return _FAILED
    unknown = sorted({*options.only, *options.leave_out} - {one.name for one in found})
    if options.only and unknown:
        known = ", ".join(one.name for one in found)
        out.write(f"There is no CPython {unknown[0]} here. Choose from {known}, or install it.\n")
        return _FAILED
    left_out = {one.name: reason for one in found if (reason := _why_not(one, options))}
    outcomes: list[Outcome] = []
    interrupted = False
    for one in found:
        if one.name in left_out:
            continue
        out.write(f"\n##### Python {one.release} ({one.path})\n")
        out.flush()
        try:
            outcomes.append(outcome_on(one, arguments, options.folder, out))
        except KeyboardInterrupt:
            interrupted = True
            break
    out.write("\n##### summary\n")
    out.writelines(_summary(outcomes, found, left_out))
    if interrupted:
        out.write("Interrupted.\n")
        return _INTERRUPTED
    return 0 if all(outcome.passed for outcome in outcomes) else _FAILED


def _why_not(one: Interpreter, options: argparse.Namespace) -> str:
    """Why a version is left out; empty if it is not."""
    if one.name in options.leave_out:
        return "left out, as --except says"
    if options.only and one.name not in options.only:
        return "left out, for --only names others"
    if one.free_threaded and not options.only and not options.free_threaded:
        return "left out, for it is a free-threaded build (--free-threaded: with it)"
    return ""


def _summary(outcomes: list[Outcome], found: list[Interpreter], left_out: Mapping[str, str]) -> Iterator[str]:
    told = {one: left_out.get(one.name, "not begun") for one in found}
    for outcome in outcomes:
        mark = "" if outcome.passed else "FAILED: "
        result = outcome.result or "pytest said nothing"
        told[outcome.interpreter] = f"{mark}{result}; {outcome.seconds:.0f} s in all"
    wide = max(len(one.release) for one in found)
    yield from (f"{one.release:{wide}}  {text}\n" for one, text in told.items())
    if len([one for one in found if not one.free_threaded]) == 1:
        yield "There is only one version here. Install another, with pyenv say, to see more than `make test` shows.\n"


def _parser() -> argparse.ArgumentParser:
    summary, _, rest = (__doc__ or "").partition("\n\n")
    parser = argparse.ArgumentParser(
        prog="test_all.py",
        usage="%(prog)s [--only VERSION] [--except VERSION] [--free-threaded] [--folder FOLDER] [PYTEST'S ...]",
        description=summary,
        epilog=rest,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--only", action="append", default=[], metavar="VERSION", help="test on this one (repeatable)")
    parser.add_argument(
        "--except",
        dest="leave_out",
        action="append",
        default=[],
        metavar="VERSION",
        help="do not test on this one (repeatable)",
    )
    parser.add_argument("--free-threaded", action="store_true", help="test on free-threaded builds, too")
    parser.add_argument(
        "--folder", type=Path, default=ROOT / ".venvs", help="where the virtual environments are (.venvs)"
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
