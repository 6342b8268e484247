"""The server that runs the application: for people, until Ctrl-C, and for the self-check, in a thread."""

from __future__ import annotations

import socket
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import uvicorn
from starlette.applications import Starlette

import stube
from stube.demo.app import create_app

__all__ = ["open_registry", "running", "serve"]


def _server(app: Starlette) -> uvicorn.Server:
    # No log_config, because the server must not set up the logging of the process.
    config = uvicorn.Config(app, log_config=None, log_level="warning", access_log=False, ws="none")
    config.lifespan, config.timeout_graceful_shutdown = "on", 5
    return uvicorn.Server(config)


def open_registry(spec: str | Mapping[str, object] | None) -> stube.Backend:
    """Open the registry of a spec, or, if the spec is None, that of the environment."""
    return stube.registry_from_env() if spec is None else stube.create_registry(spec)


@contextmanager
def running(app: Starlette) -> Iterator[str]:
    """Serve the application in a thread, on a loopback port that the system chooses; gives its URL."""
    server = _server(app)
    # The socket listens from here on: a client that connects before the server has started waits in its backlog.
    with socket.create_server(("127.0.0.1", 0), backlog=512) as listener:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        thread = threading.Thread(target=server.run, args=([listener],), name="stube-demo-server", daemon=True)
        thread.start()
        try:
            yield url
        finally:
            server.should_exit = True
            thread.join(10)


def serve(registry_spec: str | Mapping[str, object] | None, *, host: str, port: int) -> int:
    """Serve the page until Ctrl-C.

    Args:
        registry_spec: a spec for `stube.create_registry`; None for the spec in the environment.
        host: the address to listen on.
        port: the port; 0 for a port that the system chooses.

    Returns:
        The exit code: 0 after Ctrl-C, 2 when it cannot serve with these arguments.
    """
    with open_registry(registry_spec) as registry:
        try:
            family = socket.AF_INET6 if ":" in host else socket.AF_INET
            listener = socket.create_server((host, port), family=family, backlog=512)
        except (OSError, OverflowError) as exc:
            print(f"Cannot listen on {host} port {port}: {exc}. Choose another address.", file=sys.stderr)
            return 2
        with listener:
            shown = f"[{host}]" if ":" in host else host
            print(f"Serving http://{shown}:{listener.getsockname()[1]}/ (Ctrl-C ends it)", flush=True)
            try:
                _server(create_app(registry)).run([listener])
            except KeyboardInterrupt:
                pass  # uvicorn has stopped in good order; it raises the signal again afterwards
    return 0
