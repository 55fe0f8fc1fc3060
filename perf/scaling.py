"""How the cost of closed-form edits grows: with the batch, with what was edited before, by solver.

    python perf/scaling.py [--model pocket] [--batches 1,10,100,1000] [--steps 10] [--threads 1]

Facts per second of MEMIT, EMMET and AlphaEdit on facts of the pocket world, in batches of growing
size; then ten batches of 100, each on top of the last, MEMIT and AlphaEdit protecting the keys of
all before. Then the solvers alone, on random keys of width 3072, against a dense solve per call as
public code does it (float64, the second moment added up and solved anew). The last line is one JSON
object. `--shape llama-3-8b` runs the batches on random bfloat16 weights of that shape instead,
which needs a GPU of 24 GB.
"""

from __future__ import annotations

import argparse
import random
import statistics
import sys
import time
import warnings
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial

import torch
from figures import publish
from transformers import LlamaConfig, LlamaForCausalLM

from corrigenda.almanac.corpus import texts
from corrigenda.almanac.exam import draw_edit
from corrigenda.almanac.skill_documents import list_teachable
from corrigenda.almanac.world import load_world
from corrigenda.editor import Editor, State
from corrigenda.facts import Fact
from corrigenda.linalg.cholesky import Cholesky
from corrigenda.linalg.lowrank import LowRank
from corrigenda.linalg.project import null_space
from corrigenda.linalg.solve import equality, null_space_ridge, ridge
from corrigenda.lm.model import LanguageModel
from corrigenda.methods.presets import build_editor
from corrigenda.testing.tokenizers import byte_level_bpe

METHODS: tuple[tuple[str, dict[str, object]], ...] = (
    ("memit", {"sequential": True}),
    ("emmet", {"gamma": 0.1}),
    ("alphaedit", {}),
)
SHAPES = {
    "llama-3-8b": LlamaConfig(
        vocab_size=128256,
        hidden_size=4096,
        intermediate_size=14336,
        num_hidden_layers=32,
        num_attention_heads=32,
        num_key_value_heads=8,
        max_position_embeddings=8192,
        rope_theta=500000.0,
    ),
    "tiny": LlamaConfig(
        vocab_size=1024,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
    ),
}
D_IN, D_OUT = 3072, 768


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="pocket", help="a name or a folder")
    parser.add_argument("--shape", choices=SHAPES, help="random bfloat16 weights instead")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--batches", default="1,10,100,1000")
    parser.add_argument("--sequence", type=int, default=10, help="batches of 100 in a row")
    parser.add_argument("--steps", type=int, default=10, help="of the target search")
    parser.add_argument("--fit-tokens", type=int, default=200_000, help="with --shape")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    warnings.filterwarnings("ignore", message="Few keys")
    lm = (
        shaped(options.shape, options.device)
        if options.shape
        else LanguageModel.load(options.model, dtype=torch.float32, device=options.device)
    )
    sizes = [int(size) for size in options.batches.split(",")]
    facts = make_facts(max([*sizes, 100 * options.sequence]))
    found: dict[str, object] = {"model": lm.name, "device": options.device, "steps": options.steps}
    for method, settings in METHODS:
        editor = build_editor(
            method, options.shape or lm.name, **{**settings, "steps": options.steps}
        )
        begin = time.perf_counter()
        state = editor.fit(lm, corpus(lm, options))
        found[f"{method}: fit seconds"] = round(time.perf_counter() - begin, 2)
        found |= batches(lm, editor, facts, state, sizes)
        if options.sequence:
            found |= sequence(lm, editor, facts, state, options.sequence)
    found |= solvers()
    names = ("ridge", "equality", "null space")
    publish(found, {f"solver {name}: times faster": 10.0 for name in names})


def shaped(shape: str, device: str) -> LanguageModel:
    """Random bfloat16 weights of a published shape."""
    torch.manual_seed(0)
    dtype = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        with torch.device(device):
            model = LlamaForCausalLM(SHAPES[shape])
    finally:
        torch.set_default_dtype(dtype)
    return LanguageModel(model.eval().requires_grad_(False), byte_level_bpe(), name=shape)


def corpus(lm: LanguageModel, options: argparse.Namespace) -> list[str]:
    """The pocket model's own text; for a shape, so much of it that the tokens are reached."""
    own = list(texts())
    if not options.shape:
        return own
    length = sum(len(lm.tokenizer(text).input_ids) for text in own[:200]) / 200
    return (own * 1000)[: int(options.fit_tokens / length)]


def make_facts(count: int) -> list[Fact]:
    """Counterfactual facts of the pocket world, one a subject."""
    world, draw = load_world(), random.Random("scaling")
    usable = [
        triple
        for triple in list_teachable(world)
        if len(triple.objects) == 1 and len(world.of_relation(triple.relation)) > 12
    ]
    draw.shuffle(usable)
    by_subject = {triple.subject: triple for triple in usable}
    return [draw_edit(world, triple, draw).fact for triple in list(by_subject.values())[:count]]


def batches(
    lm: LanguageModel, editor: Editor, facts: list[Fact], state: State, sizes: list[int]
) -> dict[str, object]:
    """Facts per second by size of the batch."""
    found: dict[str, object] = {}
    for size in sizes:
        if lm.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
        begin = time.perf_counter()
        editor.edit(lm, facts[:size], state)
        spent = time.perf_counter() - begin
        name = f"{editor.name}: batch of {size}"
        found[f"{name}, facts per second"] = round(size / spent, 3)
        if lm.device.type == "cuda":
            found[f"{name}, peak GB"] = round(torch.cuda.max_memory_allocated() / 1e9, 2)
        show(f"{name}: {spent / size:.3f} s a fact")
    return found


def sequence(
    lm: LanguageModel, editor: Editor, facts: list[Fact], state: State | None, count: int
) -> dict[str, object]:
    """Seconds per fact of each batch of 100 on top of those before."""
    seconds: list[float] = []
    with ExitStack() as stack:
        for number in range(count):
            part = facts[100 * number : 100 * (number + 1)]
            begin = time.perf_counter()
            patch, state = editor.edit(lm, part, state)
            seconds.append((time.perf_counter() - begin) / len(part))
            stack.enter_context(patch.apply(lm))
            show(f"{editor.name}: batch {number + 1} of 100: {seconds[-1]:.3f} s a fact")
    half = len(seconds) // 2
    name = f"{editor.name}: sequence"
    return {
        f"{name}, seconds per fact": [round(one, 4) for one in seconds],
        f"{name}, second half over first": round(
            statistics.median(seconds[half:]) / statistics.median(seconds[: half or 1]), 3
        ),
    }


def solvers() -> dict[str, object]:
    """Each solver, its factor stored, against a dense solve per call that must agree with it."""
    draw = torch.Generator().manual_seed(0)

    def random_matrix(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=draw, dtype=torch.float64)

    basis = random_matrix(D_IN, 2 * D_IN)
    C = basis @ basis.T / (2 * D_IN)
    begin = time.perf_counter()
    factor, projector = Cholesky.of(C), null_space(C, energy=0.02)
    found: dict[str, object] = {
        "solvers: once per layer, seconds": round(time.perf_counter() - begin, 2)
    }
    P, one = projector.to_dense(), torch.eye(D_IN, dtype=torch.float64)
    least: dict[str, float] = {}
    for n in (1, 10, 100):
        K, R = random_matrix(D_IN, n), random_matrix(D_OUT, n)
        ours: dict[str, Callable[[], LowRank]] = {
            "ridge": partial(ridge, K, R, factor, weight=15.0),
            "equality": partial(equality, K, R, factor),
            "null space": partial(null_space_ridge, K, R, projector),
        }
        dense: dict[str, Callable[[], torch.Tensor]] = {
            "ridge": partial(dense_ridge, K, R, C),
            "equality": partial(dense_equality, K, R, C),
            "null space": partial(dense_null_space, K, R, P, one),
        }
        for name, solve in ours.items():
            slow, fast = median_seconds(dense[name], 3), median_seconds(solve, 3)
            expected = dense[name]()
            differs = (solve().to_dense() - expected).norm() / expected.norm()
            least[name] = min(least.get(name, slow / fast), slow / fast)
            found[f"solver {name}, n = {n}: times faster"] = round(slow / fast, 1)
            found[f"solver {name}, n = {n}: relative difference"] = float(f"{differs:.1e}")
            show(f"solver {name}, n = {n}: {slow:.3f} s dense, {fast:.4f} s ours")
    return found | {f"solver {name}: times faster": round(v, 1) for name, v in least.items()}


def dense_ridge(K: torch.Tensor, R: torch.Tensor, C: torch.Tensor) -> torch.Tensor:
    """MEMIT, the system added up and solved anew."""
    return R @ torch.linalg.solve(15.0 * C + K @ K.T, K).T


def dense_equality(K: torch.Tensor, R: torch.Tensor, C: torch.Tensor) -> torch.Tensor:
    """EMMET, C solved anew."""
    adjusted = torch.linalg.solve(C, K)
    return R @ torch.linalg.solve(K.T @ adjusted, adjusted.T)


def dense_null_space(
    K: torch.Tensor, R: torch.Tensor, P: torch.Tensor, one: torch.Tensor
) -> torch.Tensor:
    """AlphaEdit, the projected system solved anew."""
    return torch.linalg.solve(P @ (K @ K.T) + one, P @ K @ R.T).T


def median_seconds(work: Callable[[], object], repeats: int) -> float:
    """Median time of some runs."""
    times = []
    for _ in range(repeats):
        begin = time.perf_counter()
        work()
        times.append(time.perf_counter() - begin)
    return statistics.median(times)


def show(line: str) -> None:
    """Print a line as soon as it is known."""
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
