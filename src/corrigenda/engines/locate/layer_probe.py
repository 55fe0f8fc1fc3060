"""Choice of the block to edit where there is no preset: a short causal trace of statements."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from corrigenda.facts import Span, find_subject
from corrigenda.lm.kv_cache import pad_id
from corrigenda.lm.model import LanguageModel
from corrigenda.lm.sites import Point, Site, Tokens, state, write
from corrigenda.lm.spans import encode

STATEMENTS: tuple[tuple[str, str], ...] = (
    ("The Eiffel Tower is located in the city of", "The Eiffel Tower"),
    ("The Great Wall is located in the country of", "The Great Wall"),
    ("The mother tongue of Leo Tolstoy is", "Leo Tolstoy"),
    ("Albert Einstein worked in the field of", "Albert Einstein"),
    ("Mozart was born in the city of", "Mozart"),
    ("Microsoft Windows was developed by", "Microsoft Windows"),
    ("The capital of South Korea is", "South Korea"),
    ("Toyota is headquartered in the country of", "Toyota"),
)
"""Prompts with their subjects; the answer traced is the model's own next token."""

_NOISES = 3
_NOISE_SCALE = 3.0
_CLEAR_EFFECT = 0.02


class LayerChoice(NamedTuple):
    """The block chosen for a model.

    Attributes:
        layer: Index of the block, from 0; never the last one.
        effects: Probability of the model's own answer won back by restoring a window of
            feed-forward outputs around each block at the subject's last token, mean over statements
            and noises.
        message: The choice and its reason, in one sentence.
    """

    layer: int
    effects: tuple[float, ...]
    message: str


_CHOICES: dict[tuple[str, str, int], LayerChoice] = {}


def probe_layer(lm: LanguageModel, *, seed: int = 0) -> LayerChoice:
    """Choose the block whose output at the subject's last token carries most of what is recalled.

    The subject's embeddings are disturbed by seeded noise of three standard deviations; then the
    clean outputs of a window of feed-forward blocks (a fifth of the depth) are put back at the
    subject's last token, one window after the other. The model is unchanged. The result is
    cached by the content of the model.

    Reference: ROME (Meng et al. 2022), section 2; there with 10 noises, 1000 facts and a window of
        10 of 48 blocks.
    """
    content = (lm.recall_digest(), lm.name, seed)
    if content not in _CHOICES:
        _CHOICES[content] = _probe(lm, seed)
    return _CHOICES[content]


@torch.inference_mode()
def _probe(lm: LanguageModel, seed: int) -> LayerChoice:
    last_allowed = max(lm.num_layers - 2, 0)
    statements = _NoisedStatements.of(lm, seed)
    half = lm.num_layers // 10
    effects = []
    for centre in range(last_allowed + 1):
        window = range(max(centre - half, 0), min(centre + half, lm.num_layers - 1) + 1)
        effects.append(float((statements.answers(lm, window) - statements.corrupted).mean()))
    peak = max(range(len(effects)), key=effects.__getitem__)
    if effects[peak] < _CLEAR_EFFECT:
        layer = min(lm.num_layers // 4, last_allowed)
        message = (
            f"No preset for {lm.name}, and a causal trace of {len(STATEMENTS)} statements shows no "
            f"block that recalls at the subject (best {effects[peak]:+.3f}): block {layer} is "
            "taken, a quarter of the depth. Give the layer to choose another."
        )
    else:
        layer = peak
        message = (
            f"No preset for {lm.name}: block {layer} was chosen by a causal trace of "
            f"{len(STATEMENTS)} statements (restoring it wins back {effects[peak]:.3f} of the "
            "answers' probability). Give the layer to choose another."
        )
    return LayerChoice(layer, tuple(round(effect, 5) for effect in effects), message)


class _NoisedStatements(NamedTuple):
    """Statements times noises, with the clean outputs to restore."""

    tokens: Tokens
    rows: Int[Tensor, " batch"]
    subject_last: Int[Tensor, " batch"]
    prompt_last: Int[Tensor, " batch"]
    answer: Int[Tensor, " batch"]
    noise: Float[Tensor, "batch pos d_model"]
    clean: dict[Point, Float[Tensor, "batch d_model"]]
    corrupted: Float[Tensor, " batch"]

    @classmethod
    def of(cls, lm: LanguageModel, seed: int) -> _NoisedStatements:
        encoded = [
            encode(lm.tokenizer, prompt, subject=Span(*find_subject(prompt, subject)))
            for prompt, subject in STATEMENTS
        ]
        encoded = [one for one in encoded for _ in range(_NOISES)]
        tokens = Tokens.pad([one.ids for one in encoded], pad_id(lm))
        tokens = tokens.to(lm.device)

        def column(values: list[int | None]) -> Int[Tensor, " batch"]:
            return torch.tensor([value or 0 for value in values], device=lm.device)

        first = column([one.subject_first for one in encoded])
        subject_last = column([one.subject_last for one in encoded])
        prompt_last = column([one.prompt_last for one in encoded])
        rows = torch.arange(len(encoded), device=lm.device)
        points = [write(Site(layer)) for layer in range(lm.num_layers)]
        clean = lm.tap(tokens, points, positions=subject_last)
        embedded = lm.tap(tokens, [state(-1)])[state(-1)]
        position = torch.arange(tokens.ids.shape[1], device=lm.device)
        inside: Bool[Tensor, "batch pos"] = (position >= first[:, None]) & (
            position <= subject_last[:, None]
        )
        scale = _NOISE_SCALE * embedded.float()[tokens.mask.bool()].std()
        generator = torch.Generator().manual_seed(seed)
        noise = torch.randn(embedded.shape, generator=generator).to(lm.device) * scale
        noise = (noise * inside[..., None]).to(embedded.dtype)
        answer = lm.logits(tokens)[rows, prompt_last].argmax(dim=-1)
        statements = cls(
            tokens,
            rows,
            subject_last,
            prompt_last,
            answer,
            noise,
            clean,
            noise.new_zeros(len(rows)),
        )
        return statements._replace(corrupted=statements.answers(lm, range(0)))

    def answers(self, lm: LanguageModel, window: range) -> Float[Tensor, " batch"]:
        """Return the probability of each answer with noise and the outputs of `window` restored."""

        def restore(point: Point) -> Callable[[Tensor], Tensor]:
            def fn(values: Tensor) -> Tensor:
                values = values.clone()
                values[self.rows, self.subject_last] = self.clean[point]
                return values

            return fn

        swaps: dict[Point, Callable[[Tensor], Tensor]] = {
            state(-1): lambda values: values + self.noise
        }
        swaps |= {write(Site(layer)): restore(write(Site(layer))) for layer in window}
        with lm.swap(swaps):
            logits = lm.logits(self.tokens)[self.rows, self.prompt_last]
        return logits.float().softmax(dim=-1)[self.rows, self.answer]
