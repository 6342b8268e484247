"""The command `stube`: lists the installed backends, tests one of them, and runs the demo on any.

Exit codes: 0 all is well; 1 a check failed, or no backend is installed; 2 a wrong usage or configuration; 130
interrupted; 141 broken pipe. A mistake of the user is reported in a message on stderr, never in a traceback.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final, NoReturn

from stube import BackendInfo, StubeError, __version__, available_backends
from stube._secrets import redacted
from stube._typing import override

__all__ = ["main"]

FAILED: Final = 1
WRONG: Final = 2
INTERRUPTED: Final = 130  # as a shell reports SIGINT
UNREAD: Final = 141  # as a shell reports SIGPIPE
DEFAULT_CLIENTS: Final = 20
LONGEST_LIMIT: Final = 86_400  # seconds
MOST_CLIENTS: Final = 100  # what the self-check allows; repeated here so that the parser does not import it

_EXAMPLES: Final = """\
examples:
  stube backends                     what is installed, and why something does not load
  stube conformance memory           test a backend, guarantee by guarantee
  stube demo                         a page with a clock and a chat on http://127.0.0.1:8000/
  stube demo --self-check            the demo tests itself with 20 clients and says what it saw

A command tells more with --help: stube demo --help
"""

_BACKENDS: Final = """\
Lists every installed backend: its name, the distribution that brings it, and whether it loads. Backends are entry
points of the group 'stube.backends', so a distribution of your own appears here when it is installed.
"""

_BACKENDS_EXAMPLES: Final = """\
examples:
  stube backends                     a table for people
  stube backends --json              the same for programs, with the options of each backend

exit codes: 0 found some, 1 found none
"""

_CONFORMANCE: Final = """\
Runs the conformance suite on a backend and reports for each guarantee whether it is held, not promised or broken, and
how. The suite runs in a process of its own, so that a backend which deadlocks or crashes spoils only one test.
"""

_CONFORMANCE_EXAMPLES: Final = """\
examples:
  stube conformance memory
  stube conformance mypackage.backend:create --html report.html
  stube conformance 'memory://?max_pending=10000' --guarantee G5 --guarantee G7
  stube conformance mypackage.backend:create -x -k cancel
  stube conformance mypackage.backend:create --reproduce .
  stube conformance memory -q --json report.json
  stube conformance asyncio --loop uvloop --dispatch coroutine

exit codes: 0 everything promised is held, 1 something is broken or unproven, 2 a wrong usage or configuration,
130 interrupted
"""

_DEMO: Final = """\
Serves a page with a clock and a chat, on the registry of your choice. With --self-check, clients of its own use that
page, and what they saw is compared with the figures of the registry.
"""

_DEMO_EXAMPLES: Final = """\
the registry is the first of these that is given:
  --registry SPEC                    a name, a URL or package.module:factory
  --config FILE                      a TOML file with a table such as
                                         [registry]
                                         backend = "memory"
                                         max_pending = 10000
  STUBE_REGISTRY                     an environment variable with a SPEC
  memory                             when nothing is given

examples:
  stube demo --port 9000
  stube demo --registry 'memory://?max_pending=10000'
  stube demo --registry virtual      only a page moves its clock
  stube demo --registry mypackage.backend:create
  STUBE_REGISTRY=memory stube demo --self-check --clients 50 --json

exit codes: 0 all is well, 1 the self-check found a difference, 2 a wrong usage or configuration
"""


class _Mistake(Exception):  # noqa: N818 - an answer to the person at the command line, not a fault
    """A mistake of the user; the message says how to correct it."""


class _Parser(argparse.ArgumentParser):
    """A parser whose errors do not show the password of a URL."""

    @override
    def error(self, message: str) -> NoReturn:
        subject, colon, rest = message.partition(": ")
        super().error(subject + colon + redacted(rest))


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command.

    Args:
        argv: the arguments behind the command's name; those of the process when it is None.

    Returns:
        The exit code.
    """
    try:
        try:
            arguments = _parser().parse_args(argv)
            code: int = arguments.run(arguments)
        except SystemExit as exc:  # argparse has printed the message
            code = exc.code if isinstance(exc.code, int) else WRONG
        # If the reader is gone, this flush raises; the interpreter's own flush at exit could not be caught.
        sys.stdout.flush()
    except (_Mistake, StubeError) as exc:
        print(f"stube: {exc}", file=sys.stderr)
        return WRONG
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        _silence_stdout()
        return UNREAD
    return code


def _silence_stdout() -> None:
    """Redirect stdout to the null device, because the interpreter flushes it once more at exit."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, sys.stdout.fileno())
    except (OSError, ValueError):  # a stand-in for stdout without a descriptor, or with a closed one
        pass
    finally:
        os.close(nowhere)


# The arguments


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="stube",
        description="Timers, publish/subscribe and page-to-stream hand-off for live conversations.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"stube {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    _add_backends(commands)
    _add_conformance(commands)
    _add_demo(commands)
    return parser


def _add_command(commands: Any, name: str, run: Callable[[argparse.Namespace], int], **texts: str) -> Any:
    command = commands.add_parser(
        name, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False, **texts
    )
    # error() of the subcommand prints its usage. It is passed on for mistakes that only the running command finds.
    command.set_defaults(run=run, error=command.error)
    return command


def _add_backends(commands: Any) -> None:
    command = _add_command(
        commands,
        "backends",
        _backends,
        help="list the installed backends",
        description=_BACKENDS,
        epilog=_BACKENDS_EXAMPLES,
    )
    command.add_argument("--json", action="store_true", help="print JSON instead of a table")


def _add_conformance(commands: Any) -> None:
    command = _add_command(
        commands,
        "conformance",
        _conformance,
        help="test a backend, guarantee by guarantee",
        description=_CONFORMANCE,
        epilog=_CONFORMANCE_EXAMPLES,
    )
    command.add_argument("spec", metavar="SPEC", help="the backend: a name, a URL or package.module:factory")
    command.add_argument(
        "--guarantee", action="append", default=[], metavar="NUMBER", help="test only this one, such as G5 (repeatable)"
    )
    command.add_argument("--json", type=Path, metavar="FILE", help="write a report for programs")
    command.add_argument("--html", type=Path, metavar="FILE", help="write a report as a page")
    command.add_argument(
        "--limit", type=_limit, default=60.0, metavar="SECONDS", help="for one test (default: %(default)g)"
    )
    command.add_argument(
        "-k",
        dest="keyword",
        default="",
        metavar="EXPRESSION",
        help="run only the tests whose names fit",
    )
    command.add_argument("-x", "--exitfirst", action="store_true", help="stop at the first test that fails")
    command.add_argument(
        "--reproduce", type=Path, metavar="FOLDER", help="write the shortest program that shows it, for what is broken"
    )
    command.add_argument("-q", "--quiet", action="store_true", help="show no progress")
    asynchronous = command.add_argument_group("a backend on an event loop")
    asynchronous.add_argument(
        "--loop", choices=("asyncio", "uvloop"), default="asyncio", help="which loop serves it (default: %(default)s)"
    )
    asynchronous.add_argument(
        "--dispatch",
        choices=("function", "coroutine"),
        default="function",
        help="what the tests install (default: %(default)s)",
    )


def _add_demo(commands: Any) -> None:
    command = _add_command(
        commands,
        "demo",
        _demo,
        help="serve the demo page, or let it check itself",
        description=_DEMO,
        epilog=_DEMO_EXAMPLES,
    )
    registry = command.add_mutually_exclusive_group()
    registry.add_argument("--registry", metavar="SPEC", help="the registry to run on")
    registry.add_argument("--config", metavar="FILE", help="a TOML file that describes it in [registry]")
    command.add_argument("--host", default="127.0.0.1", help="where to listen (default: %(default)s)")
    command.add_argument("--port", type=_port, default=8000, help="0 for any free one (default: %(default)s)")
    check = command.add_argument_group("self-check")
    check.add_argument("--self-check", action="store_true", help="run the checks instead of serving")
    check.add_argument("--clients", type=_clients, metavar="N", help="how many clients it has (default: 20)")
    check.add_argument("--json", action="store_true", help="print its report as JSON")


def _port(text: str) -> int:
    if not text.isdecimal() or int(text) > 65_535:
        raise argparse.ArgumentTypeError(f"{text!r} is not a port; give one from 0 to 65535")
    return int(text)


def _clients(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= MOST_CLIENTS:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of clients; give one from 1 to {MOST_CLIENTS}")
    return int(text)


def _limit(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0
    if not 0 < seconds <= LONGEST_LIMIT:
        raise argparse.ArgumentTypeError(f"{text!r} is not a time limit; give seconds, at most {LONGEST_LIMIT}")
    return seconds


# The commands


def _backends(arguments: argparse.Namespace) -> int:
    found = available_backends()
    if arguments.json:
        print(json.dumps([asdict(info) for info in found], indent=2))
    elif found:
        print("\n".join(_table(found)))
    else:
        print("No backend is installed. Reinstall stube, which brings some.", file=sys.stderr)
    return 0 if found else FAILED


def _table(found: Iterable[BackendInfo]) -> list[str]:
    rows = [("NAME", "DISTRIBUTION", "VERSION", "LOADS")] + [
        (info.name, info.distribution, info.version, "yes" if info.loads else f"no: {info.error}") for info in found
    ]
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    return ["  ".join([*(row[i].ljust(widths[i]) for i in range(3)), row[3]]) for row in rows]


def _conformance(arguments: argparse.Namespace) -> int:
    try:
        from stube.testing._conformance.command import conform
        from stube.testing._contract.guarantees import unknown_guarantee
    except ImportError as exc:
        _refuse_without(exc, "The conformance suite", "testing")
    wrong = unknown_guarantee(arguments.guarantee)
    if wrong is not None:
        arguments.error(f"argument --guarantee: {wrong}")
    try:
        return conform(
            arguments.spec,
            guarantees=arguments.guarantee,
            keyword=arguments.keyword,
            first_only=arguments.exitfirst,
            limit=arguments.limit,
            json_file=arguments.json,
            html_file=arguments.html,
            reproductions=arguments.reproduce,
            quiet=arguments.quiet,
            loop=arguments.loop,
            dispatch=arguments.dispatch,
        )
    except ModuleNotFoundError as exc:
        _refuse_without(exc, "The conformance suite", "testing")


def _refuse_without(exc: ImportError, what: str, extra: str) -> NoReturn:
    """Report the missing package and the extra that installs it; raise the error itself if no extra does."""
    missing = exc.name or ""
    # If a module of stube itself is missing, the installation is broken, and no extra would repair it.
    if not missing or missing.partition(".")[0] == "stube":
        raise exc
    raise _Mistake(
        f"{what} needs the package {missing!r}, which is not installed: pip install 'stube[{extra}]'"
    ) from exc


def _demo(arguments: argparse.Namespace) -> int:
    if not arguments.self_check and (arguments.json or arguments.clients is not None):
        arguments.error("--clients and --json belong to --self-check; add it, or leave them out")
    spec = arguments.registry if arguments.config is None else _registry_table(arguments.config)
    try:
        from stube.demo import self_check, serve
    except ImportError as exc:
        _refuse_without(exc, "The demo", "demo")
    if arguments.self_check:
        return self_check(spec, clients=arguments.clients or DEFAULT_CLIENTS, json=arguments.json)
    return serve(spec, host=arguments.host, port=arguments.port)


def _registry_table(path: str) -> Mapping[str, object]:
    """Read the table `[registry]` of a TOML file."""
    import tomllib

    try:
        with open(path, "rb") as file:
            document = tomllib.load(file)
    except OSError as exc:
        raise _Mistake(f"The file {path!r} cannot be read: {exc.strerror}. Give a TOML file's path.") from exc
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as exc:
        raise _Mistake(f"The file {path!r} is not valid TOML: {exc}. Correct it there.") from exc
    table = document.get("registry")
    if not isinstance(table, dict):
        raise _Mistake(f'The file {path!r} has no table [registry]. Add one with backend = "memory".')
    return table
