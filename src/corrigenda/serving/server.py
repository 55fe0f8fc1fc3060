"""`cg.serve`: a model and its edits over HTTP until the program is stopped."""

from __future__ import annotations

import asyncio
import importlib.util
import socket
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING

from corrigenda.errors import BadConfig, MissingExtra
from corrigenda.serving.settings import Access, Limits, require_safe

if TYPE_CHECKING:
    from corrigenda.lm.model import LanguageModel
    from corrigenda.patch import Patch

_GRACE_SECONDS = 10
_BACKLOG = 2048


def require_extra() -> None:
    """Refuse to serve without the packages for it.

    Raises:
        MissingExtra (CG504): fastapi or uvicorn is not installed.
    """
    if any(importlib.util.find_spec(name) is None for name in ("fastapi", "uvicorn")):
        raise MissingExtra(
            "serving needs fastapi and uvicorn.", hint='pip install "corrigenda[serve]"'
        )


def serve(
    lm: LanguageModel,
    patches: Patch | Sequence[Patch] | Mapping[str, Patch | Sequence[Patch]] = (),
    *,
    name: str = "",
    host: str = "127.0.0.1",
    port: int = 8000,
    access: Access | None = None,
    limits: Limits | None = None,
    files: Mapping[str, Patch] | None = None,
    force: bool = False,
    ready: Callable[[str], None] | None = None,
) -> None:
    """Serve a model, with and without patches, in the form of OpenAI's API until interrupted.

    The program serves alone: requests are answered in one thread, one model name after the other on
    the same weights. Afterwards the model is as it was.

    Args:
        lm: The model.
        patches: A patch or several, which together are served as `NAME-edited`; or by name of the
            served model, one or several each.
        name: Name of the unedited model; the last part of its own if not given.
        host: Where to listen.
        port: The port; 0 takes a free one.
        access: Tokens and names.
        limits: Bounds on requests.
        files: Patches that may be put on later, by name.
        force: Serve patches on a model other than the one they were made on.
        ready: Called with the address once requests are taken.

    Raises:
        MissingExtra (CG504): the extra `serve` is not installed.
        UnsafeAddress (CG701): other machines reach the address, and no token is asked for.
        BadConfig (CG502): the address cannot be used, a served model has no name, or an event loop
            runs already, as in a notebook.
        WrongBase (CG401), NotApplied (CG406) ...: patches do not belong on this model.
    """
    require_extra()
    require_no_loop()
    access = access or Access()
    require_safe(host, access)
    listening = listen(host, port)
    with listening:
        import uvicorn

        from corrigenda.serving.app import create_app

        app = create_app(
            lm,
            patches,
            name=name,
            host=host,
            access=access,
            limits=limits,
            files=files,
            force=force,
        )
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
        # After a graceful end the interrupt that asked for it is raised once more.
        with suppress(KeyboardInterrupt):
            uvicorn.Server(config).run(sockets=[listening])


def require_no_loop() -> None:
    """Refuse to serve where an event loop runs already.

    Raises:
        BadConfig (CG502): one does.
    """
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return
    raise BadConfig(
        "an event loop runs already, as in a notebook; a server needs one of its own.",
        hint="Run `corrigenda serve` in a terminal, or give "
        "`corrigenda.serving.app.create_app(...)` to an ASGI server in that loop.",
    )


def listen(host: str, port: int) -> socket.socket:
    """Return a socket that listens, so that an address in use shows before a model is prepared.

    Raises:
        BadConfig (CG502): the address cannot be used.
    """
    try:
        family, _, _, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        return socket.create_server(address[:2], family=family, backlog=_BACKLOG)
    except (OSError, OverflowError) as error:
        raise BadConfig(
            f"{host}:{port} cannot be listened at: {error}.",
            hint="Choose another port; 0 takes a free one.",
        ) from error


def address_of(listening: socket.socket) -> str:
    """Return the address of a socket as a URL."""
    host, port = listening.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
