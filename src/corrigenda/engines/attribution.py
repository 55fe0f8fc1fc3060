"""Integrated gradients of an answer over the inner units of every feed-forward block.

A neuron is a pair (layer, unit): one entry of the input of a block's down projection, after the
non-linearity and, in gated blocks, after the product with the other branch. Its value vector is a
column of the down projection.

At one position the whole input k of one block is scaled from 0 to 1 while all else stays, so only
what the block adds there changes, by (alpha - 1) W k. One cached tail a block therefore serves all
steps: the gradient is taken at the d-vector W k and multiplied by W once.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from corrigenda.engines.gradients import scaled_gradients
from corrigenda.facts import Span
from corrigenda.lm.kv_cache import batches, pad_id, widen
from corrigenda.lm.model import LanguageModel
from corrigenda.lm.placement import multiply
from corrigenda.lm.sites import Site, Tokens, key, state, value, write
from corrigenda.lm.spans import encode
from corrigenda.lm.tail import Tail
from corrigenda.lm.tail_by_layer import tails_by_layer

Rule = Literal["midpoint", "left"]
Objective = Literal["probability", "log-probability"]

# Tokens of keys and values that the copies of one chunk may attend to.
_CPU_TOKENS = 1024
_GPU_TOKENS = 8192
_HEAD_NUMBERS = 1 << 25


class Neuron(NamedTuple):
    """One inner unit of a feed-forward block.

    Attributes:
        layer: Index of the block, from 0.
        unit: Entry of the down projection's input; its value vector is that column of the weight.
    """

    layer: int
    unit: int


class AnswerToken(NamedTuple):
    """One token of an answer, predicted after the true tokens before it.

    Attributes:
        ids: Token ids up to the one whose next-token distribution is read.
        label: The answer's token.
        at: Position whose inner units are scaled.
    """

    ids: tuple[int, ...]
    label: int
    at: int


class Attribution(NamedTuple):
    """Attribution of each inner unit; float64 on the CPU, means over the tokens of the answer.

    Attributes:
        scores: Attribution of every neuron.
        clean: The objective as the model is.
        without: The objective with all units of one block at 0.
    """

    scores: Float[Tensor, "prompt layer d_inner"]
    clean: Float[Tensor, " prompt"]
    without: Float[Tensor, "prompt layer"]

    @property
    def gaps(self) -> Float[Tensor, "prompt layer"]:
        """Difference of the sum of a block's attributions from `clean - without`; 0 is complete."""
        return self.scores.sum(dim=-1) - (self.clean[:, None] - self.without)


def encode_answers(
    lm: LanguageModel,
    prompts: Sequence[str],
    answer: str | None,
    *,
    subjects: Sequence[Span] | None = None,
    separator: str = " ",
    where: str = "",
) -> list[list[AnswerToken]]:
    """Encode the tokens of an answer after each prompt, each after the true tokens before it.

    Args:
        lm: The model.
        prompts: Phrasings of one question, the plain one first.
        answer: The answer; the model's own next token after the first prompt if None.
        subjects: Scale the units at the last token of this part of each prompt. If None, at the
            position from which each token of the answer is predicted, as in the paper.
        separator: Text between prompt and answer.
        where: How messages refer to the prompts.

    Raises:
        PromptTooLong (CG105), SubjectNotFound (CG103): see `corrigenda.lm.spans.encode`.
    """
    rows: list[list[AnswerToken]] = []
    own: tuple[int, ...] = ()
    for prompt, subject in zip(prompts, subjects or [None] * len(prompts), strict=True):
        one = encode(
            lm, prompt, target=answer or "", subject=subject, separator=separator, where=where
        )
        ids = tuple(one.ids[: one.prompt_last + 1])
        if answer is None and not own:
            own = (predict_token(lm, ids),)
        labels = one.target_ids if answer is not None else own
        rows.append(
            [
                AnswerToken(
                    ids=(*ids, *labels[:number]),
                    label=label,
                    at=one.prompt_last + number if one.subject_last is None else one.subject_last,
                )
                for number, label in enumerate(labels)
            ]
        )
    return rows


def predict_token(lm: LanguageModel, ids: Sequence[int]) -> int:
    """Return the model's most likely next token."""
    top = state(lm.num_layers - 1)
    tokens = Tokens.pad([ids], 0).to(lm.device)
    hidden = lm.tap(tokens, [top], positions=tokens.lengths - 1)[top]
    with torch.inference_mode():
        return int(lm.head(hidden)[0].argmax())


def attribute(
    lm: LanguageModel,
    answers: Sequence[Sequence[AnswerToken]],
    *,
    steps: int = 20,
    rule: Rule = "midpoint",
    objective: Objective = "probability",
    batch_tokens: int | None = None,
) -> Attribution:
    """Attribute answers to the neurons of all blocks.

    Attr_i = k_i * integral_0^1 dP / d(alpha k_i) d alpha, with P the probability of the answer's
    token when the input k of one block's down projection, at one position, is alpha k.

    Args:
        lm: The model; it stays as it is.
        answers: For each prompt the tokens of its answer, at least one.
        steps: Points of the integral.
        rule: "midpoint" takes alpha = (j + 1/2) / steps, "left" j / steps as the authors do.
        objective: What is attributed. Probabilities near 0 and 1 are flat; their logarithms are not
            near 0.
        batch_tokens: Tokens of one pass at most; None takes what suits the device.

    Raises:
        UnknownSite (CG303): a block is a mixture of experts.

    Reference: Dai et al. 2022, section 3.1, equations 2 and 3. The authors use the left rule, one
    answer token, and a pass through the whole model for each block and prompt.
    """
    rows = [(number, one) for number, own in enumerate(answers) for one in own]
    wide = torch.promote_types(lm.dtype, torch.float32)
    scores = torch.zeros(len(answers), lm.num_layers, lm.d_inner, dtype=torch.float64)
    clean = torch.zeros(len(answers), dtype=torch.float64)
    without = torch.zeros(len(answers), lm.num_layers, dtype=torch.float64)
    path = _IntegrationPath.of(steps, rule, device=lm.device, dtype=wide)
    for batch in batches(lm, [len(one.ids) for _, one in rows], batch_tokens):
        part = [rows[index][1] for index in batch]
        prompts = torch.tensor([rows[index][0] for index in batch])
        share = torch.tensor([1 / len(answers[rows[index][0]]) for index in batch]).double()
        tokens = Tokens.pad([one.ids for one in part], pad_id(lm)).to(lm.device)
        starts = torch.tensor([one.at for one in part], device=lm.device)
        labels = torch.tensor([one.label for one in part], device=lm.device)
        tails = tails_by_layer(lm, tokens, starts)
        blocks = _capture_blocks(lm, tokens, starts)
        for layer, (tail, block) in enumerate(zip(tails, blocks, strict=True)):
            read = _BlockObjective(lm, tail, block.written, tokens.lengths - 1, labels, objective)
            gradients, values = _integrate(read, path, batch_tokens)
            found = block.keys * multiply(block.gain * gradients, lm.values(Site(layer)))
            scores[:, layer].index_add_(0, prompts, share[:, None] * found.cpu().double())
            without[:, layer].index_add_(0, prompts, share * values[:, 0].cpu().double())
            if layer == 0:
                clean.index_add_(0, prompts, share * values[:, 1].cpu().double())
    return Attribution(scores, clean, without)


def select_above(
    scores: Float[Tensor, "prompt layer d_inner"], threshold: float
) -> Bool[Tensor, "prompt layer d_inner"]:
    """Select neurons whose attribution is at least a share of the largest of a prompt.

    Only positive attributions count. A threshold of 0 keeps all positive ones,
    one of 1 the largest only.

    Reference: Dai et al. 2022, section 3.2.
    """
    most = scores.amax(dim=(-2, -1), keepdim=True)
    return (scores >= threshold * most) & (scores > 0)


def select_shared(
    mask: Bool[Tensor, "prompt layer d_inner"], share: float, *, least: int = 3
) -> Bool[Tensor, "layer d_inner"]:
    """Select neurons found in at least a share of the prompts, and in `least` of them.

    Reference: Dai et al. 2022, section 3.2; `least` is of the authors' code.
    """
    number = len(mask)
    # 0.55 * 20 is a little more than 11.
    needed = max(share * number - 1e-9, min(least, number))
    return mask.sum(dim=0) >= needed


class RefinedNeurons(NamedTuple):
    """Neurons that several prompts of one fact have in common.

    Attributes:
        mask: Mask of the neurons.
        share: Final share of the prompts that was required.
    """

    mask: Bool[Tensor, "layer d_inner"]
    share: float


def refine(
    mask: Bool[Tensor, "prompt layer d_inner"],
    share: float,
    *,
    wanted: tuple[int, int] | None,
    step: float = 0.05,
    rounds: int = 6,
) -> RefinedNeurons:
    """Keep what prompts share, and move the share until the number of neurons is in a range.

    Args:
        mask: Neurons found for each prompt.
        share: Share of the prompts to begin with.
        wanted: Least and most neurons; None leaves the share as it is.
        step: By how much the share moves in a round.
        rounds: Most moves. Of the shares tried the one nearest to the range counts, and of equally
            near ones the first.

    Reference: Dai et al. 2022, section 4 and the authors' code, which move the share of a relation
    until the mean over its facts is in [2, 5]. Here each fact is refined by itself.
    """
    best = RefinedNeurons(select_shared(mask, share), share)
    if wanted is None:
        return best
    low, high = wanted

    def distance(one: RefinedNeurons) -> int:
        count = int(one.mask.sum())
        return max(low - count, count - high, 0)

    current = best
    for _ in range(rounds):
        if distance(best) == 0:
            break
        up = int(current.mask.sum()) > high
        moved = round(current.share + (step if up else -step), 6)
        if not 0 < moved <= 1:
            break
        current = RefinedNeurons(select_shared(mask, moved), moved)
        # Prefer few neurons to none, however near the range none may be.
        if (not current.mask.any(), distance(current)) < (not best.mask.any(), distance(best)):
            best = current
    return best


def select_specific(
    mask: Bool[Tensor, "layer d_inner"], others: Bool[Tensor, "prompt layer d_inner"], most: float
) -> Bool[Tensor, "layer d_inner"]:
    """Drop neurons found in more than a share of other prompts of the same relation.

    Reference: Dai et al. 2022, section 5.1, where the share is 10 % of the relation's facts.
    """
    return mask & (others.double().mean(dim=0) <= most) if len(others) else mask


def list_neurons(mask: Bool[Tensor, "layer d_inner"]) -> list[Neuron]:
    """Return the neurons of a mask, lowest layer first."""
    return [Neuron(layer, unit) for layer, unit in mask.nonzero().tolist()]


class _BlockOutput(NamedTuple):
    """Inner units and output of one block at the positions scaled.

    Attributes:
        keys: k, the inner units.
        written: What W k adds to the residual stream.
        gain: What a norm between the two multiplies each coordinate of W k by; 1 without a norm.
    """

    keys: Float[Tensor, "rows d_inner"]
    written: Float[Tensor, "rows d_model"]
    gain: Float[Tensor, "rows d_model"]


def _capture_blocks(
    lm: LanguageModel, tokens: Tokens, starts: Int[Tensor, " rows"]
) -> list[_BlockOutput]:
    """Capture keys and outputs of all blocks in one pass."""
    wide = torch.promote_types(lm.dtype, torch.float32)
    sites = [Site(layer) for layer in range(lm.num_layers)]
    has_norm = lm.family.mlp_norm is not None
    roles = (key, value, write) if has_norm else (key, value)
    seen = lm.tap(tokens, [role(site) for site in sites for role in roles], positions=starts)
    blocks = []
    for site in sites:
        output, bias = seen[value(site)].to(wide), lm.bias(site)
        gain = torch.ones_like(output)
        if has_norm:
            gain = seen[write(site)].to(wide) / torch.where(output == 0, gain, output)
        product = output if bias is None else output - bias.to(wide)
        blocks.append(_BlockOutput(seen[key(site)].to(wide), gain * product, gain))
    return blocks


class _IntegrationPath(NamedTuple):
    """Points on the path from 0 to k: first both ends with weight 0, then those of the integral."""

    alphas: Float[Tensor, " nodes"]
    weights: Float[Tensor, " nodes"]

    @classmethod
    def of(
        cls, steps: int, rule: Rule, *, device: torch.device, dtype: torch.dtype
    ) -> _IntegrationPath:
        offset = 0.5 if rule == "midpoint" else 0.0
        inner = [(number + offset) / steps for number in range(steps)]
        alphas = torch.tensor([0.0, 1.0, *inner], device=device, dtype=dtype)
        weights = torch.tensor([0.0, 0.0, *[1 / steps] * steps], device=device, dtype=dtype)
        return cls(alphas, weights)


class _BlockObjective(NamedTuple):
    """Objective of each row as a function of the output of one block."""

    lm: LanguageModel
    tail: Tail
    written: Float[Tensor, "rows d_model"]
    at: Int[Tensor, " rows"]
    labels: Int[Tensor, " rows"]
    objective: Objective

    def values(
        self, delta: Float[Tensor, "part d_model"], rows: Int[Tensor, " part"]
    ) -> Float[Tensor, " part"]:
        hidden = self.tail.run(delta, self.at[rows][:, None], rows)[:, 0]
        log_p = widen(self.lm.head(hidden)).log_softmax(dim=-1)
        picked = log_p.gather(-1, self.labels[rows][:, None])[:, 0]
        return picked if self.objective == "log-probability" else picked.exp()


def _integrate(
    read: _BlockObjective, path: _IntegrationPath, batch_tokens: int | None
) -> tuple[Float[Tensor, "rows d_model"], Float[Tensor, "rows nodes"]]:
    """Integrate gradients along the path at W k; also return the objective at every point."""
    written, device = read.written, read.written.device
    default = _CPU_TOKENS if device.type == "cpu" else _GPU_TOKENS
    vocabulary = read.lm.model.config.get_text_config().vocab_size
    longest = int(read.at.max()) + 1
    size = max(1, min((batch_tokens or default) // longest, _HEAD_NUMBERS // vocabulary))
    pairs = torch.cartesian_prod(
        torch.arange(len(written), device=device), torch.arange(len(path.alphas), device=device)
    )
    gradients = torch.zeros_like(written)
    values = written.new_zeros(len(written), len(path.alphas))
    for chunk in pairs.split(size):
        rows, nodes = chunk.unbind(dim=1)
        with torch.enable_grad():
            delta = ((path.alphas[nodes] - 1)[:, None] * written[rows]).requires_grad_()
            objectives = read.values(delta, rows)
            (slope,) = scaled_gradients(read.lm, objectives.sum(), [delta])
        gradients.index_add_(0, rows, path.weights[nodes][:, None] * slope)
        values[rows, nodes] = objectives.detach().to(values.dtype)
    return gradients, values
