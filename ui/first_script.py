"""A script that runs before Gradio's own: what ``launch(head=...)`` takes runs only after it."""

from __future__ import annotations

from starlette.types import ASGIApp, Message, Receive, Scope, Send

# Gradio closes its streams when a page may be left, and then reports a broken connection in red. A page
# that stays after all, because the link was a download or the visitor cancelled it, continues without its run and is
# reloaded. So the event is hidden from Gradio: the browser itself ends the streams of a page that is really left.
# A page that is opened for a run shows nothing else before it: see assets/sessions.css. One that is reloaded shows
# no recording while it looks for the visitor's own run.
SCRIPT = (
    b'<script>addEventListener("beforeunload", (event) => event.stopImmediatePropagation());'
    b'if (new URLSearchParams(location.search).has("run")) document.documentElement.classList.add("ss-linked");'
    b'try { if (sessionStorage.getItem("specstream-visitor")) {'
    b'document.documentElement.classList.add("ss-returning");'
    b'setTimeout(() => document.documentElement.classList.remove("ss-returning"), 8000); } } catch {}'
    b"</script><style>.ss-returning .ss-stage {visibility: hidden}</style>"
    # The font is there before the parts of the page that it lays out: until then a wider one would break the lines of
    # a phone elsewhere, and everything below them would move.
    b'<link rel="preload" as="font" crossorigin href="static/fonts/SourceSansPro/SourceSansPro-Regular.woff2">'
    b'<link rel="preload" as="font" crossorigin href="static/fonts/SourceSansPro/SourceSansPro-Bold.woff2">'
)


class FirstScript:
    """Middleware that inserts ``SCRIPT`` at the start of every HTML page's head."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._app(scope, receive, _Sender(send).send if scope["type"] == "http" else send)


class _Sender:
    """Forwards a response. The start of a page waits for its body, which determines its length."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self._start: Message | None = None

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start" and _is_page(message):
            self._start = message
            return
        if self._start is not None:
            start, self._start = self._start, None
            message, added = _with_script(message)
            await self._send(_longer(start, added))
        await self._send(message)


def _is_page(start: Message) -> bool:
    """Whether a response is a page; an HTML file to download is not."""
    headers = {name.lower(): value for name, value in start["headers"]}
    return headers.get(b"content-type", b"").startswith(b"text/html") and b"content-disposition" not in headers


def _with_script(body: Message) -> tuple[Message, int]:
    """The first piece of a page's body with the script, and by how many bytes it grew."""
    before = body.get("body", b"")
    after = before.replace(b"<head>", b"<head>" + SCRIPT, 1)
    return {**body, "body": after}, len(after) - len(before)


def _longer(start: Message, added: int) -> Message:
    headers = [
        (name, str(int(value) + added).encode() if name.lower() == b"content-length" else value)
        for name, value in start["headers"]
    ]
    return {**start, "headers": headers}
