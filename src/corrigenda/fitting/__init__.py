"""Statistics of keys over running text: second moments at many sites in one pass, kept on disk."""

from corrigenda.fitting.cache import cache_folder
from corrigenda.fitting.corpus import Corpus, Source
from corrigenda.fitting.moments import fit_moments
from corrigenda.fitting.npz import read_npz

__all__ = ["Corpus", "Source", "cache_folder", "fit_moments", "read_npz"]
