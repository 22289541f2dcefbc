"""What stands before Streamlit's server: only its own pages talk to it, and what a closed page uploaded is
forgotten.
"""

import asyncio
from collections.abc import Awaitable, Callable
from urllib.parse import urlsplit

from starlette.responses import PlainTextResponse
from streamlit import runtime

# Streamlit keeps a session for two minutes, in which the browser may come back.
RECONNECT_SECONDS = 125.0


class Gate:
    """ASGI middleware. A request that names an origin comes from a page: it has to be one of this very address and
    port, where Streamlit takes any port of this machine, behind which a program of somebody else may serve pages.
    """

    def __init__(self, app: Callable[..., Awaitable[None]]) -> None:
        self.app = app

    async def __call__(self, scope, receive, send) -> None:
        if scope["type"] not in ("http", "websocket"):
            return await self.app(scope, receive, send)
        headers = {name: value.decode("latin-1") for name, value in scope["headers"]}
        origin = headers.get(b"origin")
        if origin is not None and not _same(origin, headers.get(b"host", "")):
            if scope["type"] == "http":
                return await PlainTextResponse("Not from this origin.", 403)(scope, receive, send)
            await receive()
            return await send({"type": "websocket.close", "code": 1008})
        await self.app(scope, receive, send)
        if scope["type"] == "websocket" and runtime.exists():
            closed = _closed_sessions()
            asyncio.get_running_loop().call_later(RECONNECT_SECONDS, forget, closed)


def forget(sessions: set[str]) -> None:
    """Drop the uploads of those of ``sessions`` that did not come back; Streamlit would keep them until others
    close.
    """
    files = runtime.get_instance().uploaded_file_mgr
    for session in sessions & _closed_sessions():
        files.remove_session_files(session)


def _closed_sessions() -> set[str]:
    """Sessions with uploads whose page is closed."""
    server = runtime.get_instance()
    return {session for session in list(server.uploaded_file_mgr.file_storage) if not server.is_active_session(session)}


def _same(origin: str, host: str) -> bool:
    try:
        found = urlsplit(origin)
    except ValueError:
        return False
    return found.scheme in ("http", "https") and found.netloc == host
