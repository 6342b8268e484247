"""Open many streams on one process and measure lateness and memory, and whether anything is lost or stays behind.

    python -m bench.load                            2,000 streams for 60 s, on stube and on a host written by hand
    python -m bench.load --streams 100 --seconds 5  a first look
    python -m bench.load --host stube --backend memory

Each stream is a conversation with a clock, which ticks every second, and receives the messages of one common room. The
host is a process of its own (uvicorn, one worker, bench/load/hosts.py); the pages are in this process. The figures are
printed. With --json they are also written to a file, and the report beside the file, if there is one, is made again.
The exit code is 1 if anything was lost or stayed behind on either host.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import math
import os
import resource
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from datetime import date
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final

from bench.load import figures
from bench.load.client import LoadError, Stream, Tally, open_stream, request
from bench.results import machine

__all__ = ["main"]

ROOT: Final = Path(__file__).parents[2]
_FAILED, _INTERRUPTED = 1, 130
_AT_A_TIME: Final = 100  # pages that connect at the same time
_SPARE_FILES: Final = 100  # files that a process has open besides its streams
_PATIENCE: Final = 30.0  # seconds for a step that the host does immediately, unless it is overloaded
_REST: Final = 1.5  # seconds from a garbage collection, which stops the host, to the first measurement
_PACKAGES: Final = ("stube", "uvicorn", "h11", "starlette", "sse-starlette", "anyio")


def main(argv: Sequence[str] | None = None) -> int:
    options = _parser().parse_args(argv)
    try:
        _check_packages(options.loop)
        _allow_files(options.streams + _SPARE_FILES)
        load = asyncio.run(_load(options))
    except KeyboardInterrupt:
        print("\nInterrupted. Nothing was written.", file=sys.stderr)
        return _INTERRUPTED
    except LoadError as exc:
        print(f"\n{exc}", file=sys.stderr)
        return _FAILED
    _show(load)
    if options.json is not None:
        _write(load, options.json.absolute())
    wrong = figures.wrong(load)
    for sentence in wrong:
        print(sentence, file=sys.stderr)
    return _FAILED if wrong else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m bench.load", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--host", choices=[figures.STUBE, figures.BY_HAND, "both"], default="both")
    parser.add_argument("--streams", type=_number(int, 1), default=2000, help="streams open at the same time (2000)")
    parser.add_argument("--seconds", type=_number(float, 1), default=60.0, help="duration of the measurement (60)")
    parser.add_argument(
        "--messages-per-second", type=_number(float, 0), default=1.0, metavar="RATE", help="messages in the room (1)"
    )
    parser.add_argument("--loop", choices=["asyncio", "uvloop"], default="asyncio", help="the host's loop (asyncio)")
    parser.add_argument(
        "--backend", choices=["asyncio", "memory", "sharded"], default="asyncio", help="stube's registry (asyncio)"
    )
    parser.add_argument("--json", type=Path, metavar="PATH", help="where to write the figures")
    return parser


def _number(kind: Callable[[str], float], least: float) -> Callable[[str], float]:
    def parsed(text: str) -> float:
        number = kind(text)
        if not math.isfinite(number) or number < least:
            raise argparse.ArgumentTypeError(f"{text} is not a number of at least {least}. Give such a number.")
        return number

    parsed.__name__ = "number"  # argparse uses this name in its errors
    return parsed


def _check_packages(loop: str) -> None:
    needed = ["uvicorn", "starlette", "sse_starlette", *(["uvloop"] if loop == "uvloop" else [])]
    missing = [name for name in needed if find_spec(name) is None]
    if missing:
        raise LoadError(f"The hosts need {', '.join(missing)}. Install what they need: pip install 'stube[bench]'.")


def _allow_files(needed: int) -> None:
    """Raise the limit of open files as far as needed, in this process and so also in the host, its child."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < needed:
        raise LoadError(
            f"{needed - _SPARE_FILES:,} streams need {needed:,} open files, and this system allows a process {hard:,}. "
            f"Ask for at most {max(0, hard - _SPARE_FILES):,} with --streams, or raise the limit: ulimit -Hn {needed}."
        )
    if soft != resource.RLIM_INFINITY and soft < needed:
        resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))


# The measurement


async def _load(options: argparse.Namespace) -> dict[str, Any]:
    """Measure the hosts, one after the other, and return their figures."""
    chosen = [figures.STUBE, figures.BY_HAND] if options.host == "both" else [options.host]
    hosts = []
    for name in chosen:
        async with _served(name, options) as (port, pid):
            hosts.append(await _Measurement(name, port, pid, options).made())
    versions = {name: version(name) for name in (*_PACKAGES, *(["uvloop"] if options.loop == "uvloop" else []))}
    return {
        "format": figures.FORMAT,
        "made": date.today().isoformat(),
        "machine": machine() | {"versions": versions},
        "streams": options.streams,
        "seconds": options.seconds,
        "messages_per_second": options.messages_per_second,
        "loop": options.loop,
        "hosts": hosts,
    }


@asynccontextmanager
async def _served(name: str, options: argparse.Namespace) -> AsyncIterator[tuple[int, int]]:
    """Run a host in a process of its own; gives its port and its process id."""
    command = ["-m", "bench.load.hosts", name, "--backend", options.backend, "--loop", options.loop]
    # In a session of its own, so that Ctrl-C does not reach the host directly. The host stops when its standard input
    # ends, which also happens when this process is killed.
    host = await asyncio.create_subprocess_exec(
        sys.executable, *command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=ROOT, start_new_session=True
    )
    assert host.stdin is not None
    assert host.stdout is not None
    try:
        try:
            port = int(await asyncio.wait_for(host.stdout.readline(), _PATIENCE))
        except (TimeoutError, ValueError):
            raise LoadError(f"The host {name} does not start. See its output above.") from None
        yield port, host.pid
    finally:
        host.stdin.close()
        try:
            await asyncio.wait_for(host.wait(), _PATIENCE)
        except (TimeoutError, asyncio.CancelledError):
            with suppress(ProcessLookupError):
                host.kill()
            raise


class _Measurement:
    """The measurement of one host, from its first stream until nothing of the streams is left."""

    def __init__(self, name: str, port: int, pid: int, options: argparse.Namespace) -> None:
        self._name, self._port, self._pid, self._options = name, port, pid, options
        self._tally = Tally()
        self._streams: list[Stream] = []
        self._doing = "starts"
        self._accepted: dict[int, int] = {}  # the instant at which each message was accepted, by its number

    async def made(self) -> dict[str, Any]:
        """Measure the host and return its figures."""
        progress = asyncio.create_task(self._tell())
        try:
            return await self._measured()
        finally:
            self._close()
            progress.cancel()

    async def _measured(self) -> dict[str, Any]:
        before = await self._warm_up()
        rss = {"before": before["rss"]}
        began = time.monotonic()
        self._doing = "opens its streams"
        await self._open(self._options.streams)
        opening_s = time.monotonic() - began
        rss["open"] = (await self._figures(collect=True))["rss"]
        gc.collect()
        gc.freeze()  # pauses of this process for collections would be measured as lateness of the host
        try:
            await asyncio.sleep(_REST)
            cpu, pages_cpu = await self._watch()
            await self._drain()
        finally:
            gc.unfreeze()
        rss["later"] = (await self._figures(collect=True))["rss"]
        lost, each = self._lost(), [stream.counted for stream in self._streams]
        after, gone_s = await self._leave(before["tasks"])
        rss["gone"] = after["rss"]
        tally = self._tally
        spread = [tally.messages[number].last - at for number, at in self._accepted.items() if number in tally.messages]
        return {
            "host": self._name,
            "backend": self._options.backend if self._name == figures.STUBE else None,
            "opening_s": opening_s,
            "handler_us": figures.percentiles(tally.at_handler),
            "page_us": figures.percentiles(tally.at_page),
            "spread_us": figures.percentiles(spread, (50, 99, 100)),
            "ticks": sum(each),
            "fewest_ticks": min(each),
            "most_ticks": max(each),
            "messages": len(self._accepted),
            "cpu": cpu,
            "pages_cpu": pages_cpu,
            "rss": rss,
            "lost": lost,
            "held": {
                **after["held"],
                "tasks": max(0, after["tasks"] - before["tasks"]),
                "connections": after["connections"],
            },
            "gone_s": gone_s,
            "ledger": after["ledger"],
        }

    # The parts of the measurement, in their order.

    async def _warm_up(self) -> dict[str, Any]:
        """Do everything once, so that the memory that the first stream allocates for good is not counted for the
        others; return the figures afterwards."""
        tally, self._tally = self._tally, Tally()
        await self._open(5)
        await self._say(1)
        await asyncio.sleep(1.2)  # a tick
        if not self._tally.messages or not all(stream.ticks for stream in self._streams):
            await asyncio.sleep(_REST)
        self._close()
        tasks, found = -1, {}
        async for found in self._looks(_PATIENCE):
            if found["tasks"] == tasks and not any(found["held"].values()) and not found["connections"]:
                break
            tasks = found["tasks"]
        else:
            raise LoadError(f"The host {self._name} keeps something of its first streams: {found}. Fix the host.")
        self._tally, self._accepted = tally, {}
        return await self._figures(collect=True)

    async def _open(self, count: int) -> None:
        room = asyncio.Semaphore(_AT_A_TIME)

        async def one() -> None:
            async with room:
                self._streams.append(await open_stream(self._port, self._tally))

        async def all_of_them() -> None:
            try:
                async with asyncio.TaskGroup() as group:
                    for _ in range(count):
                        group.create_task(one())
            except* (LoadError, OSError) as failed:
                raise LoadError(f"Not all streams could be opened: {failed.exceptions[0]}") from failed

        patience = _PATIENCE + count * 0.05
        try:
            await asyncio.wait_for(all_of_them(), patience)
        except TimeoutError:
            raise LoadError(
                f"Only {len(self._streams):,} of {count:,} streams were open after {patience:.0f} s. "
                "Ask for fewer with --streams."
            ) from None

    async def _watch(self) -> tuple[float, float]:
        """Measure for the given time; return the CPU time of the host and of the pages, in seconds per second."""
        seconds, tally = self._options.seconds, self._tally
        self._doing = "is measured"
        host, own, began = (await self._figures())["cpu_s"], time.process_time(), time.monotonic()
        tally.begin = time.monotonic_ns()
        tally.end = tally.begin + int(seconds * 1e9)
        await self._talk(began)
        await asyncio.sleep(began + seconds - time.monotonic())
        own, lasted = time.process_time() - own, time.monotonic() - began
        host = (await self._figures())["cpu_s"] - host
        return host / lasted, own / lasted

    async def _talk(self, began: float) -> None:
        """Send messages to the room at the given rate, one after the other, until the time is over."""
        rate = self._options.messages_per_second
        for number in range(1, math.ceil(self._options.seconds * rate) + 1):
            await asyncio.sleep(began + (number - 0.5) / rate - time.monotonic())
            if time.monotonic() >= began + self._options.seconds:
                break
            await self._say(number)

    async def _say(self, number: int) -> None:
        self._accepted[number] = int(await request(self._port, "POST", "/say", str(number)))

    async def _drain(self) -> None:
        """Wait for events on their way: a stream with a tick that was due after the end has all earlier ticks."""
        self._doing = "sends the rest"
        until = time.monotonic() + _PATIENCE
        while time.monotonic() < until and not all(map(self._has_all, self._streams)):
            await asyncio.sleep(0.05)

    def _has_all(self, stream: Stream) -> bool:
        return stream.due >= self._tally.end and stream.messages >= len(self._accepted)

    def _lost(self) -> dict[str, int]:
        """Return the number of faults of each kind; the number in each message shows whether it is the next one."""
        tally, streams = self._tally, self._streams
        heard = sum(message.streams for message in tally.messages.values())
        return {
            "ticks missing, doubled or out of order": tally.ticks_out_of_order,
            "clocks that stopped": sum(stream.due < tally.end for stream in streams),
            "messages missing, doubled or out of order": tally.messages_out_of_order,
            "messages that did not arrive": max(0, len(self._accepted) * len(streams) - heard),
            "streams that were told of a gap": tally.gaps,
            "streams that were cut": tally.cut,
        }

    def _close(self) -> None:
        for stream in self._streams:
            stream.leave()
        self._streams.clear()

    async def _leave(self, tasks: int) -> tuple[dict[str, Any], float | None]:
        """Close all pages; return the host's figures and the seconds until nothing was left, or None if some was."""
        self._doing = "is being left"
        self._close()
        left = time.monotonic()
        async for found in self._looks(_PATIENCE):
            at = time.monotonic()
            if found["tasks"] <= tasks and not any(found["held"].values()) and not found["connections"]:
                return await self._figures(collect=True), at - left
        return await self._figures(collect=True), None

    # The host's own figures.

    async def _looks(self, patience: float) -> AsyncIterator[dict[str, Any]]:
        """Yield the host's figures twenty times a second, for `patience` seconds."""
        until = time.monotonic() + patience
        while time.monotonic() < until:
            await asyncio.sleep(0.05)
            yield await self._figures()

    async def _figures(self, collect: bool = False) -> dict[str, Any]:
        """Return the host's figures, without the connection that asks for them; `collect` collects garbage first."""
        found: dict[str, Any] = json.loads(await request(self._port, "GET", "/figures" + "?collect" * collect))
        found["connections"] -= 1
        found["rss"] = _resident(self._pid)
        return found

    async def _tell(self) -> None:
        """Print a line of progress on stderr every five seconds."""
        began = time.monotonic()
        print(f"{self._name}: process {self._pid}, port {self._port}", file=sys.stderr, flush=True)
        while True:
            await asyncio.sleep(5)
            tally = self._tally
            print(
                f"{self._name}: {time.monotonic() - began:3.0f} s, {self._doing}; {len(self._streams):,} streams, "
                f"{len(tally.at_page):,} ticks, {len(self._accepted):,} messages, "
                f"{tally.ticks_out_of_order + tally.messages_out_of_order + tally.cut} faults",
                file=sys.stderr,
                flush=True,
            )


def _resident(pid: int) -> int | None:
    """Return the bytes of memory that a process occupies; None where the system does not tell."""
    try:
        return int(Path(f"/proc/{pid}/statm").read_text(encoding="ascii").split()[1]) * resource.getpagesize()
    except OSError:
        pass
    try:
        said = subprocess.run(["ps", "-o", "rss=", "-p", str(pid)], capture_output=True, text=True, check=True).stdout
        return int(said) * 1024
    except (OSError, ValueError, subprocess.CalledProcessError):
        return None


# The output


def _show(load: dict[str, Any]) -> None:
    """Print the figures of the hosts side by side."""
    table = [["", *figures.names(load)], *([cell.replace("**", "") for cell in row] for row in figures.rows(load))]
    wide = [max(map(len, column)) for column in zip(*table, strict=True)]
    for line in table:
        cells = [cell.ljust(width) for cell, width in zip(line, wide, strict=True)]
        print("  ".join(cells).rstrip())
    for host in load["hosts"]:
        if host["ledger"]:
            print(f"the ledger: {host['ledger']}")


def _write(load: dict[str, Any], file: Path) -> None:
    """Write the file atomically, and make the report beside it again."""
    file.parent.mkdir(parents=True, exist_ok=True)
    half = file.with_name(f"{file.name}.half")
    try:
        half.write_text(json.dumps(load, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        os.replace(half, file)
    finally:
        half.unlink(missing_ok=True)
    print(f"Written: {file}", flush=True)
    results = file.with_name("results.json")
    if results.exists() and file.name == "load.json":
        subprocess.run([sys.executable, str(ROOT / "bench" / "report.py"), str(results)], check=False, cwd=ROOT)


if __name__ == "__main__":
    sys.exit(main())
