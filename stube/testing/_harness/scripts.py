"""A scenario that runs in a process of its own."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from typing import Any, Final

from stube.testing._harness.loops import loop_is_needed

__all__ = ["run_script"]

_LIMIT: Final = 15.0  # seconds; a script takes one, and several on a busy machine
_EXIT_SECONDS: Final = 3.0  # for a script that hangs to say where

_PRELUDE: Final = """
import json, os, sys
sys.path[:] = json.loads(os.environ.pop("STUBE_PATHS"))
import signal, threading, time, warnings
# These scripts fork while threads run, on purpose.
warnings.filterwarnings("ignore", message=".*fork.*", category=DeprecationWarning)
import stube
from stube.testing._harness import PATIENCE, Driver, create, create_apart, live_threads, run_threads, start

if os.environ.pop("STUBE_LOOP_IS_NEEDED", ""):
    start()

def make(**options):
    spec, always = json.loads(os.environ["STUBE_UNDER_TEST"])
    return create(spec, **{**always, **options})

def make_apart(**options):
    "Make a registry with an event loop of its own, which no other registry can block."
    spec, always = json.loads(os.environ["STUBE_UNDER_TEST"])
    return create_apart(spec, **{**always, **options})

def read_all(fd, seconds):
    "Read from the pipe until its end, or until nothing has come for so many seconds."
    import select
    data = b""
    while select.select([fd], [], [], seconds)[0]:
        chunk = os.read(fd, 65536)
        if not chunk:
            break
        data += chunk
    return data.decode()

def finish():
    "Print the instant at which the program should end; the last line of a script that does not close."
    print(time.time(), flush=True)

"""


def run_script(spec: object, options: Mapping[str, Any], body: str, *, limit: float = _LIMIT) -> str:
    """Run a scenario in a fresh interpreter and return what it printed.

    The script may use `make(**options)`, which makes the backend under test, and the other names of the prelude above.
    Asserts that the script ends within `limit` seconds, with code 0 and with nothing on stderr.
    """
    environment = dict(os.environ)
    environment.pop("PYTHONWARNINGS", None)
    # Not in PYTHONPATH, because a `sitecustomize` of the current folder would be run as soon as Python starts.
    environment["STUBE_PATHS"] = json.dumps([path or os.getcwd() for path in sys.path])
    # Not in the arguments, which every user of the machine can read, because a URL may hold a password.
    environment["STUBE_UNDER_TEST"] = json.dumps([spec, dict(options)])
    environment["STUBE_LOOP_IS_NEEDED"] = "yes" if loop_is_needed(spec, options) else ""
    command = [sys.executable, "-P", "-X", "faulthandler", "-c", _PRELUDE + body]
    with subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            stdout, stderr = process.communicate(timeout=limit)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"the script did not end within {limit:g} s:\n{_stacks(process)}") from None
    assert stderr == "", f"the script wrote on stderr:\n{stderr}"
    assert process.returncode == 0, f"the script ended with code {process.returncode}; it printed:\n{stdout}"
    return stdout


def _stacks(process: subprocess.Popen[str]) -> str:
    """End a script that hangs, and return where its threads stand, as its `faulthandler` writes it."""
    process.send_signal(getattr(signal, "SIGABRT", signal.SIGTERM))
    try:
        return process.communicate(timeout=_EXIT_SECONDS)[1]
    except subprocess.TimeoutExpired:  # its forked children keep the pipes open
        process.kill()
        return "its threads cannot be seen"
