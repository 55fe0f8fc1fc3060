"""What the guard of the app lets pass: names, origins, tokens, sizes."""

from __future__ import annotations

import asyncio
from typing import NamedTuple

import pytest

from corrigenda.serving.settings import Access

pytest.importorskip("starlette", reason="the extra `app` is not installed")

from corrigenda.app.access import COOKIE, PageGuard

TOKEN = "a-long-token"


class Answered(NamedTuple):
    """Status, headers and body of a reply."""

    status: int
    headers: dict[str, str]
    body: str


def ask(
    path: str = "/",
    *,
    token: str | None = None,
    host: str = "127.0.0.1:7860",
    listens: str = "127.0.0.1",
    allowed: tuple[str, ...] = (),
    query: str = "",
    method: str = "GET",
    sent: bytes = b"",
    **headers: str,
) -> Answered:
    """Send one request through the guard to an application that says how much it was sent."""
    messages: list[dict[str, object]] = []

    async def inner(scope: object, receive, send) -> None:
        message = await receive()
        body = str(len(message.get("body", b""))) if message["type"] == "http.request" else "ended"
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": body.encode()})

    async def receive() -> dict[str, object]:
        return {"type": "http.request", "body": sent, "more_body": False}

    async def send(message: dict[str, object]) -> None:
        messages.append(message)

    scope = {
        "type": "http",
        "path": path,
        "method": method,
        "query_string": query.encode(),
        "headers": [
            (name.replace("_", "-").encode(), value.encode())
            for name, value in {"host": host, **headers}.items()
        ],
    }
    guard = PageGuard(inner, host=listens, access=Access(token, hosts=allowed))
    asyncio.run(guard(scope, receive, send))
    first = messages[0]
    found = {name.decode(): value.decode() for name, value in first["headers"]}
    body = b"".join(message.get("body", b"") for message in messages[1:])
    return Answered(int(first["status"]), found, body.decode())


def test_replies_forbid_to_load_anything_from_elsewhere() -> None:
    answered = ask(sent=b"1234")
    assert (answered.status, answered.body) == (200, "4")
    policy = answered.headers["content-security-policy"]
    assert "default-src 'self'" in policy
    assert "http" not in policy
    assert answered.headers["referrer-policy"] == "no-referrer"


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:1", "[::1]:80", "box"])
def test_it_is_called_by_its_names(host: str) -> None:
    assert ask(host=host, allowed=("box",)).status == 200


def test_foreign_names_and_pages_are_refused() -> None:
    assert ask(host="evil.example").status == 400
    assert ask(host="evil.example", listens="0.0.0.0").status == 200
    assert ask(origin="http://evil.example").status == 403
    assert ask(origin="null").status == 403
    assert ask(origin="http://127.0.0.1:7860").status == 200


def test_files_and_large_bodies_are_refused() -> None:
    assert ask("/gradio_api/upload", method="POST").status == 404
    assert ask(content_length=str(2 << 20)).status == 413
    assert ask(sent=b"x" * (2 << 20)).body == "ended"


def test_without_the_token_there_is_only_the_form_for_it() -> None:
    for answered in (
        ask(token=TOKEN),
        ask(token=TOKEN, query="token=wrong"),
        ask(token=TOKEN, cookie=f"{COOKIE}=wrong"),
        ask(token=TOKEN, method="POST", query=f"token={TOKEN}"),
        ask("/downloads/x", token=TOKEN),
        ask("/reports/x", token=TOKEN, authorization="Bearer wrong"),
    ):
        assert answered.status == 401
        assert '<input id="token" name="token" type="password"' in answered.body
        assert TOKEN not in answered.body


def test_the_token_is_shown_once_and_then_a_cookie() -> None:
    answered = ask(token=TOKEN, query=f"token={TOKEN}")
    assert (answered.status, answered.headers["location"]) == (303, "/")
    cookie = answered.headers["set-cookie"]
    assert "HttpOnly" in cookie
    assert "SameSite=strict" in cookie
    assert ask(token=TOKEN, cookie=cookie.partition(";")[0]).status == 200
    assert ask(token=TOKEN, authorization=f"Bearer {TOKEN}").status == 200
