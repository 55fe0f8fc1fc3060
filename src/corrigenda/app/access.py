"""What every request to the app passes: the name it came by, its origin, its token, its size."""

from __future__ import annotations

import secrets
from http.cookies import CookieError, SimpleCookie
from urllib.parse import parse_qs, urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import HTMLResponse, PlainTextResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from corrigenda.serving.guard import host_name
from corrigenda.serving.settings import LOCAL_HOSTS, Access

COOKIE = "corrigenda_token"
_MOST_BYTES = 1 << 20
_POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:; "
    "style-src 'self' 'unsafe-inline'; img-src 'self' data: blob:; font-src 'self' data:; "
    "connect-src 'self'; worker-src 'self' blob:; form-action 'self'; frame-ancestors 'none'"
)
_UPLOADS = ("/gradio_api/upload", "/gradio_api/stream", "/gradio_api/proxy", "/proxy=")
_SIGN_IN = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>Corrigenda: token</title>
<meta name="viewport" content="width=device-width, initial-scale=1">
<style>:root{color-scheme:light dark}body{font-family:system-ui;margin:2rem}</style></head>
<body><main><h1>Corrigenda</h1><form action="/" method="get">
<p><label for="token">Token of this app</label></p>
<p><input id="token" name="token" type="password" autocomplete="off" required autofocus>
<button>Open</button></p></form></main></body></html>"""


class PageGuard:
    """Refuses requests by foreign names, from foreign pages, without the token, or too large.

    A browser shows the token once, in the address (`/?token=...`) or in the form of the first page,
    and then as a cookie that pages of other sites cannot send. Replies forbid the browser to load
    anything from elsewhere.
    """

    def __init__(self, app: ASGIApp, *, host: str, access: Access) -> None:
        """Guard an application that listens at `host`."""
        self._app, self._token = app, access.token
        self._names = {name.lower() for name in (*LOCAL_HOSTS, host, *access.hosts)}
        self._any = "*" in self._names or host in ("0.0.0.0", "::", "")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or refuse it."""
        if scope["type"] != "http":
            if scope["type"] == "lifespan":
                await self._app(scope, receive, send)
            return

        async def secured(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers["Content-Security-Policy"] = _POLICY
                headers["Referrer-Policy"] = "no-referrer"
                headers["X-Content-Type-Options"] = "nosniff"
            await send(message)

        refused = self._refuse(scope)
        if refused is not None:
            await refused(scope, receive, secured)
            return
        await self._app(scope, _Bounded(receive), secured)

    def _refuse(self, scope: Scope) -> Response | None:
        """Return the reply to a request that is not passed on."""
        headers, path = Headers(scope=scope), str(scope["path"])
        name = host_name(headers.get("host", ""))
        if not (self._any or name in self._names):
            return PlainTextResponse(
                f'This app is not called "{name}". Call it by its address, or start it with '
                "--allowed-host.",
                400,
            )
        origin = headers.get("origin")
        if origin and urlsplit(origin).netloc != headers.get("host", ""):
            return PlainTextResponse("Pages of other sites may not use this app.", 403)
        if path.startswith(_UPLOADS):
            return PlainTextResponse("This app takes no files.", 404)
        declared = headers.get("content-length", "0")
        if declared.isdigit() and int(declared) > _MOST_BYTES:
            return PlainTextResponse(f"The request has more than {_MOST_BYTES} bytes.", 413)
        return self._refuse_stranger(scope, headers)

    def _refuse_stranger(self, scope: Scope, headers: Headers) -> Response | None:
        if self._token is None or self._matches(_read_cookie(headers)):
            return None
        scheme, _, bearer = headers.get("authorization", "").partition(" ")
        if scheme.lower() == "bearer" and self._matches(bearer.strip()):
            return None
        query = str(scope.get("query_string", b""), "latin-1")
        if scope["method"] == "GET" and self._matches(parse_qs(query).get("token", [""])[0]):
            reply = RedirectResponse("/", 303)
            reply.set_cookie(COOKIE, self._token, httponly=True, samesite="strict")
            return reply
        return HTMLResponse(_SIGN_IN, 401)

    def _matches(self, given: str) -> bool:
        assert self._token is not None
        return secrets.compare_digest(given.encode("utf-8", "replace"), self._token.encode())


class _Bounded:
    """The body of a request, ended where it has more than is allowed."""

    def __init__(self, receive: Receive) -> None:
        self._receive, self._size = receive, 0

    async def __call__(self) -> Message:
        message = await self._receive()
        self._size += len(message.get("body", b""))
        if self._size > _MOST_BYTES:
            return {"type": "http.disconnect"}
        return message


def _read_cookie(headers: Headers) -> str:
    try:
        found = SimpleCookie(headers.get("cookie", "")).get(COOKIE)
    except CookieError:
        return ""
    return "" if found is None else found.value
