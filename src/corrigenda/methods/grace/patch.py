"""GRACE's patch, entries of a codebook, and the codebook of all that are active at a site."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from functools import cached_property
from types import MappingProxyType
from typing import ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor

from corrigenda.engines.shared_memory import SharedMemory, join
from corrigenda.linalg.nearest import NearestSearch
from corrigenda.lm.hooks import TensorMap
from corrigenda.lm.model import LanguageModel
from corrigenda.lm.naming import gather
from corrigenda.lm.sites import Point, Site, key, value
from corrigenda.methods.grace.codebook import Codebook, CodebookRecords, out_of_reach
from corrigenda.methods.grace.training import Replace, replaced_at
from corrigenda.patch import ModulePatch


class GracePatch(ModulePatch):
    """Entries of a codebook, with their effect on the entries of earlier patches.

    Patches that are active at one site share one codebook.
    """

    kind: ClassVar[str] = "grace"
    may_be_bare = True
    forms = MappingProxyType(
        {
            "keys": "float n d_in",
            "values": "float n d_out",
            **dict.fromkeys(("radii", "root_radii"), "float n"),
            **dict.fromkeys(("acts", "ids", "roots", "lengths", "facts"), "int n"),
            "targets": "int tokens",
        }
    )
    options = MappingProxyType({"layer": int, "part": str, "replace": ("last", "prompt", "all")})

    def require_sound(self) -> None:
        """Refuse a site that is none, and answers that do not belong to the keys."""
        super().require_sound()
        if not self.stored:
            return
        _ = self.site
        if int(self.stored["lengths"].sum()) != len(self.stored["targets"]):
            raise ValueError("the lengths of the answers do not add up to their tokens")

    def sizes_in(self, lm: LanguageModel) -> dict[str, int]:
        """Return the widths of its site in a model."""
        d_out, d_in = lm.shape(self.site)
        return {"d_in": d_in, "d_out": d_out}

    def without(self, places: Sequence[int]) -> GracePatch:
        """Return the patch without some facts' entries, and what these did to other entries."""
        facts = [index for index in range(len(self.header.facts)) if index not in places]
        kept = CodebookRecords(**self.stored).of_facts(facts) if self.stored else None
        return GracePatch({} if kept is None else kept._asdict(), self.header.of_facts(facts))

    @property
    def site(self) -> Site:
        """Return the layer whose output is replaced."""
        config = self.header.config
        return Site.parse(f"{config['layer']}.{config['part']}")

    @property
    def replace(self) -> Replace:
        """Return which tokens' output is replaced."""
        return self.header.config["replace"]  # type: ignore[return-value]  # what `Grace` wrote

    def hooks(self, lm: LanguageModel) -> AbstractContextManager[object]:
        """Add the entries to the codebook of the model, until left."""
        group = codebook_group(self.site, self.replace)
        return join(lm, self, group, lambda: ActiveCodebook(lm, self.site, self.replace))


class ActiveCodebook(SharedMemory[GracePatch]):
    """Codebook of all active patches at one site, with the hooks that search it and replace."""

    def __init__(self, lm: LanguageModel, site: Site, replace: Replace) -> None:
        """Create a codebook without entries."""
        super().__init__(lm)
        self.site = site
        self.replace: Replace = replace
        self._route: Int[Tensor, " batch"] | None = None

    @cached_property
    def book(self) -> Codebook | None:
        """Return the codebook; None while no patch has an entry."""
        parts = [patch.stored for patch in self.patches if patch.stored]
        # It outlives the pass that needs it first.
        with torch.inference_mode(False):
            return Codebook.of(*parts) if parts else None

    @cached_property
    def nearest(self) -> NearestSearch:
        """Return the search among the keys of the codebook."""
        assert self.book is not None, "some patch has an entry"
        with torch.inference_mode(False):
            return NearestSearch(self.book.keys.to(self.lm.device_at(self.site)))

    @cached_property
    def lost(self) -> frozenset[int]:
        """Return the records that are out of reach."""
        book = self.book
        return frozenset() if book is None else frozenset(out_of_reach(book, self.nearest))

    def extend(self, patch: GracePatch) -> None:
        """Add the entries of a patch that became the last one."""
        self.drop("lost")
        book = self.__dict__.get("book")
        if book is None:
            self.forget()
        elif patch.stored:
            with torch.inference_mode(False):
                self.book = book.extend(patch.stored)
                if "nearest" in self.__dict__:
                    new = self.book.keys_from(len(book))
                    self.nearest.extend(new.to(self.lm.device_at(self.site)))

    def forget(self) -> None:
        """Drop the codebook, because a patch was taken out."""
        self.drop("book", "nearest", "lost")

    def transforms(self) -> Mapping[Point, TensorMap]:
        """Return hooks that search with the layer's input and replace its output."""
        return {key(self.site): self._read, value(self.site): self._write}

    def _read(self, inputs: Float[Tensor, "batch pos d_in"]) -> Tensor:
        ends, book = self.lm.prompt_ends, self.book
        self._route = None
        if not (self.suspended or book is None or (ends.continued and self.replace != "all")):

            def decide(ends: Int[Tensor, " batch"]) -> Tensor:
                found = self.nearest.search(gather(inputs, ends))
                return book.hits(found).to(inputs.device)

            self._route = ends.decide_once(self, decide)
        return inputs

    def _write(self, output: Float[Tensor, "batch pos d_out"]) -> Tensor:
        route, book = self._route, self.book
        if route is None or book is None:
            return output
        rows = (route >= 0).nonzero().squeeze(1)
        if not len(rows):
            return output
        values = book.values(route[rows].cpu()).to(output)
        columns = torch.arange(output.shape[1], device=output.device).expand(len(rows), -1)
        ends = columns[:, :1] if self.replace == "all" else self.lm.prompt_ends.ends[rows, None]
        where = replaced_at(columns, ends.to(columns.device), self.replace)
        output = output.clone()
        output[rows] = torch.where(where[..., None], values[:, None], output[rows])
        return output


def codebook_group(site: Site, replace: Replace) -> tuple[str, Site, Replace]:
    """Return what patches have in common that share a codebook."""
    return "grace", site, replace
