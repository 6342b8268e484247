"""A page with a clock and a chat, on FastAPI. Run it with: uvicorn fastapi_host:app"""

from time import strftime

from fastapi import FastAPI, Response

from stube import Conversation, Event
from stube.asgi import Host

PAGE = """<!doctype html><title>stube</title><h1 id=clock></h1><input id=text><pre id=chat></pre><script>
const stream = new EventSource("/stream/CID"), on = (name, show) => stream.addEventListener(name, (e) => show(e.data))
on("tick", (time) => clock.textContent = time), on("said", (line) => chat.append(line, "\\n"))
on("gap", () => location.reload()), onpagehide = () => navigator.sendBeacon("/leave/CID")
text.onchange = () => fetch("/say?text=" + encodeURIComponent(text.value), {method: "POST"})</script>"""


def boot(conversation: Conversation, flow_id: str) -> None:
    conversation.every("tick", 1000)
    conversation.subscribe("lobby", "said")


def dispatch(cid: str, event: Event) -> None:
    if conversation := host.conversations.get(cid):
        host.send(conversation, event.name, strftime("%X") if event.name == "tick" else str(event.payload))


host = Host(dispatch, boot)
app = FastAPI(lifespan=host.lifespan)
app.add_api_route("/stream/{cid}", host.stream)
app.add_api_route("/leave/{cid}", host.end, methods=["POST"])


@app.get("/")
def page() -> Response:
    return Response(PAGE.replace("CID", host.open("home").cid), 200, {"Cache-Control": "no-store"}, "text/html")


@app.post("/say")
def say(text: str) -> int:
    return host.registry.publish("lobby", text)
