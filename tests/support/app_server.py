"""An app of a model on a free port of this machine, in a thread."""

from __future__ import annotations

import threading
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

import uvicorn

from corrigenda.app.workspace import Workspace
from corrigenda.serving.server import address_of, listen
from corrigenda.serving.settings import Access


@contextmanager
def open_app(
    workspace: Workspace, *, access: Access | None = None, runs: Path = Path("runs")
) -> Generator[str]:
    """Show the app until left; yields its address."""
    from corrigenda.app.building import build_app

    app = build_app(workspace, access=access, runs=runs)
    listening = listen("127.0.0.1", 0)
    server = uvicorn.Server(
        uvicorn.Config(app, log_level="warning", access_log=False, timeout_graceful_shutdown=1)
    )
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
    thread.start()
    try:
        yield address_of(listening)
    finally:
        server.should_exit = True
        thread.join(60)
        listening.close()
        assert not thread.is_alive()
