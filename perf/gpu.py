"""What a card does with a model of eight billion parameters, in at most eight minutes.

    python perf/gpu.py [--device cuda] [--minutes 8] [--tiny]

Random bfloat16 weights in the shape of Llama-3-8B, facts of the pocket world. Measured: second
moments at five blocks over 200,000 tokens; seconds a fact with ROME, one at a time, and with MEMIT
for 1, 32 and 256 facts, beside a plain search (facts one by one, the whole model in each step) on 3
of them; facts a second of UltraEdit; evaluation in batches against one prompt at a time; the peak
of allocated memory of each. What the time does not suffice for is left out, and named.

Beside each stand the seconds expected of an H200: counted operations over `--rate` of its
bfloat16 peak, solves at the rate of float64 products here. `--tiny` runs the same on a tiny shape.
The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import resource
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import evaluate
import torch
from figures import publish
from scaling import make_facts, shaped
from torch import Tensor

from corrigenda.catalogue import build_editor
from corrigenda.engines.locate import pipeline
from corrigenda.engines.locate.contexts import Contexts
from corrigenda.engines.locate.target_search import SearchRow, SearchSettings
from corrigenda.facts import Fact
from corrigenda.lm.footprint import Room
from corrigenda.lm.model import LanguageModel
from corrigenda.lm.sites import Site
from corrigenda.planning.plan import plan
from corrigenda.planning.shaped_model import shape_model
from corrigenda.statistics import Corpus, fit_moments

SHAPE, SHAPE_ON_HUB = "llama-3-8b", "meta-llama/Meta-Llama-3-8B"
H200_FLOPS, H200_BYTES = 9.9e14, int(139e9)
LAYERS = (4, 5, 6, 7, 8)
# Ten tokens each, as a model would write them.
PREFIXES = (
    "The house at the river was built long ago. ",
    "He had asked the same question before. ",
    "In the summer of that year it rained. ",
    "There are many ways to say this. ",
    "She read the letter and put it away. ",
)


@dataclass(frozen=True)
class Sizes:
    """How much of each is measured."""

    batches: tuple[int, ...] = (1, 32, 256)
    rome: int = 3
    plain: int = 3
    steps: int = 20
    tokens: int = 200_000
    rows: int = 256
    cases: int = 8
    layers: tuple[int, ...] = LAYERS


TINY = Sizes((1, 2, 4), 1, 1, 3, 2_000, 4, 2, (1, 2))


@dataclass
class Report:
    """Figures, with the time that is left for more."""

    device: torch.device
    seconds: float
    figures: dict[str, object] = field(default_factory=dict)
    left_out: list[str] = field(default_factory=list)
    began: float = field(default_factory=time.perf_counter)

    def measure(self, name: str, work: Callable[[], object], per: int = 1) -> float | None:
        """Return the seconds of some work divided by `per`; None where there is no time left."""
        if time.perf_counter() - self.began > self.seconds:
            self.left_out.append(name)
            return None
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
        begin = self._now()
        work()
        spent = (self._now() - begin) / per
        self.figures[f"{name}: seconds"] = float(f"{spent:.4g}")
        self.figures[f"{name}: peak GB"] = round(self._peak() / 1e9, 2)
        print(f"{name}: {spent:.4g} s", file=sys.stderr, flush=True)
        return spent

    def _now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()

    def _peak(self) -> int:
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device)
        return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--minutes", type=float, default=8.0, help="nothing is begun after these")
    parser.add_argument("--rate", type=float, default=0.4, help="share of the card's peak")
    parser.add_argument("--tiny", action="store_true")
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    sizes = TINY if options.tiny else Sizes()
    report = Report(torch.device(options.device), 60 * options.minutes)
    report.figures |= {"shape": "tiny" if options.tiny else SHAPE, "device": options.device}
    lm = shaped("tiny" if options.tiny else SHAPE, options.device)
    facts = make_facts(max(*sizes.batches, sizes.rows))
    measure_edits(report, lm, facts, sizes)
    measure_evaluation(report, lm, sizes)
    report.figures |= predict(sizes if not options.tiny else Sizes(), options.rate)
    report.figures["left out"] = report.left_out
    publish(report.figures)


def measure_edits(report: Report, lm: LanguageModel, facts: list[Fact], sizes: Sizes) -> None:
    """Statistics, ROME, MEMIT, the plain search and UltraEdit."""
    contexts = Contexts(("", *PREFIXES))
    shared = {"contexts": contexts, "steps": sizes.steps, "stop_loss": 0.0}
    rome = build_editor(lm, "rome", layer=sizes.layers[0], use_moment=False, **shared)
    memit = build_editor(lm, "memit", layers=sizes.layers, **shared)
    texts = [f"{one.prompt} {one.target}." for one in facts]
    corpus = Corpus(texts * (1 + sizes.tokens // (4 * len(texts))), num_tokens=sizes.tokens)
    sites = [Site(layer) for layer in sizes.layers]
    fitted = []
    name = f"statistics of {len(sites)} blocks, {sizes.tokens} tokens"
    report.measure(name, lambda: fitted.append(fit_moments(lm, sites, corpus, keep=False)))
    rome.edit(lm, facts[:1])  # warm up
    report.measure(
        f"rome, {sizes.rome} times 1 fact, a fact",
        lambda: [rome.edit(lm, [fact]) for fact in facts[: sizes.rome]],
        sizes.rome,
    )
    plain = report.measure(
        f"plain search, {sizes.plain} facts, a fact",
        lambda: [plain_search(lm, fact, contexts, sizes) for fact in facts[: sizes.plain]],
        sizes.plain,
    )
    for count in sizes.batches if fitted else ():
        spent = report.measure(
            f"memit, {count} facts, a fact",
            lambda count=count: memit.edit(lm, facts[:count], fitted[0]),
            count,
        )
        if plain and spent:
            report.figures[f"memit, {count} facts: times faster"] = round(plain / spent, 1)
    ultraedit = build_editor(lm, "ultraedit")
    state = ultraedit.fit(lm, texts)
    spent = report.measure(
        f"ultraedit, {sizes.rows} facts, a fact",
        lambda: ultraedit.edit(lm, facts[: sizes.rows], state),
        sizes.rows,
    )
    if spent:
        report.figures["ultraedit: facts a second"] = round(1 / spent, 1)


def measure_evaluation(report: Report, lm: LanguageModel, sizes: Sizes) -> None:
    """Asking in batches against one prompt at a time."""
    cases = evaluate.read_cases(None, sizes.cases)
    patches = evaluate.make_patches(lm, len(cases))
    seconds = [
        report.measure(
            f"evaluation, {len(cases)} cases, {name}",
            lambda ask=ask: ask(lm, cases, patches, 1, evaluate.Watch(lm)),
        )
        for name, ask in (
            ("in batches", evaluate.evaluate),
            ("one prompt at a time", evaluate.evaluate_plainly),
        )
    ]
    ours, plain = seconds
    if ours and plain:
        report.figures["evaluation: times faster"] = round(plain / ours, 1)


def plain_search(lm: LanguageModel, fact: Fact, contexts: Contexts, sizes: Sizes) -> Tensor:
    """Search one vector as public code does: all rows padded, the whole model in each step."""
    rows = pipeline.rewrite_rows(lm, [fact], contexts)
    settings = SearchSettings(
        steps=sizes.steps, learning_rate=0.5, kl_weight=0.0625, weight_decay=0.5, clamp=0.75
    )
    ids, labels = pad_rows(rows, lm.device)
    starts = torch.tensor([row.start for row in rows], device=lm.device)
    essence, every = len(rows) - 1, torch.arange(len(rows), device=lm.device)
    delta = torch.zeros(lm.d_model, device=lm.device, requires_grad=True)
    anchor: list[Tensor] = []

    def add(_module: object, _inputs: object, output: Tensor | tuple[Tensor, ...]) -> object:
        whole = isinstance(output, tuple)
        hidden = (output[0] if isinstance(output, tuple) else output).clone()
        if not anchor:
            anchor.append(hidden[0, starts[0]].detach().float().norm())
        hidden[every, starts] += delta.to(hidden.dtype)
        return (hidden, *output[1:]) if whole else hidden

    optimiser = torch.optim.Adam([delta], lr=settings.learning_rate)
    before: Tensor | None = None
    with hooked(lm.blocks[sizes.layers[-1]], add), torch.enable_grad():
        for _ in range(settings.steps):
            optimiser.zero_grad()
            log_p = lm.model(input_ids=ids, use_cache=False).logits.float().log_softmax(-1)
            now = log_p[essence, starts[essence]]
            before = now.detach() if before is None else before
            nll = -log_p.gather(2, labels.clamp_min(0)[..., None])[..., 0][labels >= 0].mean()
            loss = nll + settings.kl_weight * (now.exp() * (now - before)).sum()
            loss = loss + settings.weight_decay * (delta.norm() / anchor[0] ** 2)
            loss.backward()
            optimiser.step()
            with torch.no_grad():
                limit = settings.clamp * anchor[0]
                delta *= (limit / delta.norm().clamp_min(1e-12)).clamp_max(1.0)
            loss.item()
    return delta.detach()


def pad_rows(rows: list[SearchRow], device: torch.device) -> tuple[Tensor, Tensor]:
    """Token ids, and labels where they are read (-1 elsewhere), padded on the right."""
    longest = max(len(row.ids) for row in rows)
    ids = torch.zeros(len(rows), longest, dtype=torch.long)
    labels = torch.full((len(rows), longest), -1)
    for number, row in enumerate(rows):
        ids[number, : len(row.ids)] = torch.tensor(row.ids)
        for position, label in zip(row.reads, row.labels, strict=False):
            labels[number, position] = label
    return ids.to(device), labels.to(device)


@contextmanager
def hooked(module: torch.nn.Module, hook: Callable[..., object]) -> Iterator[None]:
    """Place a forward hook until left."""
    handle = module.register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()


def predict(sizes: Sizes, share: float) -> dict[str, object]:
    """Seconds expected of an H200 for the shape of Llama-3-8B, from counted operations."""
    lm = shape_model(SHAPE_ON_HUB, dtype=None, room=Room("cuda", H200_BYTES))
    found: dict[str, object] = {}
    for method, counts in (("rome", (1,)), ("memit", sizes.batches)):
        for count in counts:
            layers = {"layers": sizes.layers} if method == "memit" else {"layer": sizes.layers[0]}
            cost = plan(lm, method, facts=count, device_flops=share * H200_FLOPS, **layers)
            stages = {one.stage: one.seconds or 0.0 for one in cost.stages}
            spent = sum(seconds for name, seconds in stages.items() if name != "statistics")
            found[f"H200 expected: {method}, {count} facts, a fact"] = float(f"{spent / count:.3g}")
            found[f"H200 expected: {method}, {count} facts, GB"] = round(cost.device / 1e9, 1)
    return found


if __name__ == "__main__":
    main()
