"""What every request passes before it is read: the name it came by, its token, its size."""

from __future__ import annotations

import ipaddress
import secrets
from collections import Counter
from collections.abc import Iterable

from starlette.datastructures import Headers
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from corrigenda.serving.refusals import Refusal, wrong_token
from corrigenda.serving.settings import LOCAL_HOSTS, Access, Limits

HEALTH = "/health"
ADMIN = "/admin/"


class Guard:
    """Refuses requests by foreign names, without the token, or too large, before they are read.

    A page of a foreign site can make a browser send requests to this machine, by a name of its own
    that it lets lead here (DNS rebinding): so the name in the header `Host` has to be one of the
    server's. Bodies have to be declared as JSON, which such a page cannot do without asking first,
    and no such question (CORS) is answered.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        host: str,
        access: Access,
        limits: Limits,
        replies: Counter[tuple[str, int]],
    ) -> None:
        """Guard an application.

        Args:
            app: The application.
            host: Where it listens.
            access: Tokens and names.
            limits: For the size of a body.
            replies: Counts replies by route and status.
        """
        self._app, self._access, self._limits = app, access, limits
        self._replies = replies
        self._names = {name.lower() for name in (*LOCAL_HOSTS, host, *access.hosts)}
        # Bound to all addresses of the machine, it is called by any of them; the token protects it.
        self._any = "*" in self._names or _is_unspecified(host)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or refuse it."""
        if scope["type"] != "http":
            # Start and end of the server; there are no other kinds of connection.
            if scope["type"] == "lifespan":
                await self._app(scope, receive, send)
            return

        async def counted(message: Message) -> None:
            if message["type"] == "http.response.start":
                route = getattr(scope.get("route"), "path", "none")
                self._replies[route, message["status"]] += 1
            await send(message)

        try:
            self._require_allowed(Headers(scope=scope), str(scope["path"]))
            body = await self._read(Headers(scope=scope), receive)
        except Refusal as refusal:
            # What is left of the body is not read, so the connection cannot be used again.
            headers = refusal.headers | {"Connection": "close"}
            response = JSONResponse(refusal.to_json(), refusal.status, headers=headers)
            await response(scope, receive, counted)
            return
        given = False

        async def replay() -> Message:
            nonlocal given
            if given:
                return await receive()
            given = True
            return {"type": "http.request", "body": body, "more_body": False}

        await self._app(scope, replay, counted)

    def _require_allowed(self, headers: Headers, path: str) -> None:
        name = host_name(headers.get("host", ""))
        if not (self._any or name in self._names):
            raise Refusal(
                400,
                f'This server is not called "{name}". Call it by its address, or start it with '
                "--allowed-host.",
                code="unknown_host",
            )
        if path == HEALTH:
            return
        admin = self._access.admin_token or self._access.token
        if path.startswith(ADMIN):
            if admin is None:
                raise Refusal(
                    403,
                    "Patches are put on and taken off under a token; start the server with "
                    "CORRIGENDA_ADMIN_TOKEN or --admin-token.",
                    kind="permission_error",
                    code="no_admin_token",
                )
            accepted = [admin]
        else:
            accepted = [one for one in (self._access.token, self._access.admin_token) if one]
            if self._access.token is None:
                return
        if not _matches(headers.get("authorization", ""), accepted):
            raise wrong_token()

    async def _read(self, headers: Headers, receive: Receive) -> bytes:
        """Return the body of a request.

        Raises:
            Refusal: it is too large (413), or not JSON (415).
        """
        most = self._limits.max_body
        declared = headers.get("content-length", "0")
        parts: list[bytes] = []
        size = int(declared) if declared.isdigit() else 0
        if size <= most:
            size, more = 0, True
            while more and size <= most:
                message = await receive()
                if message["type"] == "http.disconnect":
                    break
                parts.append(message.get("body", b""))
                size += len(parts[-1])
                more = message.get("more_body", False)
        if size > most:
            raise Refusal(413, f"The request has more than {most} bytes.", code="request_too_large")
        kind = headers.get("content-type", "").partition(";")[0].strip().lower()
        if size and kind != "application/json":
            raise Refusal(415, "Send the body as application/json.", code="unsupported_media_type")
        return b"".join(parts)


def host_name(header: str) -> str:
    """Return the name in a header `Host`, without port and brackets, in small letters.

    Example:
        >>> host_name("[::1]:8000"), host_name("Localhost:80"), host_name("10.0.0.1")
        ('::1', 'localhost', '10.0.0.1')
    """
    if header.startswith("["):
        return header[1:].partition("]")[0].lower()
    return header.partition(":")[0].lower()


def _is_unspecified(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_unspecified
    except ValueError:
        return False


def _matches(header: str, tokens: Iterable[str]) -> bool:
    """Compare a bearer token in constant time."""
    scheme, _, given = header.partition(" ")
    sent = given.strip().encode("utf-8", "surrogateescape")
    found = [secrets.compare_digest(sent, token.encode()) for token in tokens]
    return scheme.lower() == "bearer" and any(found)
