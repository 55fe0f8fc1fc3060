"""Refusals of requests, in the form of OpenAI's errors."""

from __future__ import annotations

from corrigenda.errors import CorrigendaError


class Refusal(Exception):
    """A request that gets an error.

    Attributes:
        status: HTTP status.
        message: What is wrong, and what to do.
        kind: Group of errors, as OpenAI's `type`.
        param: Name of the parameter concerned.
        code: OpenAI's code, or one of ours (`CG...`).
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        kind: str = "invalid_request_error",
        param: str | None = None,
        code: str | None = None,
    ) -> None:
        """Compose a refusal."""
        super().__init__(message)
        self.status, self.message = status, message
        self.kind, self.param, self.code = kind, param, code

    def to_json(self) -> dict[str, object]:
        """Return the body of the reply."""
        return {
            "error": {
                "message": self.message,
                "type": self.kind,
                "param": self.param,
                "code": self.code,
            }
        }

    @property
    def headers(self) -> dict[str, str]:
        """What the status asks for in the headers of the reply."""
        match self.status:
            case 401:
                return {"WWW-Authenticate": "Bearer"}
            case 429 | 503:
                return {"Retry-After": "2"}
            case _:
                return {}


def refusal_of(error: Exception) -> Refusal:
    """Return how an error is told to a client; what is no fault of the request is kept from it."""
    if isinstance(error, Refusal):
        return error
    if isinstance(error, CorrigendaError):
        lines = [error.message, error.where, error.hint]
        return Refusal(400, " ".join(line for line in lines if line), code=error.code)
    return Refusal(
        500, "The server failed; its log says why.", kind="server_error", code="server_error"
    )


def too_busy(waiting: int, most: int) -> Refusal:
    """Return the refusal of a request for which there is no room in the queue."""
    return Refusal(
        429,
        f"{waiting} answers wait already; at most {most} may. Ask again in a few seconds.",
        kind="rate_limit_error",
        code="rate_limit_exceeded",
    )


def stopping() -> Refusal:
    """Return the refusal of a request that comes, or is still being answered, at the end."""
    return Refusal(503, "The server is shutting down.", kind="server_error", code="stopping")


def wrong_token() -> Refusal:
    """Return the refusal of a request without the right token."""
    return Refusal(
        401,
        "The token is missing or wrong. Send it as `Authorization: Bearer TOKEN`.",
        kind="authentication_error",
        code="invalid_api_key",
    )
