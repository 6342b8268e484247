"""What all tests share: the option `--tier`, for which `tests/tiers.py` lists what to leave out, and SIGINT."""

from __future__ import annotations

import gc
import os
import signal
from pathlib import Path
from typing import Any

import pytest

from tests.tiers import FAST, TIERS, is_left_out

_WORKERS_NAMED = "stube_tier_named"
_named_key = pytest.StashKey[list[str]]()  # the files, folders and tests that the command line names


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.getgroup("stube").addoption(
        "--tier", choices=TIERS, help="leave out what tests/tiers.py lists for this tier; by default everything runs"
    )


def pytest_configure(config: pytest.Config) -> None:
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        # A shell starts a job in the background with Ctrl-C ignored. The programs that tests start and interrupt would
        # inherit that.
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if config.getoption("tier") == FAST:
        config.option.stube_quick = True
    from_controller: Any = getattr(config, "workerinput", None)
    if from_controller is not None:  # a worker of pytest-xdist does not see the command line
        named = from_controller[_WORKERS_NAMED]
    elif config.args_source is pytest.Config.ArgsSource.ARGS:
        named = [_in_the_tree(argument, config) for argument in config.args]
    else:
        named = []
    config.stash[_named_key] = named


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """Use more workers than processors, because tests wait for a third of their time.

    The fast tier uses two for each processor. The others have tests in a browser and tests of memory and speed, which
    leave fewer gaps: three for each two.
    """
    processors = os.cpu_count() or 1
    return 2 * processors if config.getoption("tier") == FAST else -(-3 * processors // 2)


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: Any) -> None:
    node.workerinput[_WORKERS_NAMED] = node.config.stash[_named_key]


def pytest_report_header(config: pytest.Config) -> str | None:
    tier = config.getoption("tier")
    return tier and f"tier: {tier}, which leaves out what tests/tiers.py lists (everything: make test-full)"


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    tier, named = config.getoption("tier"), config.stash[_named_key]
    left_out = {item for item in items if is_left_out(tier, item.nodeid, named)}
    if left_out:
        items[:] = [item for item in items if item not in left_out]
        config.hook.pytest_deselected(items=list(left_out))


def pytest_collection_finish() -> None:
    """Keep the collected tests, half a million objects that stay, out of every collection of garbage in a test."""
    gc.collect()
    gc.freeze()


def _in_the_tree(argument: str, config: pytest.Config) -> str:
    """Return an argument of pytest as a node id has it: relative to the root, with slashes."""
    place, colons, test = argument.partition("::")
    path = os.path.relpath(Path(config.invocation_params.dir, place), config.rootpath)
    return Path(path).as_posix() + colons + test
