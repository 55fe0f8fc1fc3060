"""Speed of `fit` for five layers against one plain forward pass to the same depth, and its memory.

A random model of the shape of GPT-2 small (12 blocks x 768) reads rows of 512 tokens; second
moments are gathered at the down projections of blocks 3 to 7. The plain pass is the first 8 blocks
of the same model, run by transformers alone in the same batches. Both are timed in turn and medians
compared. Last line: the figures as JSON.
"""

from __future__ import annotations

import argparse
import resource
import statistics
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import torch
from figures import publish
from transformers import GPT2Config, GPT2LMHeadModel

from corrigenda.lm.model import LanguageModel
from corrigenda.lm.sites import Site, Tokens
from corrigenda.statistics import Corpus, fit_moments, fitting
from corrigenda.statistics.token_rows import tokenise
from corrigenda.testing.tokenizers import byte_level_bpe

SITES = tuple(Site(layer) for layer in range(3, 8))
LENGTH = 512
TEXT = Path(__file__).resolve().parents[1] / "README.md"


def make_model() -> GPT2LMHeadModel:
    torch.manual_seed(0)
    return GPT2LMHeadModel(GPT2Config()).eval()


def seconds(run: Callable[[], object], device: str) -> tuple[float, float]:
    """Wall-clock and processor seconds; only the latter mean something on a shared machine."""
    if device != "cpu":
        torch.cuda.synchronize()
    start, busy = time.perf_counter(), time.process_time()
    run()
    if device != "cpu":
        torch.cuda.synchronize()
    return time.perf_counter() - start, time.process_time() - busy


def peak_bytes(device: str) -> int:
    """Largest resident memory of the process, or memory of the accelerator."""
    if device != "cpu":
        return torch.cuda.max_memory_allocated()
    # macOS counts bytes, Linux kibibytes.
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--tokens", type=int, default=16_384)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    warnings.filterwarnings("ignore", message="Few keys")
    model = make_model().to(options.device)
    lm = LanguageModel(model, byte_level_bpe(), name="random-gpt2-small")
    texts = [TEXT.read_text(encoding="utf-8")] * (options.tokens // 1000)
    corpus = Corpus(texts, num_tokens=options.tokens, length=LENGTH)
    rows = tokenise(lm.tokenizer, texts, length=LENGTH, pack=True, num_tokens=options.tokens)
    batches = [
        Tokens.pad([rows[index] for index in batch], 0).to(options.device)
        for batch in rows.batches(fitting.BATCH_TOKENS)
    ]
    del model.transformer.h[SITES[-1].layer + 1 :]

    def plain() -> None:
        with torch.inference_mode():
            for tokens in batches:
                model.transformer(tokens.ids, attention_mask=tokens.mask, use_cache=False)

    def fit() -> None:
        fit_moments(lm, SITES, corpus, keep=False)

    plain()
    before = peak_bytes(options.device)
    fit()
    peak = peak_bytes(options.device)
    times_plain, times_fit = [], []
    for _ in range(options.repeats):
        times_plain.append(seconds(plain, options.device))
        times_fit.append(seconds(fit, options.device))
    of_plain, busy_plain = map(statistics.median, zip(*times_plain, strict=True))
    of_fit, busy_fit = map(statistics.median, zip(*times_fit, strict=True))
    d_in = lm.d_inner
    figures = {
        "tokens_per_second_plain": round(rows.num_tokens / of_plain, 1),
        "tokens_per_second_fit": round(rows.num_tokens / of_fit, 1),
        "ratio": round(of_plain / of_fit, 3),
        "ratio_of_processor_time": round(busy_plain / busy_fit, 3),
        "ratios": [round(a[0] / b[0], 3) for a, b in zip(times_plain, times_fit, strict=True)],
        "peak_bytes": peak,
        "peak_bytes_of_plain": before,
        "bytes_of_sums": len(SITES) * d_in * d_in * (8 + 4),
        "tokens": rows.num_tokens,
        "layers": [site.layer for site in SITES],
        "d_in": d_in,
        "device": options.device,
    }
    publish(figures, {"ratio": 0.6})


if __name__ == "__main__":
    main()
