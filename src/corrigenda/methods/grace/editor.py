"""GRACE: a codebook at one layer replaces its output where the prompt's key is in the codebook."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping, Sequence
from contextlib import AbstractContextManager
from functools import cached_property
from types import MappingProxyType
from typing import ClassVar, Literal

import torch
from jaxtyping import Float, Int
from pydantic import Field
from torch import Tensor

from corrigenda.editor import Edit, Editor, Requires, StageWork, Supports
from corrigenda.engines.answer_loss import score_answers, step_tokens
from corrigenda.engines.gradients import LabelledRow, labelled_rows
from corrigenda.engines.shared_memory import (
    KeyDistances,
    SharedMemory,
    join,
    key_distances,
    key_noise,
    keys_at,
    memory_of,
    suspend,
)
from corrigenda.facts import Fact
from corrigenda.linalg.nearest import NearestSearch
from corrigenda.lm.footprint import (
    FLOAT,
    USUAL_READS,
    USUAL_TOKENS,
    cache_bytes,
    graph_bytes,
    head_bytes,
    head_flops,
    pass_bytes,
    pass_flops,
)
from corrigenda.lm.hooks import TensorMap
from corrigenda.lm.model import LanguageModel
from corrigenda.lm.naming import gather
from corrigenda.lm.sites import Point, Site, key, value
from corrigenda.methods.grace.codebook import (
    ACT_NAMES,
    TAKEN_OVER,
    Codebook,
    CodebookRecords,
    FactPlacement,
    out_of_reach,
    place_facts,
)
from corrigenda.methods.grace.training import (
    Replace,
    ValueTrace,
    ValueTraining,
    replaced_at,
    train_values,
)
from corrigenda.patch import ModulePatch
from corrigenda.settings import select
from corrigenda.state import State

_DEPTH = 27 / 32


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

    def without_facts(self, gone: Collection[int]) -> GracePatch:
        """Return the patch without some facts' entries, and what these did to other entries."""
        facts = [index for index in range(len(self.header.facts)) if index not in gone]
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
        group = _group(self.site, self.replace)
        return join(lm, self, group, lambda: _ActiveCodebook(lm, self.site, self.replace))


class _ActiveCodebook(SharedMemory[GracePatch]):
    """Codebook of all active patches at one site, with the hooks that search it and replace."""

    def __init__(self, lm: LanguageModel, site: Site, replace: Replace) -> None:
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
            return Codebook.of(CodebookRecords.concatenate(parts)) if parts else None

    @cached_property
    def _nearest(self) -> NearestSearch:
        assert self.book is not None, "some patch has an entry"
        with torch.inference_mode(False):
            return NearestSearch(self.book.keys.to(self.lm.device_at(self.site)))

    def forget(self) -> None:
        for name in ("book", "_nearest"):
            if name in self.__dict__:
                delattr(self, name)

    def transforms(self) -> Mapping[Point, TensorMap]:
        return {key(self.site): self._read, value(self.site): self._write}

    def _read(self, inputs: Float[Tensor, "batch pos d_in"]) -> Tensor:
        ends, book = self.lm.prompt_ends, self.book
        self._route = None
        if not (self.suspended or book is None or (ends.continued and self.replace != "all")):

            def decide(ends: Int[Tensor, " batch"]) -> Tensor:
                found = self._nearest.search(gather(inputs, ends))
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


class Grace(Editor):
    """Stores one vector for each edit in a codebook, found by the prompt's key; weights stay.

    Reference: Hartvigsen et al. 2023, sections 2 and 3, algorithm 1. See the card, `grace.md`.
    """

    name: ClassVar[str] = "grace"
    requires: ClassVar[Requires] = Requires()
    learns_rows: ClassVar[bool] = True
    supports: ClassVar[Supports] = Supports(
        single=True, batch=True, sequential=True, exact=False, order_free=False, contained=True
    )

    layer: int | None = Field(
        default=None,
        ge=0,
        description="Block of the layer; at 27/32 of the depth, and not the last, if not given.",
    )
    part: Literal["mlp.down", "mlp.up", "mlp.gate", "attn.out"] = Field(
        default="mlp.down", description="The layer within the block."
    )
    radius: float = Field(
        default=1.0, gt=0, description="Radius of a new ball, epsilon, in units of the keys."
    )
    replace: Replace = Field(
        default="last",
        description="Tokens whose output is replaced: the prompt's last, those before it, or all.",
    )
    start: Literal["cold", "warm"] = Field(
        default="cold",
        description="First value: uniform in [0, 1), or the layer's own output at the key.",
    )
    steps: int = Field(default=100, ge=1, description="Steps for each value, at most.")
    learning_rate: float = Field(default=1.0, gt=0, description="Of Adam.")
    stop_loss: float = Field(
        default=0.01,
        ge=0,
        description="Loss below which a value is done, if every token is the model's first choice. "
        "0 takes all steps.",
    )
    seed: int = Field(default=0, description="Of cold first values.")

    def sites(self, lm: LanguageModel) -> tuple[Site, ...]:
        """Return no sites: no weight changes; `site` is the layer with the codebook."""
        return ()

    def site(self, lm: LanguageModel) -> Site:
        """Return the layer with the codebook.

        Raises:
            UnknownSite (CG303): the model has no such layer, or it belongs to experts.
        """
        usual = max(0, min(int(_DEPTH * lm.num_layers), lm.num_layers - 2))
        site = Site(usual if self.layer is None else self.layer, self.part)
        lm.module(site)
        return site

    def working_memory(self, lm: LanguageModel, num_facts: int) -> int:
        """Return the bytes of the codebook, of Adam's moments, and of one graph above the layer."""
        site = self.site(lm)
        above = lm.num_layers - site.layer
        rows = min(num_facts, max(1, step_tokens(lm) // USUAL_TOKENS))
        tokens = rows * (USUAL_READS if self.replace == "last" else USUAL_TOKENS)
        d_out, d_in = lm.shape(site)
        stored = num_facts * FLOAT * (d_in + 4 * d_out)
        constants = cache_bytes(lm, rows * USUAL_TOKENS, above)
        graph = graph_bytes(lm, above, tokens) + head_bytes(lm, rows * USUAL_READS)
        asking = pass_bytes(lm, rows * USUAL_TOKENS, 0)
        return stored + max(asking, constants + graph)

    def patch_bytes(self, lm: LanguageModel, num_facts: int) -> int:
        """Estimate the bytes of the entries: a key and a value for each fact."""
        return num_facts * FLOAT * sum(lm.shape(self.site(lm)))

    def editing_work(self, lm: LanguageModel, num_facts: int) -> tuple[StageWork, ...]:
        """Estimate the operations of all steps: two passes of the later blocks each."""
        site = self.site(lm)
        tail = USUAL_READS if self.replace == "last" else USUAL_TOKENS
        one = pass_flops(lm, num_facts * tail, site.layer + 1)
        one += head_flops(lm, num_facts * USUAL_READS)
        before = pass_flops(lm, 3 * num_facts * USUAL_TOKENS)
        return (StageWork("training", before + 2 * self.steps * one),)

    def distances(self, lm: LanguageModel, facts: Sequence[Fact]) -> KeyDistances:
        """Measure distances of keys of paraphrases, neighbours and other facts, to set `radius`."""
        return key_distances(lm, facts, key(self.site(lm)))

    def edit(self, lm: LanguageModel, facts: Sequence[Fact], state: State | None = None) -> Edit:
        """Add entries for the facts to the codebook that is active; the model is left as it is.

        Facts that the model answers already are left alone. The state is returned as it is: the
        codebook is that of the active patches.

        Raises:
            PromptTooLong (CG105): a fact does not fit into the context.
            NonFinite (CG201): the model gives no finite loss.
            UnknownSite (CG303): see `site`.
        """
        site = self.site(lm)
        config = {**self.model_dump(mode="json"), "layer": site.layer}
        if not facts:
            return Edit(GracePatch.make(lm, {}, method=self.name, config=config), state)
        rows = labelled_rows(lm, facts)
        active = memory_of(lm, _ActiveCodebook, _group(site, self.replace))
        book = None if active is None else active.book
        before, right = score_answers(lm, rows)
        keys = keys_at(lm, [row.ids[: row.reads[0] + 1] for row in rows], key(site))
        noise = key_noise(lm, keys)
        targets = [row.labels for row in rows]
        plan = place_facts(book, keys, targets, right, radius=self.radius, noise=noise)
        names = [fact.label for fact in facts]
        with suspend(active):
            idle = () if active is None else active.patches
            values, traces = self._train_values(lm, site, rows, plan, book, names, idle)
        done = [index for index, one in enumerate(plan) if one.act is not None]
        stored = _to_records(done, plan, keys, values, targets) if done else {}
        notes = _notes(facts, plan, before, traces, noise, lost=_find_lost(active, stored, facts))
        patch = GracePatch.make(
            lm, stored, method=self.name, config=config, facts=facts, notes=notes
        )
        return Edit(patch, state)

    def _train_values(
        self,
        lm: LanguageModel,
        site: Site,
        rows: Sequence[LabelledRow],
        plan: Sequence[FactPlacement],
        book: Codebook | None,
        names: Sequence[str],
        idle: Sequence[object],
    ) -> tuple[Float[Tensor, "n d_out"], dict[int, ValueTrace]]:
        """Train values; one that continues another fact's value is trained after that one."""
        values = self._first_values(lm, site, rows)
        traces: dict[int, ValueTrace] = {}
        training = select(ValueTraining, self)
        open_ones = [index for index, one in enumerate(plan) if one.act is not None]
        while open_ones:
            now = [i for i in open_ones if plan[i].follows is None or plan[i].follows in traces]
            continued = []
            for index in now:
                follows, continues = plan[index].follows, plan[index].continues
                if follows is not None:
                    values[index] = values[follows]
                elif continues is not None and book is not None:
                    values[index] = book.values(torch.tensor([continues]))[0]
                continued.append(follows is not None or continues is not None)
            trained = train_values(
                lm,
                site,
                [rows[index] for index in now],
                values[now],
                training,
                continued=continued,
                names=[names[index] for index in now],
                suspended=idle,
            )
            values[now] = trained.values
            traces |= dict(zip(now, trained.traces, strict=True))
            open_ones = [index for index in open_ones if index not in traces]
        return values, traces

    def _first_values(
        self, lm: LanguageModel, site: Site, rows: Sequence[LabelledRow]
    ) -> Float[Tensor, "n d_out"]:
        prompts = [row.ids[: row.reads[0] + 1] for row in rows]
        if self.start == "warm":
            return keys_at(lm, prompts, value(site))
        width = lm.shape(site)[0]
        drawn = []
        for row in rows:
            content = f"{self.seed}/{row.ids}/{row.labels}".encode()
            seed = int.from_bytes(hashlib.sha256(content).digest()[:7], "big")
            drawn.append(torch.rand(width, generator=torch.Generator().manual_seed(seed)))
        return torch.stack(drawn)


def _group(site: Site, replace: Replace) -> tuple[str, Site, Replace]:
    return "grace", site, replace


def _to_records(
    done: Sequence[int],
    plan: Sequence[FactPlacement],
    keys: Float[Tensor, "n d_in"],
    values: Float[Tensor, "n d_out"],
    targets: Sequence[tuple[int, ...]],
) -> dict[str, Tensor]:
    own = [plan[index] for index in done]
    return CodebookRecords(
        keys=keys[done],
        values=values[done],
        radii=torch.tensor([one.radius for one in own], dtype=torch.float64),
        acts=torch.tensor([one.act for one in own]),
        ids=torch.tensor([one.id for one in own]),
        roots=torch.tensor([one.root for one in own]),
        root_radii=torch.tensor([one.root_radius for one in own], dtype=torch.float64),
        targets=torch.tensor([token for index in done for token in targets[index]]),
        lengths=torch.tensor([len(targets[index]) for index in done]),
        facts=torch.tensor(list(done)),
    )._asdict()


def _find_lost(
    active: _ActiveCodebook | None, stored: Mapping[str, Tensor], facts: Sequence[Fact]
) -> list[str]:
    """Return the facts, of this edit or before, that the new balls moved out of reach."""
    if not stored:
        return []
    earlier = [] if active is None else [patch for patch in active.patches if patch.stored]
    parts = [*(patch.stored for patch in earlier), stored]
    everyone = [*(patch.facts for patch in earlier), facts]
    owners = [
        own[fact]
        for own, part in zip(everyone, parts, strict=True)
        for fact in part["facts"].tolist()
    ]
    lost = set(out_of_reach(Codebook.of(CodebookRecords.concatenate(parts))))
    if earlier:
        lost -= set(out_of_reach(Codebook.of(CodebookRecords.concatenate(parts[:-1]))))
    edited_again = {fact.prompt for fact in facts}
    new = len(owners) - len(parts[-1]["facts"])
    return [
        owners[row].label
        for row in sorted(lost)
        if row >= new or owners[row].prompt not in edited_again
    ]


def _notes(
    facts: Sequence[Fact],
    plan: Sequence[FactPlacement],
    before: Sequence[float],
    traces: Mapping[int, ValueTrace],
    noise: Sequence[float],
    *,
    lost: Sequence[str],
) -> dict[str, object]:
    statuses, notices = [], []
    for index, (fact, one) in enumerate(zip(facts, plan, strict=True)):
        trace = traces.get(index)
        if trace is None:
            statuses.append("true already")
            continue
        statuses.append("written" if trace.right else "not converged")
        if not trace.right:
            notices.append(
                f"{fact.label}: not converged; the answer's loss is {min(trace.losses):.2f}."
            )
        tight = min(one.radius, one.root_radius if one.root else one.radius)
        if one.act != TAKEN_OVER and tight <= noise[index]:
            notices.append(
                f"{fact.label}: a ball of radius {tight:.2g} is smaller than rounding; the prompt "
                "may be missed."
            )
    notices += [f"{label}: out of reach; a ball it shared was halved." for label in lost]
    return {
        "status": statuses,
        "notices": notices,
        "acts": ["none" if one.act is None else ACT_NAMES[one.act] for one in plan],
        "nearest": [float(f"{min(one.distance, 1e30):.6g}") for one in plan],
        "losses": [
            [float(f"{loss:.6g}") for loss in (traces[i].losses if i in traces else [early])]
            for i, early in enumerate(before)
        ],
        "stop": [traces[i].stop if i in traces else "right already" for i in range(len(plan))],
    }
