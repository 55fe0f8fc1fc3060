"""UltraEdit: one gradient per answer token, normalised over the whole stream, and one ridge."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from itertools import islice
from typing import ClassVar, NamedTuple

import torch
from jaxtyping import Float, Int
from pydantic import Field
from torch import Tensor

from corrigenda.editor import Edit, Editor, Requires, Supports
from corrigenda.engines.closed_form import KeyRecords, RecordedBatch
from corrigenda.engines.gradients import (
    LabelledRow,
    Samples,
    by_length,
    gradient_samples,
    labelled_rows,
    mean_losses,
)
from corrigenda.facts import Fact
from corrigenda.linalg.lowrank import LowRank
from corrigenda.linalg.running import RunningStatistics
from corrigenda.linalg.solve import ridge
from corrigenda.lm.model import LanguageModel
from corrigenda.lm.sites import Site, resolve_sites
from corrigenda.patch import Header, WeightPatch, header_for
from corrigenda.patch.notes import EVEN_ODDS, round_series, round_values
from corrigenda.progress import Progress
from corrigenda.state import State
from corrigenda.statistics.corpus import (
    OWN_TEXT,
    complete_corpus,
    read_documents,
    write_own_text,
)
from corrigenda.training.dataset import TrainingSet, text_only

_EPSILON = 1e-7
_FLOOR = 1e-6
_ROUNDED_AWAY = 0.5
_ROW_OF_TEXT = 64
_ANSWER_OF_TEXT = 4
_DOCUMENTS_TO_DRAW_FROM = 50

Statistics = Mapping[str, RunningStatistics]


class EditingTurn(NamedTuple):
    """Samples, statistics and losses of one batch of facts, before anything is changed.

    Attributes:
        samples: By site, inputs and output gradients at all answer tokens of the batch.
        statistics: By shape of the weight, over all samples of this and earlier batches.
        losses: Mean loss of each fact's answer.
        rows: The facts as token rows.
        owners: The fact that each sample belongs to.
    """

    samples: dict[Site, Samples]
    statistics: dict[str, RunningStatistics]
    losses: list[float]
    rows: list[LabelledRow]
    owners: Int[Tensor, " samples"]


class UltraEdit(Editor):
    """Lifelong editing without training, subjects or stored edits: UltraEdit.

    Reference: Gu et al. 2025, section 3, algorithm 1. See the card.
    """

    name: ClassVar[str] = "ultraedit"
    requires: ClassVar[Requires] = Requires()
    learns_rows: ClassVar[bool] = True
    supports: ClassVar[Supports] = Supports(
        single=True, batch=True, sequential=True, exact=False, order_free=True
    )

    layers: tuple[int, ...] | dict[str, tuple[int, ...]] | None = Field(
        default=None,
        description="Blocks whose down projections change, or blocks by part; the last third but "
        "the last block if not given.",
    )
    learning_rate: float = Field(default=1e-6, gt=0, description="Length of a step, eta.")
    ridge: float = Field(default=1.0, gt=0, description="Price of a change, in squared key units.")
    micro_batch: int = Field(default=10, ge=1, description="Facts in one pass.")
    warm_up: int = Field(
        default=0, ge=0, description="Tokens of text that `fit` puts into the statistics."
    )
    parity: bool = Field(
        default=False,
        description="Average losses over a pass and count variances as the authors' code does.",
    )
    seed: int = Field(default=0, description="Of the choice of text for the warm-up.")

    def sites(self, lm: LanguageModel) -> tuple[Site, ...]:
        """Return the configured weights, lowest first.

        Raises:
            UnknownSite (CG303): the model has no such block or part.
        """
        layers = self.layers
        if layers is None:
            last = lm.num_layers - 1
            layers = tuple(range(2 * lm.num_layers // 3, last)) or (last,)
        return resolve_sites(lm, layers, where=f"method {self.name}")

    def fit(
        self,
        lm: LanguageModel,
        corpus: TrainingSet | None = None,
        *,
        progress: Progress | None = None,
    ) -> State:
        """Fit statistics on `warm_up` tokens of ordinary text; the state is empty with `warm_up=0`.

        The last four tokens of a text are taken as its answer.
        """
        if not self.warm_up:
            return State()
        rows = self._text_rows(lm, corpus, progress)
        statistics = self.observe(lm, rows, {}).statistics
        return self._update_state(State(), statistics, self._header(lm, [], {}))

    def edit(self, lm: LanguageModel, facts: Sequence[Fact], state: State | None = None) -> Edit:
        """Make one change for all facts, one turn; the model is left as it is.

        Returns:
            The patch, and the state with the statistics of all turns so far.

        Raises:
            PromptTooLong (CG105): a prompt and its target exceed the context.
            UnknownSite (CG303): a block or part the model does not have.
            WrongBase (CG401): the state belongs to another model.
            NonFinite (CG201): keys or gradients are infinite or NaN.
        """
        state = state or State()
        if not facts:
            return Edit(WeightPatch({}, self._header(lm, facts, {})), state)
        state.require_base(lm)
        turn = self.observe(lm, labelled_rows(lm, facts), self.statistics(state))
        changes = {
            site: self.shift(samples, turn.statistics[_shape_name(samples)])
            for site, samples in turn.samples.items()
        }
        notes = self._notes(lm, facts, turn, changes)
        header = self._header(lm, facts, notes)
        return Edit(
            WeightPatch(changes, header), self._update_state(state, turn.statistics, header)
        )

    @property
    def joins_batches(self) -> bool:
        """Whether all batches of a sequence are one system: each is solved by itself."""
        return False

    def record(self, lm: LanguageModel, facts: Sequence[Fact], state: State) -> RecordedBatch:
        """Find keys and wanted output changes at all answer tokens, with the errors of `edit`.

        The changes are normalised by the statistics so far, and are not normalised again when a
        fact is taken out.
        """
        state.require_base(lm)
        turn = self.observe(lm, labelled_rows(lm, facts), self.statistics(state))
        records, changes = {}, {}
        for site, samples in turn.samples.items():
            values = self.values(samples, turn.statistics[_shape_name(samples)])
            records[site] = KeyRecords(samples.keys.double(), values.double(), turn.owners)
            changes[site] = self.solve(samples.keys.T, values.T, state, site)
        notes = self._notes(lm, facts, turn, changes)
        after = self._update_state(state, turn.statistics, self._header(lm, facts, {}))
        statuses, notices = (tuple(notes[name]) for name in ("status", "notices"))  # type: ignore[arg-type]  # lists of sentences
        return RecordedBatch(records, after, statuses, notices)

    def observe(
        self, lm: LanguageModel, rows: Sequence[LabelledRow], earlier: Statistics
    ) -> EditingTurn:
        """Run a turn forward and backward and take its samples into the statistics."""
        statistics = dict(earlier)
        found: dict[Site, list[Samples]] = {site: [] for site in self.sites(lm)}
        losses: dict[int, float] = {}
        owners: list[int] = []
        reduction = "mean" if self.parity else "sum"
        for batch in by_length(rows, self.micro_batch):
            seen = gradient_samples(lm, batch, list(found), reduction=reduction)
            losses |= {row.fact: loss for row, loss in zip(batch, seen.losses, strict=True)}
            owners += [row.fact for row in batch for _ in row.labels]
            for site, samples in seen.samples.items():
                found[site].append(samples)
                joint, shape = torch.cat(samples, dim=1), _shape_name(samples)
                before = statistics.get(shape) or RunningStatistics.empty(joint.shape[1])
                statistics[shape] = before.with_samples(joint, unbiased_squares=self.parity)
        together = {
            site: Samples(*(torch.cat(parts) for parts in zip(*batches, strict=True)))
            for site, batches in found.items()
        }
        own = [losses[row.fact] for row in rows]
        return EditingTurn(together, statistics, own, list(rows), torch.tensor(owners))

    def values(
        self, samples: Samples, statistics: RunningStatistics
    ) -> Float[Tensor, "samples d_out"]:
        """Return the wanted output change at each sample: -eta ||h^||^2 g^, of normalised h, g."""
        width = samples.keys.shape[1]
        mean, std = statistics.mean, statistics.std
        keys = _normalise(samples.keys, mean[:width], std[:width])
        gradients = _normalise(samples.gradients, mean[width:], std[width:])
        return -self.learning_rate * keys.square().sum(1, keepdim=True) * gradients

    def shift(self, samples: Samples, statistics: RunningStatistics) -> LowRank:
        """Solve V^T (H H^T + ridge I)^-1 H, with keys H as they are and output changes V."""
        return self._solve(samples.keys.T, self.values(samples, statistics).T)

    def solve(
        self,
        keys: Float[Tensor, "d_in n"],
        residuals: Float[Tensor, "d_out n"],
        state: State,
        site: Site,
    ) -> LowRank:
        """Solve R K^T (K K^T + ridge I)^-1, which needs no state."""
        del state, site
        return self._solve(keys, residuals)

    def _solve(self, keys: Float[Tensor, "d_in n"], values: Float[Tensor, "d_out n"]) -> LowRank:
        return ridge(keys, values, None, weight=self.ridge)

    def statistics(self, state: State) -> dict[str, RunningStatistics]:
        """Return the statistics of earlier turns from a state, by shape of the weight."""
        prefix, found = f"{self.name}/", {}
        for name in state.tensors:
            if name.startswith(prefix) and name.endswith("/count"):
                shape = name.removeprefix(prefix).removesuffix("/count")
                parts = {
                    part: state.tensors[f"{prefix}{shape}/{part}"]
                    for part in ("count", "mean", "squares")
                }
                found[shape] = RunningStatistics.from_tensors(parts)
        return found

    def _update_state(self, state: State, statistics: Statistics, header: Header) -> State:
        tensors = {
            f"{self.name}/{shape}/{name}": tensor
            for shape, one in statistics.items()
            for name, tensor in one.tensors().items()
        }
        base = {"base_digest": header.base_digest, "base_name": header.base_name}
        return state.updated(tensors, base)

    def _header(
        self, lm: LanguageModel, facts: Sequence[Fact], notes: Mapping[str, object]
    ) -> Header:
        config = self.model_dump(mode="json")
        return header_for(lm, method=self.name, config=config, facts=facts, notes=notes)

    def _notes(
        self,
        lm: LanguageModel,
        facts: Sequence[Fact],
        turn: EditingTurn,
        changes: Mapping[Site, LowRank],
    ) -> dict[str, object]:
        notices = []
        counts = {shape: one.count for shape, one in turn.statistics.items()}
        if min(counts[_shape_name(samples)] for samples in turn.samples.values()) < 2:
            notices.append(
                "a single answer token cannot be normalised, so nothing is written; edit more "
                "facts at once, or fit with `warm_up`."
            )
        lost = {} if lm.is_quantised else _rounding_losses(lm, changes)
        gone = [str(site) for site, share in lost.items() if share > _ROUNDED_AWAY]
        if gone:
            notices.append(
                f"most of the change at {', '.join(gone)} is lost when it is rounded to {lm.dtype}:"
                " apply the patch at run time, add up the patches of several turns first, or load "
                "the model in float32."
            )
        after: dict[int, float] = {}
        with WeightPatch(changes, Header(method=self.name)).apply(lm, mode="runtime"):
            for batch in by_length(turn.rows, self.micro_batch):
                own = mean_losses(lm, batch)
                after |= {row.fact: loss for row, loss in zip(batch, own, strict=True)}
        pairs = list(zip(turn.losses, (after[row.fact] for row in turn.rows), strict=True))
        statuses = ["written" if late <= EVEN_ODDS else "not converged" for _, late in pairs]
        notices += [
            f"{fact.label}: {status}; the answer's loss went from {early:.2f} to {late:.2f}."
            for fact, status, (early, late) in zip(facts, statuses, pairs, strict=True)
            if status != "written"
        ]
        energy = {
            str(site): [float(one.keys.square().sum() / len(one.keys))]
            for site, one in turn.samples.items()
        }
        return {
            "status": statuses,
            "notices": notices,
            "losses": [round_values(pair) for pair in pairs],
            "samples": sum(len(row.labels) for row in turn.rows),
            "statistics": counts,
            "key_energy": round_series(energy),
            "rounding_loss": round_series({str(site): [lost[site]] for site in lost}),
            "layers": sorted({site.layer for site in changes}),
        }

    def _text_rows(
        self, lm: LanguageModel, corpus: TrainingSet | None, progress: Progress | None
    ) -> list[LabelledRow]:
        wanted = complete_corpus(lm, text_only(corpus, where=self.name))
        count = -(-self.warm_up // _ANSWER_OF_TEXT)
        source = wanted.source
        assert source is not None, "completed"
        if source == OWN_TEXT:
            tokens = count * _ROW_OF_TEXT
            source = write_own_text(lm, tokens, seed=wanted.seed, progress=progress, keep=True)
        texts = list(islice(read_documents(source), _DOCUMENTS_TO_DRAW_FROM * count))
        random.Random(self.seed).shuffle(texts)
        rows: list[LabelledRow] = []
        for text in texts:
            if len(rows) == count:
                break
            ids = tuple(lm.tokenizer(text).input_ids[:_ROW_OF_TEXT])
            if len(ids) > _ANSWER_OF_TEXT:
                reads = tuple(range(len(ids) - 1 - _ANSWER_OF_TEXT, len(ids) - 1))
                rows.append(LabelledRow(ids[:-1], reads, ids[-_ANSWER_OF_TEXT:], len(rows)))
        return rows


def _shape_name(samples: Samples) -> str:
    return f"{samples.gradients.shape[1]}x{samples.keys.shape[1]}"


def _normalise(
    samples: Float[Tensor, "samples d"], mean: Float[Tensor, " d"], std: Float[Tensor, " d"]
) -> Float[Tensor, "samples d"]:
    """Standardise; coordinates that hardly vary count as if they varied by a millionth."""
    return (samples - mean) / (std.clamp_min(_FLOOR * float(std.median())) + _EPSILON)


def _rounding_losses(lm: LanguageModel, changes: Mapping[Site, LowRank]) -> dict[Site, float]:
    """Return the share of each change that is lost when the weight is rounded to its dtype."""
    lost = {}
    for site, change in changes.items():
        weight, delta = lm.weight(site).double().cpu(), change.to_dense()
        written = (weight + delta).to(lm.weight(site).dtype).double() - weight
        size = float(delta.norm())
        lost[site] = float((written - delta).norm()) / size if size else 0.0
    return lost
