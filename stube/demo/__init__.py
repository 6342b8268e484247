"""The reference host application: a page with a clock and a chat, on any registry.

Read `app.py` first: it is how a host uses stube. `serve` runs it; `self_check` runs it against itself over
real HTTP and compares what the clients saw with what the registry says.
"""

try:
    from stube.demo.check import self_check
    from stube.demo.server import serve
except ImportError as exc:
    # stube.asgi reports a missing package with the name of its own extra. Name the demo's extra instead.
    cause = exc if isinstance(exc, ModuleNotFoundError) else exc.__cause__
    missing = cause.name if isinstance(cause, ModuleNotFoundError) and cause.name is not None else ""
    if missing.partition(".")[0] not in {"anyio", "httpx", "sse_starlette", "starlette", "uvicorn"}:
        raise
    raise ImportError(
        f"The demo needs the package {missing!r}, which is not installed. "
        "Install what it needs with: pip install 'stube[demo]'",
        name=missing,
    ) from exc

__all__ = ["self_check", "serve"]
