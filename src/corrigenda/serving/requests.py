"""Bodies of requests in the form of OpenAI's, checked; what is not supported is refused by name."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError

# Parameters that change nothing here.
_IGNORED = frozenset(
    [
        "metadata",
        "prompt_cache_key",
        "prompt_cache_retention",
        "safety_identifier",
        "service_tier",
        "store",
        "user",
    ]
)
# Parameters that are understood with the one value that asks for nothing.
_NEUTRAL: dict[str, tuple[object, ...]] = {
    "best_of": (1,),
    "echo": (False,),
    "frequency_penalty": (0,),
    "function_call": ("none",),
    "functions": ([],),
    "logit_bias": ({},),
    "modalities": (["text"],),
    "parallel_tool_calls": (True, False),
    "presence_penalty": (0,),
    "response_format": ({"type": "text"},),
    "suffix": ("",),
    "tool_choice": ("none", "auto"),
    "tools": ([],),
}

_MOST_STOPS = 16
_LONGEST_STOP = 256

StopText = Annotated[str, Field(min_length=1, max_length=_LONGEST_STOP)]


class StreamOptions(BaseModel):
    """What a stream tells besides text."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    include_usage: bool = False
    include_obfuscation: Literal[False] = False


class GenerationRequest(BaseModel):
    """What completions and chat completions have in common.

    Attributes:
        model: Name of a served model.
        max_tokens: Most new tokens.
        temperature: 0 is greedy.
        top_p: Probability of the nucleus that is drawn from.
        seed: Seed of the draws; the same request gives the same text again.
        n: Number of answers.
        stop: Strings that end an answer.
        stream: Whether the answer comes in pieces.
        stream_options: What comes with them.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: str
    max_tokens: int | None = Field(default=None, ge=1)
    temperature: float = Field(default=1.0, ge=0, le=2, allow_inf_nan=False)
    top_p: float = Field(default=1.0, gt=0, le=1, allow_inf_nan=False)
    seed: int | None = None
    n: int = Field(default=1, ge=1, le=128)
    stop: tuple[StopText, ...] = Field(default=(), max_length=_MOST_STOPS)
    stream: bool = False
    stream_options: StreamOptions | None = None

    @model_validator(mode="before")
    @classmethod
    def _supported(cls, data: object) -> object:
        """Drop what is null, ignored or asks for nothing; refuse what would be misunderstood."""
        if not isinstance(data, dict):
            return data
        left: dict[str, Any] = {}
        for name, value in data.items():
            if value is None or name in _IGNORED or value in _NEUTRAL.get(name, ()):
                continue
            if name in _NEUTRAL:
                raise PydanticCustomError(
                    "unsupported_parameter",
                    "{param} is not supported by this server.",
                    {"param": name},
                )
            left[name] = value
        stop = left.get("stop")
        return left | ({"stop": [stop]} if isinstance(stop, str) else {})

    @model_validator(mode="after")
    def _whole(self) -> Self:
        if self.stream_options is not None and not self.stream:
            raise PydanticCustomError(
                "invalid_value",
                "{param} is only understood with stream.",
                {"param": "stream_options"},
            )
        return self


class CompletionRequest(GenerationRequest):
    """A text, or several, to be continued.

    Attributes:
        prompt: The texts; token ids are not taken, since patches look at text.
        logprobs: How many likeliest tokens are reported at each place.
    """

    prompt: Annotated[list[str], Field(min_length=1)]
    logprobs: int | None = Field(default=None, ge=0, le=20)

    @model_validator(mode="before")
    @classmethod
    def _texts(cls, data: object) -> object:
        if not isinstance(data, dict):
            return data
        prompt = data.get("prompt")
        if isinstance(prompt, str):
            return data | {"prompt": [prompt]}
        if isinstance(prompt, list) and any(not isinstance(one, str) for one in prompt):
            raise PydanticCustomError(
                "unsupported_parameter",
                "{param}: give text, or a list of texts, not token ids.",
                {"param": "prompt"},
            )
        return data


class ContentPart(BaseModel):
    """A part of a message; only text is understood."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    type: Literal["text"]
    text: str


class ChatMessage(BaseModel):
    """A message of a conversation."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    role: Literal["system", "developer", "user", "assistant"]
    content: str | tuple[ContentPart, ...]
    name: str | None = None

    @model_validator(mode="before")
    @classmethod
    def _present(cls, data: object) -> object:
        """Drop what is null, as replies of the server have it that come back as history."""
        if not isinstance(data, dict):
            return data
        return {name: value for name, value in data.items() if value is not None}

    @property
    def text(self) -> str:
        """The content as one text."""
        if isinstance(self.content, str):
            return self.content
        return "".join(part.text for part in self.content)

    def to_turn(self) -> dict[str, str]:
        """Return the turn as a chat template takes it."""
        role = "system" if self.role == "developer" else self.role
        return {"role": role, "content": self.text}


class ChatRequest(GenerationRequest):
    """A conversation to be answered.

    Attributes:
        messages: The turns, at least one of the user.
        max_completion_tokens: As `max_tokens`, which is the older name.
        logprobs: Whether log-probabilities are reported.
        top_logprobs: For how many likeliest tokens at each place.
    """

    messages: Annotated[list[ChatMessage], Field(min_length=1)]
    max_completion_tokens: int | None = Field(default=None, ge=1)
    logprobs: bool = False
    top_logprobs: int | None = Field(default=None, ge=0, le=20)

    @model_validator(mode="after")
    def _complete(self) -> Self:
        if not any(message.role == "user" for message in self.messages):
            raise PydanticCustomError(
                "invalid_value", "{param}: none is of the user.", {"param": "messages"}
            )
        if self.top_logprobs is not None and not self.logprobs:
            raise PydanticCustomError(
                "invalid_value", "{param} needs logprobs.", {"param": "top_logprobs"}
            )
        return self


class PatchedModelRequest(BaseModel):
    """The patches that a served model is to have, in order.

    Attributes:
        patches: Files, by their path within the folder of patches, or as given at the start.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    patches: Annotated[list[str], Field(min_length=1, max_length=64)]
