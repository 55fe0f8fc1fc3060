"""Endpoints in the form of OpenAI's: completions, and chat completions."""

from __future__ import annotations

import json
import os
import urllib.request
from collections.abc import Mapping
from http.client import HTTPException
from urllib.error import HTTPError, URLError

KEY_VARIABLE = "OPENAI_API_KEY"


class EndpointError(Exception):
    """Raised where an endpoint gives no text; the message says why.

    Attributes:
        status: Its HTTP status; None where it was not reached, or answers something else.
    """

    def __init__(self, message: str, status: int | None = None) -> None:
        """Keep the status."""
        super().__init__(message)
        self.status = status


class Completed:
    """Text of an endpoint, and whether it ended by itself."""

    def __init__(self, text: str, ended: bool) -> None:
        """Keep both."""
        self.text, self.ended = text, ended


def complete(
    url: str,
    content: Mapping[str, object],
    *,
    chat: bool,
    key_variable: str = KEY_VARIABLE,
    seconds: float = 60.0,
) -> Completed:
    """Return what an endpoint says.

    Args:
        url: Its address, up to `/v1`.
        content: Body of the request: model, temperature, messages or prompt.
        chat: Whether it is asked for chat completions.
        key_variable: Environment variable that holds its key, where it needs one.
        seconds: Longest wait.

    Raises:
        EndpointError: it cannot be reached, refuses, or answers something else.
    """
    address = f"{url.rstrip('/')}/{'chat/' if chat else ''}completions"
    headers = {"Content-Type": "application/json"}
    if key := os.environ.get(key_variable, ""):
        headers["Authorization"] = f"Bearer {key}"
    request = urllib.request.Request(address, json.dumps(content).encode(), headers)
    try:
        with urllib.request.urlopen(request, timeout=seconds) as answer:
            choice = json.loads(answer.read().decode("utf-8"))["choices"][0]
        said: object = choice["message"]["content"] if chat else choice["text"]
    except HTTPError as error:
        reason = f"answers with status {error.code} ({error.reason})"
        raise EndpointError(reason, error.code) from error
    except (URLError, HTTPException, OSError) as error:
        raise EndpointError(f"cannot be reached: {error}") from error
    except (ValueError, LookupError, TypeError) as error:
        kind = "chat completions" if chat else "completions"
        raise EndpointError(f"does not answer as {kind} do") from error
    if not isinstance(said, str):
        raise EndpointError("says nothing")
    return Completed(said, choice.get("finish_reason") == "stop")
