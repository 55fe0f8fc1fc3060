"""Folder of a stream: its batches and what is decided about them, written whole or not at all.

`state.safetensors` is the fitted state, `batch-000000.safetensors` and so on are batches, which are
written once and never changed, and `stream.json` says how many of them count. A process that is
killed leaves at most a batch more than the list counts; it is written again.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, JsonValue, ValidationError

from corrigenda.editor import Editor
from corrigenda.errors import BadConfig, CorruptFile, NewerFormat, WrongBase
from corrigenda.facts import Fact
from corrigenda.files import make_folder, write_text
from corrigenda.methods.registry import METHODS
from corrigenda.state import State
from corrigenda.streaming.batches import StreamBatch
from corrigenda.streaming.edit_stream import Base, EditStream
from corrigenda.text_files import UnreadableText, read_text

STREAM_FORMAT = 1
"""Version of the folder's format that this library writes."""

SearchOn = Literal["edited", "base"]
"""Model that targets are searched on: with all batches so far, or the unedited one."""

_LIST, _STATE = "stream.json", "state.safetensors"


class StreamSettings(BaseModel):
    """What decides the result of a stream besides its facts.

    Attributes:
        method: Name of the method.
        config: Its options.
        base_digest: Of the unedited model.
        base_name: What that model was called.
        batch_size: Facts a batch.
        search_on: Model that targets are searched on.
        chat: Whether the chat form is edited too; None where the model decides.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    method: str
    config: dict[str, JsonValue]
    base_digest: str | None
    base_name: str
    batch_size: int
    search_on: SearchOn = "edited"
    chat: bool | None = None


class StreamList(BaseModel):
    """The file that says what counts.

    Attributes:
        format: Version of the folder's format.
        settings: See `StreamSettings`.
        num_batches: Batches that are written.
        num_facts: Facts in them.
        gone: Places of the facts that are taken out.
        checked: Batches that passed a check, or were taken out by one.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: int = STREAM_FORMAT
    settings: StreamSettings
    num_batches: int = 0
    num_facts: int = 0
    gone: tuple[int, ...] = ()
    checked: int = 0


class StreamFolder:
    """A folder that a stream is kept in.

    Attributes:
        path: Where it is.
    """

    def __init__(self, path: str | Path) -> None:
        """Bind to a folder, which need not be there."""
        self.path = Path(path)

    def read_list(self) -> StreamList | None:
        """Return what counts; None where no stream was begun.

        Raises:
            CorruptFile (CG402), NewerFormat (CG404): the file is not readable.
        """
        file = self.path / _LIST
        if not file.is_file():
            return None
        try:
            found = json.loads(read_text(file))
            version = found.get("format") if isinstance(found, dict) else None
            if isinstance(version, int) and version > STREAM_FORMAT:
                raise NewerFormat(
                    f"{file} has format version {version}; this version reads up to "
                    f"{STREAM_FORMAT}.",
                    hint="Upgrade: pip install --upgrade corrigenda.",
                )
            return StreamList.model_validate(found)
        except (OSError, UnreadableText, json.JSONDecodeError, ValidationError) as error:
            raise _corrupt(file, str(error).splitlines()[0]) from error

    def read_state(self) -> State:
        """Return the fitted state.

        Raises:
            CorruptFile (CG402), NewerFormat (CG404): the file is not readable.
        """
        return State.load(self.path / _STATE)

    def read_batches(self, count: int) -> list[StreamBatch]:
        """Return the first batches.

        Raises:
            CorruptFile (CG402), NewerFormat (CG404): a file is missing or not readable.
        """
        found: list[StreamBatch] = []
        first = 0
        for number in range(count):
            file = self._batch_file(number)
            try:
                batch = StreamBatch.from_state(State.load(file))
            except CorruptFile as error:
                raise _corrupt(file, error.message) from error
            except (ValueError, TypeError, KeyError) as error:
                if isinstance(error, NewerFormat):
                    raise
                raise _corrupt(file, f"it is no batch of a stream ({error})") from error
            if batch.first != first:
                raise _corrupt(file, f"it begins at fact {batch.first}, not {first}")
            found.append(batch)
            first += len(batch.facts)
        return found

    def begin(self, settings: StreamSettings, state: State) -> StreamList:
        """Begin a stream: write its state and an empty list.

        Raises:
            WriteFailed (CG601): the folder cannot be written.
        """
        make_folder(self.path)
        state.save(self.path / _STATE)
        made = StreamList(settings=settings)
        self.write_list(made)
        return made

    def write_batch(self, number: int, batch: StreamBatch) -> None:
        """Write one batch, which counts from the next `write_list` on."""
        batch.to_state().save(self._batch_file(number))

    def write_list(self, found: StreamList) -> None:
        """Write what counts, in the place of what did."""
        write_text(self.path / _LIST, found.model_dump_json(indent=1) + "\n")

    def _batch_file(self, number: int) -> Path:
        return self.path / f"batch-{number:06d}.safetensors"


def require_same(found: StreamSettings, wanted: StreamSettings, path: Path) -> None:
    """Refuse to go on with a stream of other settings.

    Raises:
        WrongBase (CG401): it was begun on another model.
        BadConfig (CG502): it was begun with other settings; they are named.
    """
    if found.base_digest != wanted.base_digest:
        raise WrongBase(
            f"the stream in {path} was begun on {found.base_name}, not on {wanted.base_name} as "
            "it is now.",
            hint="Load the very weights and dtype it was begun on, or give another folder.",
        )
    options = [
        *(name for name in ("method", "batch_size", "search_on", "chat")
          if getattr(found, name) != getattr(wanted, name)),
        *(name for name in sorted({*found.config, *wanted.config})
          if found.config.get(name) != wanted.config.get(name)),
    ]  # fmt: skip
    if options:
        raise BadConfig(
            f"the stream in {path} was begun with other settings: {', '.join(options)}.",
            hint="Give those it was begun with, see stream.json, or another folder.",
        )


def require_prefix(batches: Sequence[StreamBatch], facts: Sequence[Fact], path: Path) -> None:
    """Refuse facts that do not begin with those of the batches.

    Raises:
        BadConfig (CG502): names the first that differs.
    """
    for batch in batches:
        for place, fact in zip(batch.places, batch.facts, strict=True):
            if place >= len(facts) or facts[place] != fact:
                given = facts[place].label if place < len(facts) else "nothing"
                raise BadConfig(
                    f"fact {place} of the stream in {path} is {fact.label}; given is {given}.",
                    hint="Give the same facts; more may follow them. Or give another folder.",
                )


def load_stream(
    folder: str | Path, *, build: Callable[[str, dict[str, JsonValue]], Editor] | None = None
) -> EditStream:
    """Read a stream from its folder; its weights are computed from the records.

    Args:
        folder: Where `stream` kept it.
        build: Makes the editor from the name of its method and its options.

    Raises:
        CorruptFile (CG402), NewerFormat (CG404): no stream, or one that is not readable.
        UnknownMethod (CG501): its method is not installed.
    """
    place = StreamFolder(folder)
    found = place.read_list()
    if found is None:
        raise _corrupt(place.path, "there is no stream.json in it")
    settings = found.settings
    editor = (build or _build)(settings.method, settings.config)
    batches = place.read_batches(found.num_batches)
    base = Base(settings.base_digest, settings.base_name)
    return EditStream.of(editor, place.read_state(), base, batches, found.gone)


def save_removal(stream: EditStream, folder: str | Path) -> None:
    """Keep in a stream's folder which facts are out; what was recorded of them stays there.

    Raises:
        CorruptFile (CG402): the folder holds no stream, or one of other batches.
        WriteFailed (CG601): it cannot be written.
    """
    place = StreamFolder(folder)
    found = place.read_list()
    if found is None or found.num_batches != len(stream.batches):
        raise _corrupt(place.path, "it is not the folder of this stream")
    place.write_list(found.model_copy(update={"gone": tuple(sorted(stream.gone))}))


def _build(method: str, config: dict[str, JsonValue]) -> Editor:
    return METHODS.get(method)(**config)


def _corrupt(path: Path, reason: str) -> CorruptFile:
    reason = reason.rstrip(".")
    return CorruptFile(
        f"{path} cannot be used: {reason}.",
        hint="Remove the folder and stream again, or restore it from a copy.",
    )
