"""Statistics of keys over running text: second moments at many sites in one pass, kept on disk."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from corrigenda.fitting.corpus import Corpus, Source
from corrigenda.lm.model import LanguageModel
from corrigenda.lm.sites import Site
from corrigenda.progress import Progress
from corrigenda.state import State

__all__ = ["Corpus", "Source", "cache_folder", "fit_moments", "read_npz"]


def fit_moments(
    lm: LanguageModel,
    sites: Sequence[Site],
    corpus: Corpus | Source | None = None,
    *,
    progress: Progress | None = None,
    cache: bool = True,
) -> State:
    """Second moments of the keys at `sites`, C = E[k k^T] over the tokens of a text."""
    raise NotImplementedError


def read_npz(files: Mapping[Site, str | Path]) -> State:
    """Second moments in the NPZ format of the ROME authors."""
    raise NotImplementedError


def cache_folder() -> Path:
    """Folder of the cache: `$CORRIGENDA_CACHE`, else the user's cache folder."""
    raise NotImplementedError
