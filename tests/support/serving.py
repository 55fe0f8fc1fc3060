"""A real server on a free port of this machine, in a thread."""

from __future__ import annotations

import threading
import time
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

import httpx2
import uvicorn
from openai import OpenAI

from corrigenda.lm.model import LanguageModel
from corrigenda.serving.app import create_app
from corrigenda.serving.scheduler import Scheduler
from corrigenda.serving.server import address_of, listen

TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}{{ message['content'] }}"
    "{% if not loop.last %}\n{% endif %}{% endfor %}"
)


class Serving(NamedTuple):
    """A running server.

    Attributes:
        address: Its URL.
        scheduler: What generates.
    """

    address: str
    scheduler: Scheduler

    def client(self, token: str = "none", **options: Any) -> OpenAI:
        """A client of the server that asks once."""
        return OpenAI(
            base_url=f"{self.address}/v1", api_key=token, max_retries=0, timeout=120, **options
        )

    def http(self, token: str | None = None) -> httpx2.Client:
        """A plain client."""
        headers = {} if token is None else {"Authorization": f"Bearer {token}"}
        return httpx2.Client(base_url=self.address, headers=headers, timeout=120)

    def wait_until_idle(self, seconds: float = 30) -> None:
        """Return once nothing waits or runs."""
        end = time.monotonic() + seconds
        while self.scheduler.num_running or self.scheduler.num_waiting:
            assert time.monotonic() < end, "still running"
            time.sleep(0.01)


@contextmanager
def serving(lm: LanguageModel, patches: object = (), **options: Any) -> Generator[Serving]:
    """Serve until left."""
    app = create_app(lm, patches, **options)
    listening = listen("127.0.0.1", 0)
    server = uvicorn.Server(
        uvicorn.Config(app, log_level="warning", access_log=False, timeout_graceful_shutdown=5)
    )
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
    thread.start()
    try:
        yield Serving(address_of(listening), app.state.scheduler)
    finally:
        server.should_exit = True
        thread.join(60)
        listening.close()
        assert not thread.is_alive()


def weights(lm: LanguageModel) -> Mapping[str, bytes]:
    """All bits of a model, by parameter."""
    return {
        name: value.detach().cpu().contiguous().view(-1).numpy().tobytes()
        for name, value in lm.model.named_parameters()
    }
