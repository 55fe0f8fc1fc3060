"""Time the batched target search against the plain one-by-one search it must agree with.

    python perf/target_search.py [--threads 1] [--facts 100] [--naive-facts 100]

Random weights in the shape of GPT-2 small (12 blocks x 768, vocabulary 50257), the vector enters at
the down projection of block 5, 20 steps, 6 contexts and the essence prompt per fact. The naive
search is what public code does: facts one by one, the sequences of a fact as one padded batch, a
full forward pass with a hook, log-probabilities of the whole vocabulary at every position.
`--naive-facts` times it on an evenly spaced part of the facts and scales up. The last line is one
JSON object.
"""

from __future__ import annotations

import argparse
import random
import time
from collections.abc import Callable
from itertools import pairwise

import torch
from figures import publish
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count
from transformers import GPT2Config, GPT2LMHeadModel

from corrigenda.engines.locate.target_search import SearchRow, SearchSettings, Targets, find_targets
from corrigenda.lm.model import LanguageModel
from corrigenda.testing.tokenizers import byte_level_bpe

LAYER = 5
SETTINGS = SearchSettings(
    steps=20, learning_rate=0.5, kl_weight=0.0625, weight_decay=0.001, clamp=4.0, stop_on="total"
)
CONTEXTS = 6
PREFIX_TOKENS = 11  # ten generated tokens and a full stop, as in MEMIT


def make_model() -> GPT2LMHeadModel:
    """Return a GPT-2 small with random weights, on the CPU in float32."""
    torch.manual_seed(0)
    return GPT2LMHeadModel(GPT2Config()).eval().requires_grad_(False)


def make_rows(num_facts: int) -> list[SearchRow]:
    """Return facts as long as those of CounterFact, whose prompts mostly begin with the subject."""
    draw = random.Random(0)

    def tokens(count: int) -> list[int]:
        return [draw.randrange(50257) for _ in range(count)]

    prefixes = [[], *(tokens(PREFIX_TOKENS) for _ in range(CONTEXTS - 1))]
    rows: list[SearchRow] = []
    for fact in range(num_facts):
        before = tokens(draw.choice((0, 0, 0, 0, draw.randint(1, 6))))
        subject, after = tokens(draw.randint(2, 7)), tokens(draw.randint(1, 6))
        target = tokens(draw.randint(1, 2))
        for index, prefix in enumerate(prefixes):
            head = [*prefix, *before, *subject]
            prompt = [*head, *after]
            reads = tuple(len(prompt) - 1 + j for j in range(len(target)))
            rows.append(
                SearchRow(
                    fact,
                    tuple(prompt + target[:-1]),
                    len(head) - 1,
                    reads,
                    tuple(target),
                    index == 0,
                )
            )
        rows.append(SearchRow(fact, tuple(subject), len(subject) - 1, (len(subject) - 1,), ()))
    return rows


def naive_search(model: GPT2LMHeadModel, rows: list[SearchRow], settings: SearchSettings) -> Tensor:
    """Search the vector of one fact in the plain way."""
    is_a = [318, 257]
    sequences = [list(row.ids) + (is_a if not row.labels else []) for row in rows]
    longest = max(map(len, sequences))
    ids = torch.tensor([ids + [0] * (longest - len(ids)) for ids in sequences])
    mask = torch.tensor([[1] * len(ids) + [0] * (longest - len(ids)) for ids in sequences])
    starts = torch.tensor([row.start for row in rows])
    labels = torch.full(ids.shape, -100)
    for i, row in enumerate(rows):
        for position, label in zip(row.reads, row.labels, strict=False):
            labels[i, position] = label
    wanted = labels != -100
    every, essence = torch.arange(len(rows)), len(rows) - 1
    delta = torch.zeros(model.config.n_embd, requires_grad=True)
    anchor: Tensor | None = None
    before: Tensor | None = None

    def add(_module: object, _inputs: object, output: Tensor) -> Tensor:
        nonlocal anchor
        if anchor is None:
            anchor = output[0, starts[0]].detach().clone()
        output = output.clone()
        output[every, starts] += delta
        return output

    optimiser = torch.optim.Adam([delta], lr=settings.learning_rate)
    handle = model.transformer.h[LAYER].mlp.register_forward_hook(add)
    try:
        for step in range(settings.steps):
            optimiser.zero_grad()
            logits = model(input_ids=ids, attention_mask=mask, use_cache=False).logits
            now = torch.log_softmax(logits[essence, starts[essence]], dim=-1)
            if before is None:
                before = now.detach().clone()
            log_p = torch.log_softmax(logits, dim=-1)
            picked = log_p.gather(2, labels.clamp_min(0)[:, :, None])[:, :, 0]
            contexts = len(rows) - 1
            nll = -((picked * wanted).sum(1)[:contexts] / wanted.sum(1)[:contexts]).mean()
            kl = settings.kl_weight * (now.exp() * (now - before)).sum()
            assert anchor is not None
            decay = settings.weight_decay * delta.norm() / anchor.norm() ** 2
            loss = nll + kl + decay
            if loss < settings.stop_loss or step == settings.steps - 1:
                break
            loss.backward()
            optimiser.step()
            with torch.no_grad():
                limit = settings.clamp * anchor.norm()
                if delta.norm() > limit:
                    delta *= limit / delta.norm()
    finally:
        handle.remove()
    return delta.detach()


def _attention_flops(
    query: list[int], key: list[int], value: list[int], *_: object, **__: object
) -> int:
    return sdpa_flop_count(query, key, value)


def _attention_flops_back(
    _grad: object, query: list[int], key: list[int], value: list[int], *_: object, **__: object
) -> int:
    return 5 * sdpa_flop_count(query, key, value) // 2


def count_flops(work: Callable[[], object]) -> int:
    """Return the floating-point operations of matrix products and attention in `work`."""
    aten = torch.ops.aten
    counter = FlopCounterMode(
        display=False,
        custom_mapping={
            aten._scaled_dot_product_flash_attention_for_cpu: _attention_flops,
            aten._scaled_dot_product_flash_attention_for_cpu_backward: _attention_flops_back,
        },
    )
    with counter:
        work()
    return counter.get_total_flops()


def count_steps(search: Callable[[SearchSettings], object], settings: SearchSettings) -> int:
    """Return the operations of a whole search, from those of its first two steps."""
    one = count_flops(lambda: search(settings._replace(steps=1)))
    two = count_flops(lambda: search(settings._replace(steps=2)))
    return one + (settings.steps - 1) * (two - one)


def main() -> None:
    """Run both searches and print the comparison."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--facts", type=int, default=100)
    parser.add_argument("--naive-facts", type=int, default=None)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    model = make_model()
    lm = LanguageModel(model, byte_level_bpe(), name="random-gpt2-small")
    rows = make_rows(options.facts)
    names = [f"fact {i}" for i in range(options.facts)]
    sample = min(options.naive_facts or options.facts, options.facts)
    chosen = [i * options.facts // sample for i in range(sample)]
    own = [[row for row in rows if row.fact == fact] for fact in chosen]

    def ours(settings: SearchSettings) -> Targets:
        return find_targets(lm, rows, layer=LAYER, role="value", settings=settings, names=names)

    def naive(settings: SearchSettings) -> Tensor:
        return torch.stack([naive_search(model, part, settings) for part in own])

    naive_search(model, own[0], SETTINGS._replace(steps=2))
    ours(SETTINGS._replace(steps=2))
    flops_ours = count_steps(ours, SETTINGS)
    flops_naive = count_steps(naive, SETTINGS) * options.facts / sample
    # The machine may be shared: ours is timed before and after the naive search.
    times = [time.perf_counter()]
    found = ours(SETTINGS)
    times.append(time.perf_counter())
    expected = naive(SETTINGS)
    times.append(time.perf_counter())
    ours(SETTINGS)
    times.append(time.perf_counter())
    before, seconds_naive, after = (end - begin for begin, end in pairwise(times))
    seconds_naive *= options.facts / sample
    seconds_ours = (before + after) / 2
    actual = found.deltas[chosen]
    difference = ((actual - expected).norm(dim=1) / expected.norm(dim=1)).max()
    figures = {
        "seconds_naive": round(seconds_naive, 2),
        "seconds_ours": round(seconds_ours, 2),
        "ratio": round(seconds_naive / seconds_ours, 2),
        "flop_ratio": round(flops_naive / flops_ours, 2),
        "relative_difference": float(f"{difference:.2e}"),
        "gflops_naive": round(flops_naive / seconds_naive / 1e9, 1),
        "gflops_ours": round(flops_ours / seconds_ours / 1e9, 1),
        "facts": options.facts,
        "naive_facts": sample,
        "stopped_early": sum(trace.stop == "loss" for trace in found.traces),
    }
    publish(figures, {"ratio": max(5.0, 0.8 * flops_naive / flops_ours)})


if __name__ == "__main__":
    main()
