"""A stube registry in an ASGI host: Starlette or FastAPI, with server-sent events.

A `Host` is what every host would otherwise write by hand: the registry's life inside the application's, the page that
never connects, the stream that is cut and comes back and misses nothing, and the shutdown that waits for nobody. The
application keeps its routes, its pages and its handlers:

    def boot(conversation, flow_id):                        # the first stream has come: begin
        conversation.schedule("tick", 1000)

    def dispatch(cid, event):                               # every delivery of the registry
        if conversation := host.conversations.get(cid):
            host.send(conversation, event.name, "hello")

    host = Host(dispatch, boot)
    app = FastAPI(lifespan=host.lifespan)

    @app.get("/")
    def page():
        return HTMLResponse(PAGE.replace("CID", host.open("home").cid))

    @app.get("/stream/{cid}")
    def stream(cid: str):
        return host.stream(cid)

`examples/fastapi_host.py` is that in full. Where a module has routes and no `Host` at hand,
`conversation_stream(request, cid)` is the stream of the application that the request came to.
"""

try:
    from stube.asgi._host import Host, conversation_stream
except ModuleNotFoundError as exc:
    if exc.name is None or exc.name.partition(".")[0] not in {"anyio", "sse_starlette", "starlette"}:
        raise
    raise ImportError(
        f"stube.asgi needs the package {exc.name!r}, which is not installed. "
        "Install what it needs with: pip install 'stube[asgi]'",
        name=exc.name,
    ) from exc

__all__ = ["Host", "conversation_stream"]
