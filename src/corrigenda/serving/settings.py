"""Access to a server, the limits of requests, and the addresses that need a token."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from corrigenda.errors import BadConfig, UnsafeAddress

LOCAL_HOSTS = ("localhost", "127.0.0.1", "::1")
"""Names of addresses that only this machine reaches."""


@dataclass(frozen=True)
class Access:
    """Tokens, names of the server, and the folder of patches; tokens are in no representation.

    Attributes:
        token: Asked of every request but that for health; None asks for none.
        admin_token: Asked where patches are put on and taken off; None asks for `token` there, and
            with neither patches stay as they are.
        hosts: Names under which the server may be called besides those of this machine; "*" is any.
        patch_folder: Where patches to be put on may lie; None allows only those given at the start.
    """

    token: str | None = field(default=None, repr=False)
    admin_token: str | None = field(default=None, repr=False)
    hosts: tuple[str, ...] = ()
    patch_folder: Path | None = None

    def __post_init__(self) -> None:
        for name in ("token", "admin_token"):
            token: str | None = getattr(self, name)
            if token is not None and (not token.strip() or not token.isascii()):
                raise BadConfig(
                    f"{name} is empty, or has characters that are not ASCII.",
                    hint="Take a long random text, as `openssl rand -hex 32` prints.",
                )
        if self.patch_folder is not None and not self.patch_folder.is_dir():
            raise BadConfig(f"{self.patch_folder} is no folder of patches.")


@dataclass(frozen=True)
class Limits:
    """Bounds on what requests may ask for.

    Attributes:
        max_body: Bytes of a request.
        max_tokens: New tokens of one answer.
        max_waiting: Answers that wait at the same time; further requests get status 429.
        max_rows: Answers of one model that are generated at the same time.
    """

    max_body: int = 1 << 20
    max_tokens: int = 1024
    max_waiting: int = 512
    max_rows: int = 32

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if value < 1:
                raise BadConfig(f"{name} is {value}; it must be 1 or more.")


def require_safe(host: str, access: Access) -> None:
    """Refuse to listen where other machines reach the server and anyone may ask.

    Raises:
        UnsafeAddress (CG701): an address beyond this machine, and no token.
    """
    if host not in LOCAL_HOSTS and access.token is None:
        raise UnsafeAddress(
            f"the address {host} is reached from other machines, and no token is asked for.",
            hint="Set CORRIGENDA_TOKEN (or --token), or serve on 127.0.0.1.",
        )
