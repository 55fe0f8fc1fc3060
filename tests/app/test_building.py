"""The app over HTTP: its first page, downloads, reports, the token; nothing from elsewhere."""

from __future__ import annotations

import re
import socket
import urllib.error
import urllib.request
from collections.abc import Generator
from pathlib import Path

import pytest

from corrigenda.app.workspace import Workspace
from corrigenda.serving.settings import Access
from tests.support.app_server import open_app

pytest.importorskip("gradio", reason="the extra `app` is not installed")

LOADED = re.compile(r"""(?:src|href)=["'](?:https?:)?//([^/"']+)|@import[^;]*//([^/"';]+)""")
TOKEN = "a-long-token"


@pytest.fixture
def address(
    workspace: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Generator[str]:
    """An app of the pocket model that is refused every connection to other machines."""
    connect = socket.socket.connect

    def connect_here(one: socket.socket, place: object) -> None:
        if isinstance(place, tuple):
            assert place[0] in ("127.0.0.1", "::1", "localhost"), place
        connect(one, place)

    monkeypatch.setattr(socket.socket, "connect", connect_here)
    with open_app(workspace, access=Access(TOKEN), runs=tmp_path) as opened:
        yield opened


def ask(address: str, path: str, *, token: str = TOKEN) -> tuple[int, str]:
    headers = {"Authorization": f"Bearer {token}"}
    try:
        with urllib.request.urlopen(
            urllib.request.Request(f"{address}{path}", headers=headers), timeout=600
        ) as reply:
            return reply.status, reply.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def test_pages_downloads_reports_and_the_token(address: str, workspace: Workspace) -> None:
    status, page = ask(address, "/")
    assert status == 200
    assert "Corrigenda: pocket" in page
    foreign = {first or second for first, second in LOADED.findall(page)}
    assert not foreign
    for switched_off in ('"analytics_enabled":true', '"run_history":true'):
        assert switched_off not in page.replace(" ", "")
    (workspace.downloads / "made.txt").write_text("content", encoding="utf-8")
    assert ask(address, "/downloads/made.txt") == (200, "content")
    for path in ("/downloads/other.txt", "/downloads/..%2f..%2fetc%2fpasswd", "/reports/none"):
        assert ask(address, path)[0] == 404
    for path in ("/", "/downloads/made.txt", "/config", "/gradio_api/info"):
        assert ask(address, path, token="wrong")[0] == 401
