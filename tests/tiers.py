"""What the faster tiers of the tests leave out, and why. This is the only place that says it.

| tier | command | what it is for |
|---|---|---|
| fast | `make test` | a change at hand: every guarantee on four backends, every unit test, the documentation |
| pairwise | `.ci/run`, on all Pythons except one | what depends on the interpreter: threads, clocks, forks, signals |
| full | `make test-full`, and pytest by hand | everything |

`--tier fast` and `--tier pairwise` leave out what stands below; without the option everything runs. A test whose file
or folder is named on the command line is never left out because of `LEFT_OUT`. Both tiers run the suite on the
`VARIANTS` that name them. The fast tier runs it with `--stube-quick`: its sweeps inject each operation at every fourth
line, and it draws fewer programs and histories at random (`stube/testing/_harness/effort.py`).
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase
from typing import Final, NamedTuple

FAST: Final = "fast"
PAIRWISE: Final = "pairwise"
TIERS: Final = (FAST, PAIRWISE)

EVEN: Final = "pairwise, even"
ODD: Final = "pairwise, odd"
"""The pairwise tier on a Python whose minor version is even, such as 3.12, and odd, such as 3.13."""

VARIANTS: Final[dict[str, tuple[str, ...]]] = {
    # The four kinds of backend; each holds every guarantee in the fast tier.
    "memory": (FAST, EVEN, ODD),
    "virtual": (FAST, EVEN, ODD),
    "sharded://?shards=2": (FAST,),
    "asyncio-coroutine": (FAST,),
    # The same code with another number, another loop, or another kind of dispatch. Each pair meets one other Python.
    "sharded://?shards=7": (EVEN,),
    "sharded://?shards=1": (ODD,),
    "uvloop-function": (EVEN,),
    "asyncio-function": (ODD,),
    "uvloop-coroutine": (),
}
"""On what the suite runs, and in which of the faster tiers. The full tier runs all of them."""


class LeftOut(NamedTuple):
    """Tests that a faster tier leaves out."""

    tests: str
    """A folder, a file or `file::test`; `*` stands for anything in a name."""
    why: str
    but: tuple[str, ...] = ()
    """Files that stay in."""


LEFT_OUT: Final[dict[str, tuple[LeftOut, ...]]] = {
    FAST: (
        LeftOut("tests/browser", "a browser takes four minutes, and the pages rarely change"),
        LeftOut("bench", "the bodies of the benchmark show no fault that the tests do not show"),
        LeftOut(
            "tests/test_broken_engines.py::test_every_other_broken_registry_is_caught_by_an_assertion",
            "each needs a second; a dozen of them stays in, and of all it is checked that their text is found",
        ),
        LeftOut(
            "tests/test_broken_engines.py::test_the_*_pass_on_a_copy_without_a_fault",
            "they ask whether the other faults are caught by more than a broken copy",
        ),
        LeftOut(
            "tests/test_outsider_faults.py::test_the_suite_names_every_other_fault",
            "there are hundreds; a dozen of them stays in, and of all it is checked that their text is found",
        ),
        LeftOut(
            "tests/test_outsider_faults.py::test_all_tests_that_name_a_fault_pass_without_one",
            "it asks whether the other faults are named by more than a broken outsider",
        ),
        LeftOut(
            "tests/test_examples.py::test_the_example_passes_a_selection_of_the_suite",
            "`.ci/run` runs the whole suite on the example, as it is installed",
        ),
        LeftOut(
            "tests/test_conformance_command.py::test_the_shortest_random_program_is_a_program_that_shows_it",
            "it needs five seconds, and differs from another test only in how the program was found",
        ),
        *(
            LeftOut(f"tests/{test}", "a tool for testing is tried on what it must find and accept; it needs a minute")
            for test in (
                "test_model.py::test_a_fault_is_found_and_a_short_program_shows_it",
                "test_model.py::test_every_correct_backend_agrees_with_the_model",
                "test_model.py::test_long_run_performs_its_operations_and_raises_differences",
                "test_chaos.py::test_a_fault_is_found_and_named",
            )
        ),
    ),
    PAIRWISE: (
        LeftOut("bench", "what it measures with is tested on one Python"),
        LeftOut("tests/browser", "the browser does not know which Python serves it"),
        LeftOut(
            "tests/test_*.py",
            "documentation, tools, hosts and the command line see the same sources as on the first Python",
            but=("tests/test_conformance.py", "tests/test_conformance_asyncio.py", "tests/test_architecture.py"),
        ),
    ),
}

FAST_FAULTS: Final = ("G1", "G2", "G3", "G4", "G5", "G6", "G8", "G10", "G15", "G20", "G21", "G24")
"""The guarantees whose first broken registry (`tests/broken_engines.py`) is tried in the fast tier, too."""

FAST_OUTSIDER_FAULTS: Final = ("G1", "G3", "G5", "G7", "G9", "G11", "G14", "G17", "G18", "G19", "G22", "G25")
"""The guarantees whose first fault in an outsider (`tests/outsiders/`) is tried in the fast tier, too."""


def variants(tier: str | None, choice: Iterable[str] = VARIANTS) -> list[str]:
    """Return which of the variants the suite runs on in a tier; None is the full one."""
    if tier is None:
        return list(choice)
    name = tier if tier != PAIRWISE else ODD if sys.version_info[1] % 2 else EVEN
    return [variant for variant in choice if name in VARIANTS[variant]]


def is_left_out(tier: str | None, test: str, arguments: Sequence[str]) -> bool:
    """Tell whether a tier leaves out a test, given by its node id, when pytest was given these arguments."""
    return any(
        _matches(entry.tests, test)
        and not any(_matches(file, test) for file in entry.but)
        and not any(_names(argument, entry.tests, test) for argument in arguments)
        for entry in LEFT_OUT.get(tier or "", ())
    )


def _matches(pattern: str, test: str) -> bool:
    where, _, name = pattern.partition("::")
    file, _, function = test.partition("::")
    in_place = fnmatchcase(file, where) or file.startswith(f"{where}/")
    return in_place and (not name or fnmatchcase(function.partition("[")[0], name))


def _names(argument: str, pattern: str, test: str) -> bool:
    """Tell whether an argument asks for this test by the place that a pattern leaves out, or by a part of it."""
    where = argument.partition("::")[0].rstrip("/")
    place = pattern.partition("::")[0]
    asked = test.startswith((argument, f"{where}/")) or test.partition("::")[0] == where
    return asked and (where == place or where.startswith(f"{place}/") or fnmatchcase(where, place))
