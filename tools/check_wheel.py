"""Check that a wheel is fit to be published.

    python tools/check_wheel.py dist/stube-*.whl                      compare its content with the source tree
    python tools/check_wheel.py dist/stube-*.whl --installed-in PY    run it in the environment of the interpreter PY

The second command needs an environment with only the wheel, without the extras.
"""

from __future__ import annotations

import argparse
import configparser
import json
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath

ROOT = Path(__file__).parents[1]
PACKAGES = {"stube": ROOT / "stube", "stube_backends": ROOT / "backends" / "stube_backends"}
NEEDED = (
    "stube/py.typed",
    "stube/demo/page.html",
    "stube/demo/page.css",
    "stube/demo/page.js",
    "stube/testing/plugin.py",
    "stube/testing/suite/__init__.py",
    "stube/testing/suite/test_publish.py",
    "stube_backends/py.typed",
    "stube_backends/engine/__init__.py",
)
IMPORT_LIMIT_MS = 50.0
IMPORT_TRIES = 12  # the best one counts, because other load can only make a try slower

_IMPORT = """\
import json, sys, time
before = set(sys.modules)
begin = time.perf_counter()
import stube
spent = time.perf_counter() - begin
print(json.dumps({"ms": spent * 1000, "file": stube.__file__, "loaded": sorted(set(sys.modules) - before)}))
"""


def wrong_contents(wheel: Path) -> Iterator[str]:
    """Yield a line for each file that is missing in the wheel or does not belong there."""
    with zipfile.ZipFile(wheel) as archive:
        held = {name for name in archive.namelist() if not name.endswith("/")}
        entry_points = _entry_points(archive)
    sources = {
        f"{package}/{path.relative_to(folder).as_posix()}"
        for package, folder in PACKAGES.items()
        for path in folder.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    info = {name for name in held if PurePosixPath(name).parts[0].endswith(".dist-info")}
    for name in NEEDED:
        if name not in held:
            yield f"{name} is missing"
    for name in sorted(sources - held - set(NEEDED)):
        yield f"{name} is in the source tree, but not in the wheel"
    for name in sorted(held - info - sources):
        yield f"{name} does not belong in the wheel"
    for kind in ("METADATA", "RECORD", "WHEEL", "entry_points.txt", "licenses/LICENSE"):
        if not any(name.endswith(f".dist-info/{kind}") for name in info):
            yield f"the file {kind} of its dist-info is missing"
    for group in ("console_scripts", "stube.backends", "pytest11"):
        if not entry_points.get(group):
            yield f"the entry points of the group {group} are missing"


def wrong_when_installed(wheel: Path, python: str) -> Iterator[str]:
    """Yield a line for each fault of the wheel's installation in the environment of the interpreter `python`."""
    version = wheel.name.split("-")[1]
    printed = _run(python, "-m", "stube", "--version").strip()
    if printed != f"stube {version}":
        yield f"`python -m stube --version` prints {printed!r}, but the wheel is version {version}"

    print(_run(python, "-m", "stube", "backends").rstrip())
    with zipfile.ZipFile(wheel) as archive:
        expected = _entry_points(archive).get("stube.backends", {})
    found = {info["name"]: info for info in json.loads(_run(python, "-m", "stube", "backends", "--json"))}
    for name in sorted(set(expected) - set(found)):
        yield f"the backend {name} is not found"
    for name, info in found.items():
        if not info["loads"] and "pip install" not in str(info["error"]):
            yield f"the backend {name} does not load: {info['error']}"

    tries = [json.loads(_run(python, "-c", _IMPORT)) for _ in range(IMPORT_TRIES)]
    best = min(float(one["ms"]) for one in tries)
    print(f"import stube: {best:.1f} ms, the best of {IMPORT_TRIES}")
    if best >= IMPORT_LIMIT_MS:
        yield f"`import stube` takes {best:.1f} ms, but the limit is {IMPORT_LIMIT_MS:.0f}"
    if Path(tries[0]["file"]).is_relative_to(ROOT / "stube"):
        yield "`import stube` finds the source tree instead of the installed wheel"
    for module in tries[0]["loaded"]:
        if module.startswith(("stube_backends", "stube.testing", "stube.demo", "stube.cli", "sortedcontainers")):
            yield f"`import stube` loads {module}"


def _entry_points(archive: zipfile.ZipFile) -> dict[str, dict[str, str]]:
    parser = configparser.ConfigParser(delimiters=("=",))
    for name in archive.namelist():
        if name.endswith(".dist-info/entry_points.txt"):
            parser.read_string(archive.read(name).decode())
    return {group: dict(parser[group]) for group in parser.sections()}


def _run(python: str, *arguments: str) -> str:
    """Run a command outside of the source tree and return its output. A command that fails ends the check."""
    with tempfile.TemporaryDirectory() as elsewhere:
        done = subprocess.run(
            [python, *arguments], cwd=elsewhere, capture_output=True, text=True, timeout=120, check=False
        )
    if done.returncode:
        sys.exit(f"`python {' '.join(arguments)}` failed with code {done.returncode}:\n{done.stdout}{done.stderr}")
    if done.stderr:
        sys.exit(f"`python {' '.join(arguments)}` wrote on stderr:\n{done.stderr}")
    return done.stdout


def main(argv: Sequence[str] | None = None) -> int:
    """Check one wheel; return 0 if nothing is wrong, 1 otherwise."""
    parser = argparse.ArgumentParser(description="Check a wheel of stube.")
    parser.add_argument("wheel", type=Path)
    parser.add_argument("--installed-in", metavar="PYTHON", help="an interpreter that has the wheel installed")
    arguments = parser.parse_args(argv)
    if arguments.installed_in is None:
        wrong = list(wrong_contents(arguments.wheel))
    else:
        # Do not resolve the path of an environment's interpreter, because it is a link out of the environment.
        wrong = list(wrong_when_installed(arguments.wheel, str(Path(arguments.installed_in).absolute())))
    for line in wrong:
        print(f"{arguments.wheel.name}: {line}")
    if not wrong:
        print(f"{arguments.wheel.name}: nothing is wrong")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
