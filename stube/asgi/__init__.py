"""A stube registry in an ASGI host: Starlette or FastAPI, with server-sent events.

A `Host` does what every host would otherwise write by hand. It opens and closes the registry with the application, ends
the conversation of a page that never connects, lets a cut stream come back without missing an event, and shuts down in
bounded time. The application keeps its routes, its pages and its handlers:

    def boot(conversation, flow_id):                        # called when the first stream connects
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

`examples/fastapi_host.py` is the whole program. A module that has routes but no `Host` at hand calls
`conversation_stream(request, cid)`, which finds the host of the application that received the request.
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
