"""Retrieval of stored texts by meaning: embeddings and exact search."""

from corrigenda.retrieval.embed import Embedder, embedder
from corrigenda.retrieval.index import Hits, Index

__all__ = ["Embedder", "Hits", "Index", "embedder"]
