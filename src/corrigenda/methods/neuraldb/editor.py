"""NeuralDB: a database of searched residuals beside one block, found by the cosine of a key."""

from __future__ import annotations

import hashlib
import unicodedata
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from functools import cached_property
from types import MappingProxyType
from typing import ClassVar, Literal, NamedTuple, Self

import torch
from jaxtyping import Float, Int
from pydantic import Field
from torch import Tensor

from corrigenda.editor import Edit, MemoryEstimate, Requires, StageWork, Supports
from corrigenda.engines.locate import pipeline
from corrigenda.engines.locate.contexts import Style
from corrigenda.engines.locate.pipeline import EditPlan, LocateThenEdit
from corrigenda.engines.locate.records import EntryRole
from corrigenda.engines.locate.search_size import search_flops, search_memory
from corrigenda.engines.shared_memory import SharedMemory, join, memory_of, suspend
from corrigenda.facts import Fact
from corrigenda.lm.footprint import FLOAT
from corrigenda.lm.hooks import TensorMap
from corrigenda.lm.kv_cache import batches, pad_id
from corrigenda.lm.model import LanguageModel
from corrigenda.lm.sites import Point, Site, Tokens, key
from corrigenda.lm.sites import state as residual_stream
from corrigenda.lm.spans import encode
from corrigenda.methods.neuraldb.database import Database, DatabaseRows
from corrigenda.patch import ModulePatch
from corrigenda.patch.notes import summarise
from corrigenda.state import State


class NeuralDBPatch(ModulePatch):
    """Rows of the database; patches that are active at one block with one gate share a database."""

    kind: ClassVar[str] = "neuraldb"
    forms = MappingProxyType(
        {
            "keys": "float facts d_in",
            "residuals": "float facts d_model",
            "subjects": "int facts",
            "tokens": "int facts",
        }
    )
    options = MappingProxyType({"layer": int, "threshold": float, "same_token": bool})

    def require_sound(self) -> None:
        """Refuse a block or tokens below 0."""
        super().require_sound()
        if self.stored and (self.layer < 0 or int(self.stored["tokens"].min()) < 0):
            raise ValueError("a block or a token is below 0")

    def sizes_in(self, lm: LanguageModel) -> dict[str, int]:
        """Return the widths of its site in a model."""
        d_out, d_in = lm.weight(Site(self.layer)).shape
        return {"d_in": d_in, "d_model": d_out}

    @property
    def layer(self) -> int:
        """Return the block with the database."""
        return int(str(self.header.config["layer"]))

    def without(self, places: Sequence[int]) -> Self:
        """Return a patch without the rows of some of its facts; the others stay to the bit.

        Args:
            places: Which facts, counted from 0.
        """
        kept = [place for place in range(len(self.header.facts)) if place not in set(places)]
        facts = tuple(self.header.facts[place] for place in kept)
        stored = {name: tensor[kept] for name, tensor in self.stored.items()} if kept else {}
        return type(self)(stored, self.header.model_copy(update={"facts": facts}))

    def hooks(self, lm: LanguageModel) -> AbstractContextManager[object]:
        """Add the rows to the database of the model, until left."""
        gate = Gate.of(self.header.config)
        return join(lm, self, ("neuraldb", gate), lambda: _ActiveDatabase(lm, gate))


class Gate(NamedTuple):
    """Place and rule of a database; patches with the same share one.

    Attributes:
        layer: Block.
        threshold: gamma, a cosine.
        same_token: Whether only rows of the token itself are compared with it.
    """

    layer: int
    threshold: float
    same_token: bool

    @classmethod
    def of(cls, config: Mapping[str, object]) -> Gate:
        """Return the gate of a configuration."""
        return cls(
            int(str(config["layer"])), float(str(config["threshold"])), bool(config["same_token"])
        )


class _ActiveDatabase(SharedMemory[NeuralDBPatch]):
    """Database of all active patches with one gate, with the hooks that search it and add."""

    def __init__(self, lm: LanguageModel, gate: Gate) -> None:
        super().__init__(lm)
        self.gate = gate
        self._route: Int[Tensor, "batch pos"] | None = None

    @cached_property
    def database(self) -> Database:
        """Return the database."""
        # It outlives the pass that needs it first.
        with torch.inference_mode(False):
            return Database(
                DatabaseRows.concatenate([patch.stored for patch in self.patches]),
                threshold=self.gate.threshold,
                same_token=self.gate.same_token,
                device=self.lm.weight(Site(self.gate.layer)).device,
            )

    def forget(self) -> None:
        self.__dict__.pop("database", None)

    def transforms(self) -> Mapping[Point, TensorMap]:
        layer = self.gate.layer
        return {key(Site(layer)): self._read, residual_stream(layer): self._write}

    @torch.no_grad()
    def _read(self, inputs: Float[Tensor, "batch pos d_in"]) -> Tensor:
        self._route = None
        if self.suspended:
            return inputs
        mask, ids = self.lm.prompt_ends.mask.to(inputs.device), self.lm.prompt_ends.ids
        own = None if ids is None else ids.to(inputs.device)[mask]
        found = self.database.find(inputs[mask], own)
        if bool((found >= 0).any()):
            self._route = torch.full(mask.shape, -1, device=inputs.device)
            self._route[mask] = found.to(inputs.device)
        return inputs

    def _write(self, output: Float[Tensor, "batch pos d_model"]) -> Tensor:
        if self._route is None:
            return output
        where = (self._route >= 0).to(output.device)
        rows = self._route.to(output.device)[where]
        output = output.clone()
        output[where] = output[where] + self.database.residuals(rows).to(output)
        return output


class GateReport(NamedTuple):
    """Largest cosine of any token of a prompt with the key of a fact, to choose `threshold`.

    Attributes:
        paraphrases: Of each paraphrase with its own fact; these should be above the threshold.
        neighbours: Of each neighbour with any fact; these should be below.
    """

    paraphrases: list[float]
    neighbours: list[float]


class NeuralDB(LocateThenEdit):
    """Stores a key and a searched residual for each fact; the weights never change.

    Where the cosine of a token's key with the nearest stored one is above `threshold`, the residual
    of that fact is added behind the block; elsewhere nothing is.

    Reference: Fei et al. 2025, equation 11. See the card, `card.md`.
    """

    name: ClassVar[str] = "neuraldb"
    requires: ClassVar[Requires] = Requires(subject=True)
    supports: ClassVar[Supports] = Supports(
        single=True, batch=True, sequential=True, exact=False, order_free=True, contained=True
    )
    context_style: ClassVar[Style] = "memit"
    role: ClassVar[EntryRole] = "state"
    usual_clamp: ClassVar[float] = 0.75

    layer: int | None = Field(
        default=None, ge=0, description="Block with the database; chosen by depth if not given."
    )
    threshold: float = Field(
        default=0.65, gt=0, description="Cosine above which a stored key is found, gamma."
    )
    key_mode: Literal["mean", "bare"] = Field(
        default="mean", description="Key of a fact: its mean over the contexts, or the prompt's."
    )
    same_token: bool = Field(
        default=False,
        description="Compare a token only with facts whose subject ends in it: fast with many "
        "facts, and other spellings of a subject are not found.",
    )

    @property
    def merges_facts(self) -> bool:
        """Whether facts of one subject get one residual: always, since they have one key."""
        return True

    def configured_layers(self) -> tuple[int, ...] | None:
        """Return the layer given, or None where there is none."""
        return None if self.layer is None else (self.layer,)

    def sites(self, lm: LanguageModel) -> tuple[Site, ...]:
        """Return no sites: no weight changes."""
        self._locate(lm)
        return ()

    def memory(self, lm: LanguageModel, num_facts: int) -> MemoryEstimate:
        """Estimate the memory: that of the search, and of the rows."""
        return MemoryEstimate(fit=0, edit=self.working_memory(lm, num_facts))

    def working_memory(self, lm: LanguageModel, num_facts: int) -> int:
        """Estimate the bytes of the target search and of the rows."""
        searched = search_memory(lm, self._layer(lm), num_facts, self._usual_rows)
        return searched + self.patch_bytes(lm, num_facts)

    def patch_bytes(self, lm: LanguageModel, num_facts: int) -> int:
        """Estimate the bytes of the rows: a key and a residual for each fact."""
        return num_facts * FLOAT * sum(lm.weight(Site(self._layer(lm))).shape)

    def editing_work(self, lm: LanguageModel, num_facts: int) -> tuple[StageWork, ...]:
        """Estimate the operations of the target search."""
        rows = num_facts * self._usual_rows
        return (StageWork("search", search_flops(lm, self._layer(lm), rows, self.steps)),)

    def _layer(self, lm: LanguageModel) -> int:
        (site,) = self._locate(lm)[0]
        return site.layer

    def edit(self, lm: LanguageModel, facts: Sequence[Fact], state: State | None = None) -> Edit:
        """Make the rows of facts; the model is left as it is, and so is the state.

        Residuals are searched without the active databases. A fact about a subject that an active
        patch has a row for gets a residual that serves the earlier facts too.

        Raises:
            AmbiguousSubject (CG104), SubjectNotFound (CG103), PromptTooLong (CG105): a fact that
                cannot be located.
            NotEnoughFacts (CG106): two facts ask for different targets of one prompt.
            NonFinite (CG201): the model gives no finite loss.
        """
        state = state or State()
        if not facts:
            config = self.model_dump(mode="json")
            return Edit(NeuralDBPatch.make(lm, {}, method=self.name, config=config), state)
        plan = self.make_plan(lm, state)
        (site,) = plan.sites
        config = {**self.model_dump(mode="json"), "layer": site.layer}
        active = memory_of(lm, _ActiveDatabase, ("neuraldb", Gate.of(config)))
        earlier = [] if active is None else _earlier_facts(active.patches, facts)
        warnings = [*plan.notices, *pipeline.subject_warnings(lm, facts)]
        with suspend(active):
            together = [*facts, *earlier]
            found, notices = self.find_wanted(lm, together, plan, site.layer)
            keys = self._read_keys(lm, facts, plan, site)
        tokens = pipeline.subject_tokens(lm, facts, plan.contexts)[:: len(plan.contexts)]
        traces = found.traces[: len(facts)]
        stored = DatabaseRows(
            keys=keys.float().cpu(),
            residuals=found.deltas[: len(facts)].float().cpu(),
            subjects=torch.tensor(
                [number_subject(fact, ids[-1]) for fact, ids in zip(facts, tokens, strict=True)]
            ),
            tokens=torch.tensor([ids[-1] for ids in tokens]),
        )._asdict()
        notes = {
            **summarise(facts, [one.status for one in traces], [*warnings, *notices]),
            "search": [one.to_dict() for one in traces],
            "layers": [site.layer],
            "shared": len(together) - len({id(one) for one in found.traces}),
        }
        patch = NeuralDBPatch.make(
            lm, stored, method=self.name, config=config, facts=facts, notes=notes
        )
        return Edit(patch, state)

    def similarities(
        self, lm: LanguageModel, facts: Sequence[Fact], state: State | None = None
    ) -> GateReport:
        """Measure the cosines that decide about paraphrases and neighbours, to set `threshold`.

        Args:
            lm: The model, without databases.
            facts: Facts with paraphrases or neighbours.
            state: State of `fit`, for its contexts.
        """
        plan = self.make_plan(lm, state)
        (site,) = plan.sites
        keys = self._read_keys(lm, facts, plan, site).float()
        paraphrases = [
            cosine
            for fact, own in zip(facts, keys, strict=True)
            for cosine in _largest_cosines(lm, fact.paraphrases, own[None], site)
        ]
        neighbours = [text for fact in facts for text in fact.neighbours]
        return GateReport(paraphrases, _largest_cosines(lm, neighbours, keys, site))

    def _read_keys(
        self, lm: LanguageModel, facts: Sequence[Fact], plan: EditPlan, site: Site
    ) -> Float[Tensor, "n d_in"]:
        sequences = pipeline.subject_tokens(lm, facts, plan.contexts)
        captured = pipeline.capture_last(lm, sequences, [key(site)])[key(site)]
        if self.key_mode == "bare":
            return captured[:: len(plan.contexts)].double()
        return pipeline.average(captured, plan.contexts.weights)


def number_subject(fact: Fact, token: int) -> int:
    """Return the number by which rows of one subject belong together."""
    subject = unicodedata.normalize("NFKC", fact.subject or "")
    digest = hashlib.sha256(f"{token}/{subject}".encode()).digest()
    return int.from_bytes(digest[:7], "big") + 1


def _earlier_facts(patches: Sequence[NeuralDBPatch], facts: Sequence[Fact]) -> list[Fact]:
    """Return facts of active patches with the subject of a new one, and another prompt."""
    subjects = {fact.subject for fact in facts}
    taken = {(fact.prompt, fact.chat) for fact in facts}
    last = {
        (fact.prompt, fact.chat): fact
        for patch in patches
        for fact in patch.facts
        if fact.subject in subjects
    }
    return [fact for place, fact in last.items() if place not in taken]


def _largest_cosines(
    lm: LanguageModel, texts: Sequence[str], keys: Float[Tensor, "n d_in"], site: Site
) -> list[float]:
    """Return the largest cosine of any token of each text with any key."""
    rows = [encode(lm, text).ids for text in texts]
    units = torch.nn.functional.normalize(keys, dim=1)
    found: dict[int, float] = {}
    for batch in batches(lm, [len(ids) for ids in rows], None):
        tokens = Tokens.pad([rows[index] for index in batch], pad_id(lm)).to(lm.device)
        taken = lm.tap(tokens, [key(site)])[key(site)].float()
        for place, index in enumerate(batch):
            own = torch.nn.functional.normalize(taken[place, : len(rows[index])], dim=1)
            found[index] = float((own @ units.to(own).T).max())
    return [found[index] for index in range(len(rows))]
