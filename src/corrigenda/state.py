"""What was learned about a model before an edit: named tensors and plain metadata, in one file."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import cast

import torch
from pydantic import JsonValue
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from corrigenda.errors import CorruptFile, EmptyCorpus, MissingState, NewerFormat, WrongBase
from corrigenda.files import write_atomically
from corrigenda.linalg.cholesky import Cholesky
from corrigenda.linalg.moments import SecondMoment
from corrigenda.lm.model import LanguageModel
from corrigenda.lm.sites import Site
from corrigenda.patch.changes import digest_of
from corrigenda.patch.display import table_of
from corrigenda.patch.ledger import ledger_of
from corrigenda.text_files import UnreadableText, check_plain_file, parse_json

STATE_FORMAT = 1
"""Version of the state file format that this library writes."""

_LONGEST_VERSION = 9
_MOMENT = "moment/"
_MOST_SHRINKAGE = 0.1
_KEYS_OF_SHRINKAGE = 0.3


@dataclass(frozen=True, eq=False, repr=False)
class State:
    """What `fit` learned and what a sequence of edits carries along; never changed in place.

    Attributes:
        tensors: Tensors by name. `moment/<site>/...` are the second moments of keys; a method adds
            others under its own name (`memit/protected/5.mlp.down/columns`).
        meta: Plain JSON values: the base model's digest, the corpus, counts, notes. The entry
            `shrinkage`, where there is one, is that of all moments.
    """

    tensors: Mapping[str, Tensor] = field(default_factory=dict)
    meta: Mapping[str, JsonValue] = field(default_factory=dict)
    _factors: dict[tuple[Site, float, float], Cholesky] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "tensors", MappingProxyType(dict(sorted(self.tensors.items()))))
        object.__setattr__(
            self, "meta", MappingProxyType(json.loads(json.dumps(dict(self.meta), sort_keys=True)))
        )

    @classmethod
    def of_moments(
        cls, moments: Mapping[Site, SecondMoment], meta: Mapping[str, JsonValue] | None = None
    ) -> State:
        """A state that holds second moments of keys."""
        tensors = {
            f"{_MOMENT}{site}/{name}": tensor
            for site, moment in moments.items()
            for name, tensor in moment.tensors().items()
        }
        return cls(tensors, meta or {})

    @property
    def moment_sites(self) -> tuple[Site, ...]:
        """Sites whose second moment is here, in order."""
        names = {name.split("/")[1] for name in self.tensors if name.startswith(_MOMENT)}
        return tuple(sorted(map(Site.parse, names), key=_order))

    def moment(self, site: Site, *, device: torch.device | str = "cpu") -> SecondMoment:
        """The second moment of the keys of a site, as a copy on a device.

        Raises:
            MissingState (CG503): it was not fitted.
        """
        self.require_moments([site])
        prefix = f"{_MOMENT}{site}/"
        tensors = {
            name.removeprefix(prefix): tensor
            for name, tensor in self.tensors.items()
            if name.startswith(prefix)
        }
        return SecondMoment.from_tensors(tensors, device=device)

    def require_moments(self, sites: Sequence[Site]) -> None:
        """Check that second moments of all these sites are here.

        Raises:
            MissingState (CG503): one was not fitted.
        """
        for site in sites:
            if site not in self.moment_sites:
                known = ", ".join(map(str, self.moment_sites)) or "no site"
                raise MissingState(
                    f"no second moment was fitted for {site}.",
                    where=f"the state holds {known}",
                    hint="Call `editor.fit(lm)` with the same editor and pass its state.",
                )

    def factor(self, site: Site, shrinkage: float | None = None, *, ridge: float = 0.0) -> Cholesky:
        """The Cholesky factor of a site's second moment, computed once per state.

        Args:
            site: Where the keys were taken.
            shrinkage: rho of `SecondMoment.covariance`; None takes the entry `shrinkage` of `meta`,
                else `automatic_shrinkage`. Published methods have 0.
            ridge: Added to the diagonal, in the units of the moment.

        Raises:
            MissingState (CG503): no moment for this site.
            EmptyCorpus (CG602): no key was seen there (an expert no token was routed to).
            IllConditioned (CG203): no factor exists, or too few keys with `shrinkage=0`.
        """
        shrinkage = self.shrinkage(site) if shrinkage is None else shrinkage
        place = site, shrinkage, ridge
        if place not in self._factors and ridge:
            matrix = self.factor(site, shrinkage).matrix()
            matrix.diagonal().add_(ridge)
            self._factors[place] = Cholesky.of(matrix, where=str(site))
        if place not in self._factors:
            moment = self.moment(site)
            if not moment.count:
                raise EmptyCorpus(
                    f"no key was seen at {site}.",
                    hint="Give more text, or text that reaches this expert.",
                )
            self._factors[place] = moment.cholesky(shrinkage, where=str(site))
        return self._factors[place]

    def shrinkage(self, site: Site) -> float:
        """Return the shrinkage that `factor` takes at a site by itself.

        Raises:
            MissingState (CG503): no moment for this site.
        """
        self.require_moments([site])
        given = self.meta.get("shrinkage")
        if isinstance(given, int | float):
            return float(given)
        count = int(self.tensors[f"{_MOMENT}{site}/count"])
        return automatic_shrinkage(count / len(self.tensors[f"{_MOMENT}{site}/sum"]))

    def effective_dimension(self, site: Site) -> float:
        """Return the mean of k^T C'^-1 k over the keys of text, C' the moment of `factor`.

        It is d_in where nothing was shrunk. The fewer keys, or the more shrinkage, the smaller.

        Raises:
            MissingState (CG503), EmptyCorpus (CG602), IllConditioned (CG203): see `factor`.
        """
        lower = self.factor(site).lower
        moment = self.moment(site).covariance().to(lower)
        return float((moment * torch.cholesky_inverse(lower)).sum())

    def mean_square(self, site: Site) -> float:
        """Return the mean of ||k||^2 over the keys of text, tr(C).

        Raises:
            MissingState (CG503): no moment for this site.
        """
        return float(self.moment(site).covariance().diagonal().sum())

    def updated(
        self,
        tensors: Mapping[str, Tensor] | None = None,
        meta: Mapping[str, JsonValue] | None = None,
    ) -> State:
        """A new state with some tensors and metadata replaced or added; factors are shared."""
        kept = any(name.startswith(_MOMENT) for name in tensors or ())
        return State(
            {**self.tensors, **(tensors or {})},
            {**self.meta, **(meta or {})},
            {} if kept else self._factors,
        )

    def require_base(self, lm: LanguageModel) -> None:
        """Refuse a state that was fitted on another model.

        The base is the model without its active patches. A state that names no base fits all.

        Raises:
            WrongBase (CG401): fitted on another model.
        """
        expected = self.meta.get("base_digest")
        if expected is None:
            return
        if ledger_of(lm).base(lm) != expected:
            raise WrongBase(
                f"this state was fitted on {self.meta.get('base_name') or 'another model'}, "
                f"not on {lm.name}.",
                hint="Fit again on this model.",
            )

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, State)
            and dict(self.meta) == dict(other.meta)
            and digest_of(self.tensors) == digest_of(other.tensors)
        )

    __hash__ = None  # type: ignore[assignment]  # holds tensors, compared by content

    def __reduce__(self) -> tuple[object, ...]:
        return State, (dict(self.tensors), dict(self.meta))

    def __repr__(self) -> str:
        return f"<state{self._base_text()}: {self._size_text()}>"

    def _repr_html_(self) -> str:
        moments = ", ".join(map(str, self.moment_sites))
        rows = [("base model", str(self.meta.get("base_name") or "any"))]
        rows += [("second moments", moments)] if moments else []
        return table_of([*rows, ("tensors", self._size_text())])

    def _base_text(self) -> str:
        name = self.meta.get("base_name")
        return f" of {name}" if name else ""

    def _size_text(self) -> str:
        numbers = sum(tensor.numel() for tensor in self.tensors.values())
        return f"{len(self.tensors)} tensors, {numbers:,} numbers"

    def save(self, path: str | Path) -> Path:
        """Write one safetensors file, completely or not at all.

        Raises:
            WriteFailed (CG601): the disk is full or the place is not writable.
        """
        meta = json.dumps(dict(self.meta), sort_keys=True, separators=(",", ":"))
        tensors = {name: tensor.contiguous() for name, tensor in self.tensors.items()}
        metadata = {
            "format": "pt",
            "corrigenda_state": str(STATE_FORMAT),
            "meta": meta,
            "checksum": _checksum(meta, tensors),
        }
        return write_atomically(path, lambda part: save_file(tensors, part, metadata))

    @classmethod
    def load(cls, path: str | Path) -> State:
        """Read what `save` wrote.

        Raises:
            CorruptFile (CG402): missing, truncated, changed since, or not a state.
            NewerFormat (CG404): written by a newer version of this library.
        """
        try:
            # A pipe without a writer would never open.
            check_plain_file(path)
            with safe_open(path, framework="pt") as file:
                metadata = file.metadata() or {}
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except (OSError, SafetensorError, UnreadableText) as error:
            raise _corrupt(path, str(error)) from error
        version = metadata.get("corrigenda_state", "")
        if not (version.isdecimal() and len(version) < _LONGEST_VERSION):
            raise _corrupt(path, "it is no state of this library")
        if int(version) > STATE_FORMAT:
            raise NewerFormat(
                f"{path} has format version {version}; this version reads up to {STATE_FORMAT}.",
                hint="Upgrade: pip install --upgrade corrigenda.",
            )
        if metadata.get("checksum") != _checksum(metadata.get("meta", ""), tensors):
            raise _corrupt(path, "the checksum does not match its content")
        try:
            meta = parse_json(metadata.get("meta", ""), strict=False)
            return cls(tensors, cast("dict[str, JsonValue]", meta))
        except (TypeError, ValueError) as error:
            raise _corrupt(path, f"its metadata is not readable ({error})") from error


def automatic_shrinkage(keys_per_dimension: float) -> float:
    """Return the default shrinkage of a second moment towards a multiple of the identity.

    0.1 up to three keys per dimension, then in proportion as keys get more: 0.3 d_in / N, so 0.03
    at ten keys per dimension. It is never 0 where there are keys: the small eigenvalues are the
    last to settle, and they decide where an edit goes. 0 where there is no key.
    """
    if keys_per_dimension == 0:
        return 0.0
    return min(_MOST_SHRINKAGE, _KEYS_OF_SHRINKAGE / keys_per_dimension)


def _checksum(meta: str, tensors: Mapping[str, Tensor]) -> str:
    cpu = {name: tensor.to(torch.device("cpu")) for name, tensor in tensors.items()}
    return hashlib.sha256(f"{meta}\n{digest_of(cpu)}".encode()).hexdigest()


def _corrupt(path: str | Path, reason: str) -> CorruptFile:
    return CorruptFile(f"{path} is damaged: {reason}.", hint="Fit again.")


def _order(site: Site) -> tuple[int, str, int]:
    return site.layer, site.part, -1 if site.expert is None else site.expert
