"""A page with a clock and a chat, on WSGI: a thread for each stream. Run it with: python wsgi_host.py"""

import queue
from collections.abc import Callable, Iterator
from socketserver import ThreadingMixIn
from time import strftime
from typing import Any
from urllib.parse import parse_qs
from wsgiref.simple_server import WSGIServer, make_server

from stube import Conversation, Conversations, Event, create_registry

PAGE = """<!doctype html><title>stube</title><h1 id=clock></h1><input id=text><pre id=chat></pre><script>
const stream = new EventSource("/stream/CID"), on = (name, show) => stream.addEventListener(name, (e) => show(e.data))
on("tick", (time) => clock.textContent = time), on("said", (line) => chat.append(line, "\\n"))
stream.onerror = () => location.reload(), onpagehide = () => navigator.sendBeacon("/leave/CID")
text.onchange = () => fetch("/say?text=" + encodeURIComponent(text.value), {method: "POST"})</script>"""


def dispatch(cid: str, event: Event) -> None:  # on the registry's thread, so it waits for no page
    conversation, outbox = conversations.get(cid), outboxes.get(cid)
    if conversation is None or outbox is None:
        return
    if event.name == "sweep":
        if conversation.take_flow() is not None:  # its stream has not come
            conversation.end()
        return
    data = strftime("%X") if event.name == "tick" else " ".join(str(event.payload).split())
    try:
        outbox.put_nowait(f"event: {event.name}\ndata: {data}\n\n".encode())
    except queue.Full:
        conversation.end()  # its page does not read


def ended(conversation: Conversation) -> None:
    outbox = outboxes.pop(conversation.cid)
    if not outbox.full():
        outbox.put_nowait(b"")  # wakes its stream, which then ends


def stream(conversation: Conversation, outbox: "queue.Queue[bytes]") -> Iterator[bytes]:
    with conversation:  # it ends with its stream
        conversation.subscribe("lobby", "said")
        conversation.every("tick", 1000)
        while not conversation.ended:
            yield outbox.get()  # no need of heartbeats: the clock writes every second, and fails when the page is gone


def application(environ: dict[str, Any], start_response: Callable[..., object]) -> Iterator[bytes]:
    route, _, cid = environ["PATH_INFO"].lstrip("/").partition("/")
    conversation, status, kind, body = conversations.get(cid), "200 OK", "text/html; charset=utf-8", iter([b""])
    if route == "":
        conversation = conversations.open()
        outboxes[conversation.cid] = queue.Queue(100)
        conversation.put_flow("home")
        conversation.schedule("sweep", 10_000)
        body = iter([PAGE.replace("CID", conversation.cid).encode()])
    elif route == "say" and environ["REQUEST_METHOD"] == "POST":
        registry.publish("lobby", parse_qs(environ["QUERY_STRING"])["text"][0])
    elif route == "leave" and conversation is not None:
        conversation.end()
    elif route == "stream" and conversation is not None and conversation.take_flow() is not None:
        kind, body = "text/event-stream", stream(conversation, outboxes[cid])
    else:
        status = "404 Not Found"
    start_response(status, [("Content-Type", kind), ("Cache-Control", "no-store")])
    return body


class Server(ThreadingMixIn, WSGIServer):
    daemon_threads = True


outboxes: dict[str, "queue.Queue[bytes]"] = {}
registry = create_registry("memory")
conversations = Conversations(registry, on_end=ended)
registry.install_dispatch(dispatch)
if __name__ == "__main__":
    make_server("127.0.0.1", 8000, application, Server).serve_forever()
