"""Header of a patch: how it was made, on what model, and from what it is composed."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import json
import platform
from collections.abc import Mapping, Sequence, Set
from typing import cast

from pydantic import BaseModel, ConfigDict, Field, JsonValue, field_validator

FORMAT_VERSION = 1
"""Version of the patch file format that this library writes; older ones are read."""


def library_versions() -> dict[str, str]:
    """Return the versions of libraries that a numerical result may depend on."""
    names = ("corrigenda", "torch", "transformers")
    versions = {"python": platform.python_version()}
    for name in names:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions


class PatchPart(BaseModel):
    """One of the patches a composed patch was made of."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    digest: str
    method: str
    config: dict[str, JsonValue] = Field(default_factory=dict)
    notes: dict[str, JsonValue] = Field(default_factory=dict)


class Header(BaseModel):
    """Everything about a patch but its tensors; frozen, and the same after saving and loading.

    Values of `config`, `facts` and `notes` become plain JSON at once (tuples become lists), so that
    saving and loading changes nothing. There is no date in it: equal edits give equal patches.

    Attributes:
        format_version: Version of the file format.
        kind: What the tensors mean; "weights" for a `WeightPatch`.
        method: Name of the editor.
        config: Its configuration.
        facts: What was corrected, one mapping a fact.
        base_digest: Digest of the unedited model; None fits every model of the right shapes.
        base_name: What that model was called.
        prerequisites: Digests of the patches that were active when this one was made, in order. It
            is only valid on top of them.
        parts: For a composed patch, what it was composed of, in order.
        versions: Versions of the libraries that made it.
        notes: Anything a method reports: loss curves, stop reasons, condition numbers.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    format_version: int = FORMAT_VERSION
    kind: str = "weights"
    method: str
    config: dict[str, JsonValue] = Field(default_factory=dict)
    facts: tuple[dict[str, JsonValue], ...] = ()
    base_digest: str | None = None
    base_name: str = ""
    prerequisites: tuple[str, ...] = ()
    parts: tuple[PatchPart, ...] = ()
    versions: dict[str, str] = Field(default_factory=library_versions)
    notes: dict[str, JsonValue] = Field(default_factory=dict)

    @field_validator("config", "notes", "facts", mode="before")
    @classmethod
    def _plain(cls, value: object) -> object:
        return json.loads(json.dumps(value, default=_jsonable))

    def to_json(self) -> str:
        """Return canonical text: sorted keys, no spaces; equal headers have equal texts."""
        return json.dumps(self.model_dump(), sort_keys=True, separators=(",", ":"))

    def of_facts(self, places: Sequence[int]) -> Header:
        """Return the header with some of its facts, and without what was noted of all."""
        facts = tuple(self.facts[place] for place in places)
        return self.model_copy(update={"facts": facts, "notes": {}})

    def as_parts(self, digest: str) -> tuple[PatchPart, ...]:
        """Return its parts in a composition: those it is composed of, or itself alone."""
        if self.parts:
            return self.parts
        return (PatchPart(digest=digest, method=self.method, config=self.config, notes=self.notes),)


def compose_headers(first: Header, second: Header, *, digests: tuple[str, str]) -> Header:
    """Return the header of `first` followed by `second`, made for the same base model.

    What one part needs and another provides is no longer a prerequisite.
    """
    parts = first.as_parts(digests[0]) + second.as_parts(digests[1])
    provided = {*digests, *(part.digest for part in parts)}
    needed = dict.fromkeys((*first.prerequisites, *second.prerequisites))
    return Header(
        kind=first.kind,
        method=" + ".join(dict.fromkeys(part.method for part in parts)),
        facts=first.facts + second.facts,
        base_digest=first.base_digest or second.base_digest,
        base_name=first.base_name or second.base_name,
        prerequisites=tuple(digest for digest in needed if digest not in provided),
        parts=parts,
        versions=first.versions | second.versions,
    )


def _jsonable(value: object) -> object:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return dataclasses.asdict(value)
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json")
    if isinstance(value, Mapping):
        return dict(cast("Mapping[object, object]", value))
    if isinstance(value, set | frozenset):
        return sorted(cast("Set[str]", value))
    if isinstance(value, Sequence):
        return list(cast("Sequence[object]", value))
    tolist = getattr(value, "tolist", None)
    return tolist() if callable(tolist) else str(value)
