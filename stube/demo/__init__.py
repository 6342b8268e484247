"""The reference host application: a page with a clock and a chat, on any registry.

Read `app.py` first: it is how a host uses stube. `serve` runs it; `self_check` runs it against itself over
real HTTP and compares what the clients saw with what the registry says.
"""

try:
    from stube.demo.check import self_check
    from stube.demo.server import serve
except ModuleNotFoundError as exc:
    if exc.name not in {"httpx", "starlette", "uvicorn"}:
        raise
    raise ImportError(
        f"The demo needs the package {exc.name!r}, which is not installed. "
        "Install what it needs with: pip install 'stube[demo]'",
        name=exc.name,
    ) from exc

__all__ = ["self_check", "serve"]
