"""The app over HTTP until the program is stopped."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from corrigenda.errors import MissingExtra
from corrigenda.serving.server import address_of, listen, require_no_loop
from corrigenda.serving.settings import Access, require_safe

if TYPE_CHECKING:
    from corrigenda.books import Book
    from corrigenda.lm.model import LanguageModel

_GRACE_SECONDS = 2
PORT = 7860
"""Default port."""


def require_app_extra() -> None:
    """Refuse to start without the packages of the app.

    Raises:
        MissingExtra (CG504): gradio is not installed.
    """
    if importlib.util.find_spec("gradio") is None:
        raise MissingExtra("the app needs gradio.", hint='pip install "corrigenda[app]"')


def run_app(
    lm: LanguageModel,
    book: Book | None = None,
    *,
    host: str = "127.0.0.1",
    port: int = PORT,
    access: Access | None = None,
    runs: str | Path = "runs",
    ready: Callable[[str], None] | None = None,
) -> None:
    """Show the app of a model until interrupted; afterwards the model is as it was.

    Args:
        lm: The model; corrections that are made stay on it until the end.
        book: Its book, in which they are kept; if None, they are gone at the end.
        host: Where to listen.
        port: The port; 0 takes a free one.
        access: Token and names.
        runs: Folder of runs of `evaluate`.
        ready: Called with the address once requests are taken.

    Raises:
        MissingExtra (CG504): the extra `app` is not installed.
        UnsafeAddress (CG701): other machines reach the address, and no token is asked for.
        BadConfig (CG502): the address cannot be used, or an event loop runs already.
        WrongBase (CG401), DamagedBook (CG802): the book is of another model, or damaged.
    """
    require_app_extra()
    require_no_loop()
    access = access or Access()
    require_safe(host, access)
    listening = listen(host, port)
    # Read when gradio is imported.
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    with listening:
        import uvicorn

        from corrigenda.app.building import build_app
        from corrigenda.app.workspace import Workspace

        workspace = Workspace(lm, book)
        try:
            app = build_app(workspace, host=host, access=access, runs=runs)
            config = uvicorn.Config(
                app,
                log_level="warning",
                access_log=False,
                server_header=False,
                proxy_headers=False,
                timeout_graceful_shutdown=_GRACE_SECONDS,
            )
            if ready is not None:
                ready(address_of(listening))
            with suppress(KeyboardInterrupt):
                uvicorn.Server(config).run(sockets=[listening])
        finally:
            workspace.close()
