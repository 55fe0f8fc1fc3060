"""The engine of causal tracing: noise the subject, restore clean states, read the answer.

One batch holds everything that is compared: row 0 is the clean run, the next rows are the corrupted
runs, one for each noise sample, and then come the patched runs, one for each (restoration, noise
sample). Clean values are read from row 0 of the same pass and corrupted ones from the rows of the
same sample, so nothing is recorded and no second pass is needed, and all runs of one sample carry
the same noise.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from corrigenda.facts import find_subject
from corrigenda.lm.model import LanguageModel
from corrigenda.lm.sites import Point, Tokens, state
from corrigenda.lm.spans import encode


class TracedPrompt(NamedTuple):
    """Prompt with its subject marked and an answer whose probability is read.

    Attributes:
        ids: Token ids of the prompt and of all but the last answer token.
        subject: Positions of the subject's tokens.
        prompt_last: Position of the prompt's last token.
        labels: Answer tokens; label j is read from the logits at `prompt_last + j`.
    """

    ids: tuple[int, ...]
    subject: range
    prompt_last: int
    labels: tuple[int, ...]


class Restoration(NamedTuple):
    """States that one patched run changes, at every one of `positions`.

    Attributes:
        positions: Positions in the sequence.
        clean: Points whose values are taken from the clean run.
        corrupted: Points whose values are taken from the corrupted run with the same noise (severed
            paths). A point that is listed in both is restored.
    """

    positions: tuple[int, ...]
    clean: tuple[Point, ...] = ()
    corrupted: tuple[Point, ...] = ()


class AnswerProbabilities(NamedTuple):
    """Probability of the answer in every run.

    For several answer tokens it is their geometric mean under teacher forcing.

    Attributes:
        clean: P, of the clean run.
        corrupted: P* by noise sample.
        restored: By restoration and noise sample.
    """

    clean: Float[Tensor, ""]
    corrupted: Float[Tensor, " samples"]
    restored: Float[Tensor, "restorations samples"]


def measure_subject_deviation(lm: LanguageModel, prompts: Sequence[tuple[str, str]]) -> float:
    """Return the standard deviation of subject tokens' embeddings over a set of facts.

    It is measured at the output of the embedding module, where the noise is added, whatever the
    model does to embeddings later (positions, a norm, a scale).

    Args:
        lm: The model.
        prompts: Pairs of prompt and subject.

    Raises:
        SubjectNotFound (CG103): a subject does not occur in its prompt.

    Reference: ROME (Meng et al. 2022), appendix B.1: the noise is 3 times this deviation.
    """
    embed = lm.model.get_input_embeddings()
    rows = []
    for prompt, subject in prompts:
        encoded = encode(lm, prompt, subject=find_subject(prompt, subject))
        assert encoded.subject_first is not None
        assert encoded.subject_last is not None
        ids = encoded.ids[encoded.subject_first : encoded.subject_last + 1]
        with torch.inference_mode():
            rows.append(embed(torch.tensor(ids, device=lm.device)))
    return float(torch.cat(rows).cpu().double().std(correction=0))


def draw_noise(
    lm: LanguageModel, num_tokens: int, *, deviation: float, samples: int, seed: int
) -> Float[Tensor, "samples subject d_embed"]:
    """Draw Gaussian noise for the embeddings of a subject, equal for equal arguments.

    Drawn in float32 on the CPU and cast to the model's dtype and device.
    """
    embed = lm.model.get_input_embeddings()
    width = embed(torch.zeros(1, dtype=torch.long, device=lm.device)).shape[-1]
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(samples, num_tokens, width, generator=generator)
    return (deviation * noise).to(lm.device, lm.dtype)


def compute_probabilities(
    lm: LanguageModel,
    question: TracedPrompt,
    noise: Float[Tensor, "samples subject d_embed"],
    restorations: Sequence[Restoration],
    *,
    batch_tokens: int = 8192,
) -> AnswerProbabilities:
    """Compute the answer's probability in the clean, the corrupted and all patched runs.

    Args:
        lm: The model; left as it was.
        question: Prompt, subject and answer.
        noise: What is added to the embeddings of the subject's tokens, by sample.
        restorations: Patched runs; each is done once for every sample.
        batch_tokens: Tokens of one pass at most (one pass holds at least one restoration with all
            its samples).

    Reference: ROME (Meng et al. 2022), section 2.1.
    """
    samples = len(noise)
    length = len(question.ids)
    step = max(1, (batch_tokens // length - 1 - samples) // samples)
    parts = [restorations[at : at + step] for at in range(0, len(restorations), step)] or [()]
    reads = [_read_batch(lm, question, noise, part) for part in parts]
    clean, corrupted = reads[0][0], reads[0][1 : 1 + samples]
    restored = [read[1 + samples :].view(-1, samples) for read in reads]
    return AnswerProbabilities(clean, corrupted, torch.cat(restored))


def _read_batch(
    lm: LanguageModel,
    question: TracedPrompt,
    noise: Float[Tensor, "samples subject d_embed"],
    part: Sequence[Restoration],
) -> Float[Tensor, " rows"]:
    """Return the probability of the answer in the rows of one pass."""
    samples = len(noise)
    num_rows = 1 + samples * (1 + len(part))
    ids = torch.tensor(question.ids, device=lm.device).repeat(num_rows, 1)
    tokens = Tokens(ids, torch.ones_like(ids))
    first = question.prompt_last
    at = torch.arange(first, first + len(question.labels), device=lm.device).repeat(num_rows, 1)
    labels = torch.tensor(question.labels, device=lm.device).repeat(num_rows, 1)
    top = state(lm.num_layers - 1)
    swaps = {point: _make_swap(moves) for point, moves in _plan_moves(part, samples).items()}
    with _add_noise(lm, question.subject, noise.repeat(1 + len(part), 1, 1)), lm.swap(swaps):
        hidden = lm.tap(tokens, [top], positions=at)[top]
    with torch.inference_mode():
        logits = lm.head(hidden)
        log_p = logits.to(torch.promote_types(logits.dtype, torch.float32)).log_softmax(-1)
        picked = log_p.gather(-1, labels[..., None])[..., 0]
        return picked.mean(dim=-1).exp().cpu()


class _CellMoves(NamedTuple):
    """Cells `(row, position)` of one point that get the value of `(source, position)`."""

    rows: list[int]
    positions: list[int]
    sources: list[int]


def _plan_moves(part: Sequence[Restoration], samples: int) -> dict[Point, _CellMoves]:
    moves: dict[Point, _CellMoves] = {}
    for number, restoration in enumerate(part):
        restored = set(restoration.clean)
        severed = [point for point in restoration.corrupted if point not in restored]
        for point in (*restoration.clean, *severed):
            cells = moves.setdefault(point, _CellMoves([], [], []))
            for sample in range(samples):
                for position in restoration.positions:
                    cells.rows.append(1 + samples * (1 + number) + sample)
                    cells.positions.append(position)
                    cells.sources.append(0 if point in restored else 1 + sample)
    return moves


def _make_swap(
    moves: _CellMoves,
) -> Callable[[Float[Tensor, "batch pos d_model"]], Float[Tensor, "batch pos d_model"]]:
    rows, positions, sources = (torch.tensor(part) for part in moves)

    def put(values: Float[Tensor, "batch pos d_model"]) -> Float[Tensor, "batch pos d_model"]:
        at = positions.to(values.device)
        changed = values.clone()
        changed[rows.to(at.device), at] = values[sources.to(at.device), at]
        return changed

    return put


@contextmanager
def _add_noise(
    lm: LanguageModel, subject: range, noise: Float[Tensor, "rows subject d_embed"]
) -> Generator[None]:
    """Add noise to the token embeddings of all rows but the first, before positions are added."""

    def add(
        module: nn.Module, inputs: tuple[Int[Tensor, "batch pos"]], output: Tensor
    ) -> Float[Tensor, "batch pos d_embed"]:
        changed = output.clone()
        changed[1:, subject.start : subject.stop] += noise
        return changed

    handle = lm.model.get_input_embeddings().register_forward_hook(add)
    try:
        yield
    finally:
        handle.remove()
