"""Second moments of keys at many sites in one pass over a text."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

import torch
from jaxtyping import Float
from pydantic import JsonValue
from torch import Tensor

from corrigenda.errors import BadConfig
from corrigenda.linalg.moments import SecondMoment
from corrigenda.lm.model import LanguageModel
from corrigenda.lm.sites import Site, Tokens, key
from corrigenda.patch.ledger import ledger_of
from corrigenda.progress import Progress
from corrigenda.state import State, automatic_shrinkage
from corrigenda.statistics import cache
from corrigenda.statistics.corpus import (
    OWN_TEXT,
    Corpus,
    Source,
    complete_corpus,
    read_documents,
    write_own_text,
)
from corrigenda.statistics.token_rows import TokenRows, tokenise

_FORMAT = 1
BATCH_TOKENS = 4096
"""Tokens that are read together."""

_CHECKPOINT_TOKENS_PER_DIMENSION = 32
_TOKENS_OF_TEXT = 1_000_000
_OWN_TOKENS_PER_DIMENSION = 10
_CHOSEN_TOKENS_PER_DIMENSION = 2
_FEW_KEYS = 0.5
_LONGEST_ROW = 1024
_FIRST = "first/"
_NEXT_BATCH = "next_batch"


def fit_moments(
    lm: LanguageModel,
    sites: Sequence[Site],
    corpus: Corpus | Source | None = None,
    *,
    progress: Progress | None = None,
    keep: bool = True,
) -> State:
    """Fit the second moments C = E[k k^T] of the keys at `sites` in one pass over a text.

    The pass stops after the highest site. Keys count at every token, special ones included and
    padding excluded; at an expert only those routed to it. Results are cached, site by site,
    under a hash of the model, the site, the tokens and the settings, so that another method with
    the same site finds them. A killed run resumes at its last checkpoint, with the same result to
    the bit.

    `State.factor` draws the moment towards a multiple of the identity, the more the fewer keys
    there are (`automatic_shrinkage`); below one key for two dimensions with a warning.

    Args:
        lm: The model without active patches; the moment is of the model as it is.
        sites: Weights whose inputs are measured.
        corpus: A `Corpus`, or its `source`; None is the shipped corpus of a pocket model, for other
            models see `corrigenda.statistics.corpus.complete_corpus`.
        progress: Called with ("reading text" | "writing text" | "statistics", tokens done, tokens
            in all).
        keep: Read and write the cache.

    Returns:
        A state with the moments; `meta` names the base model and the corpus, and for each site the
        number of keys, keys per dimension, the shrinkage to be used, and the share of tr C that is
        due to position 0.

    Raises:
        BadConfig (CG502): no site, or a text that cannot be read.
        EmptyCorpus (CG602): the text holds no tokens.
        MissingExtra (CG504): a data set is named and `datasets` is not installed.
        NonFinite (CG201): a key is infinite or NaN.

    Reference: ROME (Meng et al. 2022), appendix E.5. There each layer is a pass of its own.
    """
    sites = tuple(dict.fromkeys(sites))
    if not sites:
        raise BadConfig("there is no site to fit.", where="fit_moments")
    if len(ledger_of(lm)):
        warnings.warn(
            "Patches are active: the statistics are those of the edited model. Fit before editing "
            "and pass the state on.",
            stacklevel=2,
        )
    wanted = complete_corpus(lm, corpus)
    rows = _read_rows(lm, sites, wanted, progress, keep=keep)
    run = _MomentPass(lm, lm.recall_digest(), rows, wanted.include_first_token, keep)
    found = {site: cache.read_state(run.name_moment(site)) if keep else None for site in sites}
    missing = [site for site, state in found.items() if state is None]
    if missing:
        running = run.run(missing, progress)
        for site in missing:
            state = found[site] = _make_state({site: running.pop(site)})
            if keep:
                cache.write_state(run.name_moment(site), state)
        cache.remove_state(run.name_checkpoint(missing))
    return _merge_states(run, wanted, {site: one for site, one in found.items() if one})


def text_tokens(width: int) -> int:
    """Return how many tokens of text are read for keys of a width, where no text is given."""
    return _CHOSEN_TOKENS_PER_DIMENSION * width


@dataclass
class _RunningMoment:
    """Sums for one site: the moment, and the part of tr S due to position 0."""

    moment: SecondMoment
    first: float = 0.0

    def add(self, keys: Float[Tensor, "n d_in"], first: Float[Tensor, "batch d_in"]) -> None:
        """Add the keys of a batch; `first` are those of position 0, counted or not."""
        self.moment.update(keys)
        self.first += float(first.double().square().sum())


@dataclass
class _MomentPass:
    """One pass over the rows: its settings, and the names that its results are cached under."""

    lm: LanguageModel
    digest: str
    rows: TokenRows
    include_first: bool
    keep: bool

    def __post_init__(self) -> None:
        self.settings = {
            "format": _FORMAT,
            "model": self.digest,
            "dtype": str(self.lm.dtype),
            "rows": self.rows.digest,
            "include_first_token": self.include_first,
            "batch_tokens": BATCH_TOKENS,
        }

    def name_moment(self, site: Site) -> str:
        """Return the file name of the finished moment of a site."""
        return f"{cache.hash_settings({**self.settings, 'site': str(site)})}.safetensors"

    def name_checkpoint(self, sites: Sequence[Site]) -> str:
        """Return the file name of the unfinished moments of several sites."""
        settings = {**self.settings, "sites": list(map(str, sites))}
        return f"{cache.hash_settings(settings)}.part.safetensors"

    def run(self, sites: Sequence[Site], progress: Progress | None) -> dict[Site, _RunningMoment]:
        """Sum over all batches, from the last checkpoint on."""
        name = self.name_checkpoint(sites)
        running, next_batch = self._resume(sites, name)
        # Sums are flushed where a checkpoint is due, kept or not and whatever the sites are, so
        # that neither the cache nor an interruption nor the company of other sites changes a bit of
        # the result.
        due_every = _CHECKPOINT_TOKENS_PER_DIMENSION * self.lm.d_inner
        done = since = 0
        if progress is not None:
            progress("statistics", 0, self.rows.num_tokens)
        for number, batch in enumerate(self.rows.batches(BATCH_TOKENS)):
            size = sum(self.rows.lengths[index] for index in batch)
            done, since = done + size, since + size
            due = since >= due_every
            since = 0 if due else since
            if number < next_batch:
                continue
            self._add(batch, running)
            if due:
                self._write_checkpoint(name, running, number + 1)
            if progress is not None:
                progress("statistics", done, self.rows.num_tokens)
        return running

    def _add(self, batch: list[int], running: Mapping[Site, _RunningMoment]) -> None:
        tokens = Tokens.pad([self.rows[index] for index in batch], 0).to(self.lm.device)
        counted = tokens.mask.bool()
        if not self.include_first:
            counted = counted.clone()
            counted[:, 0] = False
        tapped = self.lm.tap(tokens, [key(site) for site in running])
        for site, one in running.items():
            keys = tapped.pop(key(site))
            rows = keys.flatten(0, 1) if bool(counted.all()) else keys[counted]
            first = keys[:, 0]
            if site.expert is not None:
                rows, first = _select_routed(rows), _select_routed(first)
            one.add(rows, first)

    def _write_checkpoint(
        self, name: str, running: Mapping[Site, _RunningMoment], next_batch: int
    ) -> None:
        state = _make_state(running).updated({_NEXT_BATCH: torch.tensor(next_batch)})
        if self.keep:
            cache.write_state(name, state)

    def _resume(self, sites: Sequence[Site], name: str) -> tuple[dict[Site, _RunningMoment], int]:
        kept = cache.read_state(name) if self.keep else None
        # Some other accelerators have no float64.
        device = self.lm.device if self.lm.device.type == "cuda" else "cpu"
        running: dict[Site, _RunningMoment] = {}
        for site in sites:
            if kept is None:
                width = self.lm.shape(site)[1]
                running[site] = _RunningMoment(SecondMoment(width, device=device))
            else:
                first = float(kept.tensors[f"{_FIRST}{site}"])
                running[site] = _RunningMoment(kept.moment(site, device=device), first)
        return running, 0 if kept is None else int(kept.tensors[_NEXT_BATCH])


def _make_state(running: Mapping[Site, _RunningMoment]) -> State:
    """Make the state that is saved: the sums and what belongs to position 0."""
    firsts = {
        f"{_FIRST}{site}": torch.tensor(one.first, dtype=torch.float64)
        for site, one in running.items()
    }
    return State.of_moments({site: one.moment for site, one in running.items()}).updated(firsts)


def _select_routed(keys: Float[Tensor, "n d_in"]) -> Float[Tensor, "n_routed d_in"]:
    """Return the rows of tokens that the expert saw; a tap fills the others with NaN."""
    return keys[~keys.isnan().all(dim=1)]


def _read_rows(
    lm: LanguageModel,
    sites: Sequence[Site],
    corpus: Corpus,
    progress: Progress | None,
    *,
    keep: bool,
) -> TokenRows:
    assert corpus.source is not None, "completed"
    width = max(lm.shape(site)[1] for site in sites)
    if corpus.source == OWN_TEXT:
        num_tokens = corpus.num_tokens or _OWN_TOKENS_PER_DIMENSION * width
        texts = write_own_text(lm, num_tokens, seed=corpus.seed, progress=progress, keep=keep)
    else:
        usual = text_tokens(width) if corpus.chosen else _TOKENS_OF_TEXT
        num_tokens = corpus.num_tokens or usual
        texts = read_documents(corpus.source)
    return tokenise(
        lm.tokenizer,
        texts,
        length=min(corpus.length or _LONGEST_ROW, lm.context_length),
        pack=corpus.pack,
        num_tokens=num_tokens,
        progress=progress,
    )


@dataclass(frozen=True)
class _MomentSummary:
    """Summary of the moment of a site."""

    count: int
    keys_per_dimension: float
    shrinkage: float
    first_token_share: float


def _merge_states(run: _MomentPass, corpus: Corpus, found: Mapping[Site, State]) -> State:
    """Merge the states of the sites into one."""
    tensors = {
        name: tensor
        for state in found.values()
        for name, tensor in state.tensors.items()
        if not name.startswith(_FIRST)
    }
    about = {str(site): _summarise(state, site, corpus) for site, state in found.items()}
    _warn_of_few_keys(about)
    meta: dict[str, JsonValue] = {
        "base_digest": run.digest,
        "base_name": run.lm.name,
        "dtype": str(run.lm.dtype),
        "quantised": run.lm.is_quantised,
        "corpus": {
            "digest": run.rows.digest,
            "num_rows": len(run.rows),
            "num_tokens": run.rows.num_tokens,
            "longest_row": max(run.rows.lengths),
            "name": corpus.name,
            "chosen": corpus.chosen,
            "written_by_model": corpus.source == OWN_TEXT,
            "pack": corpus.pack,
            "include_first_token": corpus.include_first_token,
        },
        "moments": {site: asdict(one) for site, one in about.items()},
    }
    if corpus.shrinkage is not None:
        meta["shrinkage"] = corpus.shrinkage
    return State(tensors, meta)


def _summarise(state: State, site: Site, corpus: Corpus) -> _MomentSummary:
    count = int(state.tensors[f"moment/{site}/count"])
    keys_per_dimension = count / len(state.tensors[f"moment/{site}/sum"])
    first = float(state.tensors[f"{_FIRST}{site}"])
    trace = float(state.tensors[f"moment/{site}/sum_of_products"].diagonal().sum())
    total = trace if corpus.include_first_token else trace + first
    return _MomentSummary(
        count=count,
        keys_per_dimension=keys_per_dimension,
        shrinkage=automatic_shrinkage(keys_per_dimension)
        if corpus.shrinkage is None
        else corpus.shrinkage,
        first_token_share=first / total if total else 0.0,
    )


def _warn_of_few_keys(about: Mapping[str, _MomentSummary]) -> None:
    few = {site: one for site, one in about.items() if one.keys_per_dimension < _FEW_KEYS}
    if few:
        least = min(one.keys_per_dimension for one in few.values())
        warnings.warn(
            f"Few keys: {least:.2f} per dimension at {', '.join(few)}; 1 is enough for single "
            "edits, 10 are good. Give more text.",
            stacklevel=4,
        )


def describe_moments(state: State, sites: Sequence[Site]) -> dict[str, JsonValue]:
    """Describe what the second moments of sites were made of, as a header keeps it.

    Returns:
        `corpus`, `tokens`, and by site `keys_per_dimension` and `shrinkage`; `chosen` and its
        `summary` in words where the text was chosen by default. Empty for a state that does not
        tell.
    """
    corpus, moments = state.meta.get("corpus"), state.meta.get("moments")
    if not isinstance(corpus, dict) or not isinstance(moments, dict) or "name" not in corpus:
        return {}
    kept: dict[str, JsonValue] = {}
    for site in map(str, sites):
        about = moments.get(site)
        if isinstance(about, dict):
            kept[site] = {name: about[name] for name in ("keys_per_dimension", "shrinkage")}
    found: dict[str, JsonValue] = {
        "corpus": corpus["name"], "digest": corpus["digest"], "tokens": corpus["num_tokens"],
        "sites": kept,
    }  # fmt: skip
    if corpus.get("chosen"):
        found["summary"] = (
            f"No text was given, so the second moments of keys are those of "
            f"{corpus['num_tokens']:,} tokens of {corpus['name']}. Give text (--text, corpus=) "
            "to choose another, as published comparisons do."
        )
        found["chosen"] = True
    return found
