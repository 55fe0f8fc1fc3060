"""Statistics of keys over running text: second moments at many sites in one pass, cached."""

from corrigenda.statistics.cache import cache_folder
from corrigenda.statistics.corpus import Corpus, Source
from corrigenda.statistics.fitting import fit_moments
from corrigenda.statistics.npz import read_npz

__all__ = ["Corpus", "Source", "cache_folder", "fit_moments", "read_npz"]
