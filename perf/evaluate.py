"""Time the evaluation of KnowEdit records against asking one prompt at a time, with equal answers.

    python perf/evaluate.py [FILE] [--cases 20] [--methods 4] [--model pocket] [--device cpu]

FILE is KnowEdit's ZsRE test set; without it, edits of PocketEdit are asked in the same way. Of each
record, the rewrite, its rephrasing, locality and
portability are asked before and after, the answer fed; each record has an edited model of its own
(a small change of one weight, made beforehand, so that no editing is timed). The plain evaluation
is what public code does: one prompt at a time, the whole sequence through the model, logits at
every position, the unedited model asked again for each method. Only asking is timed, neither making
edits nor applying them. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from figures import publish

import corrigenda as cg
from corrigenda import benchmarks
from corrigenda.cases import Case, Protocol
from corrigenda.linalg.lowrank import LowRank
from corrigenda.lm.model import LanguageModel
from corrigenda.lm.sites import Site
from corrigenda.lm.spans import encode
from corrigenda.patch import WeightPatch, header_for
from corrigenda.run.prober import Query, ask, make_query

GOAL_CPU, GOAL_GPU = 2.5, 20.0
Predicted = dict[tuple[int, str, Query], tuple[int, ...]]


class Watch:
    """Sums up time: of this process on a CPU, so that others on the machine count less."""

    def __init__(self, lm: LanguageModel) -> None:
        """Start at zero."""
        self.seconds = 0.0
        self._device = lm.device

    @contextmanager
    def run(self) -> Iterator[None]:
        """Run until left."""
        begin = self._now()
        yield
        self.seconds += self._now() - begin

    def _now(self) -> float:
        if self._device.type == "cpu":
            return time.process_time()
        torch.cuda.synchronize(self._device)
        return time.perf_counter()


class Work:
    """Tokens through the blocks, padding included, and positions through the head."""

    def __init__(self, lm: LanguageModel) -> None:
        """Start with nothing."""
        self.lm = lm
        self.tokens = self.positions = self.passes = 0

    @contextmanager
    def count(self) -> Iterator[None]:
        """Count until left."""

        def block(
            _: object, args: tuple[torch.Tensor, ...], kwargs: dict[str, torch.Tensor]
        ) -> None:
            hidden = args[0] if args else kwargs["hidden_states"]
            self.tokens += hidden.shape[0] * hidden.shape[1]
            self.passes += 1

        def head(_: object, args: tuple[torch.Tensor, ...]) -> None:
            self.positions += args[0].shape[:-1].numel()

        hooks = (
            self.lm.blocks[0].register_forward_pre_hook(block, with_kwargs=True),
            self.lm.model.get_output_embeddings().register_forward_pre_hook(head),
        )
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def total(self) -> float:
        """Multiply-adds of weights, in units of one token through all blocks."""
        config = self.lm.model.config.get_text_config()
        head = config.vocab_size * self.lm.d_model
        blocks = sum(one.numel() for one in self.lm.blocks.parameters())
        return self.tokens + self.positions * head / blocks


def read_cases(path: str | None, count: int) -> list[list[Query]]:
    """The questions of each record, but for the texts."""
    if path is None:
        loaded = benchmarks.load("pocketedit", limit=count)
        cases = [case.under(Protocol.TEACHER_FORCED) for case in loaded]
    else:
        cases = list(benchmarks.load("knowedit-zsre", path, limit=count))

    def list_queries(case: Case) -> list[Query]:
        probes = [one for one in case.probes if one.protocol == Protocol.TEACHER_FORCED]
        return list(dict.fromkeys(make_query(probe, 16) for probe in probes))

    return [list_queries(case) for case in cases]


def make_patches(lm: LanguageModel, count: int) -> list[WeightPatch]:
    """Edits, one for each record."""
    site = Site(lm.num_layers // 2)
    d_out, d_in = lm.weight(site).shape
    draw = torch.Generator().manual_seed(0)
    header = header_for(lm, method="perf")
    return [
        WeightPatch(
            {
                site: LowRank(
                    0.005 * torch.randn(d_out, 1, generator=draw, dtype=torch.float64),
                    torch.randn(d_in, 1, generator=draw, dtype=torch.float64),
                )
            },
            header,
        )
        for _ in range(count)
    ]


def ask_plainly(lm: LanguageModel, questions: Sequence[Query]) -> Iterator[tuple[int, ...]]:
    """One prompt at a time, as public code does."""
    for one in questions:
        row = encode(lm, one.prompt, target=str(one.target), separator=one.separator)
        ids = torch.tensor([row.ids], device=lm.device)
        with torch.no_grad():
            logits = lm.model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits
        yield tuple(logits[0, row.reads.start : row.reads.stop].argmax(-1).tolist())


def evaluate_plainly(
    lm: LanguageModel,
    cases: list[list[Query]],
    patches: list[WeightPatch],
    methods: int,
    watch: Watch,
) -> Predicted:
    """Before and after each edit, for each method."""
    found: Predicted = {}
    for _ in range(methods):
        for index, (questions, patch) in enumerate(zip(cases, patches, strict=True)):
            with watch.run():
                for one, ids in zip(questions, ask_plainly(lm, questions), strict=True):
                    found[index, "before", one] = ids
            with patch.apply(lm), watch.run():
                for one, ids in zip(questions, ask_plainly(lm, questions), strict=True):
                    found[index, "after", one] = ids
    return found


def evaluate(
    lm: LanguageModel,
    cases: list[list[Query]],
    patches: list[WeightPatch],
    methods: int,
    watch: Watch,
) -> Predicted:
    """The same through the runner's asking: before once, after in batches."""
    found: Predicted = {}
    with watch.run():
        before = ask(lm, [one for questions in cases for one in questions]).given
    for index, questions in enumerate(cases):
        for one in questions:
            found[index, "before", one] = tuple(before[one].predicted or ())
    for _ in range(methods):
        for index, (questions, patch) in enumerate(zip(cases, patches, strict=True)):
            with patch.apply(lm), watch.run():
                after = ask(lm, questions).given
            for one in questions:
                found[index, "after", one] = tuple(after[one].predicted or ())
    return found


Evaluation = Callable[..., Predicted]


def measure(
    lm: LanguageModel, evaluation: Evaluation, *arguments: object
) -> tuple[Predicted, float, Work]:
    """Answers, seconds spent asking, and counted work."""
    work, watch = Work(lm), Watch(lm)
    with work.count():
        found = evaluation(lm, *arguments, watch)
    return found, watch.seconds, work


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("file", nargs="?")
    parser.add_argument("--cases", type=int, default=20)
    parser.add_argument("--methods", type=int, default=4)
    parser.add_argument("--model", default="pocket")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    # Half precision has ties, which batches break in different ways.
    lm = cg.load(options.model, dtype="float32", device=options.device)
    cases = read_cases(options.file, options.cases)
    patches = make_patches(lm, len(cases))
    arguments = (cases, patches, options.methods)
    for evaluation in (evaluate, evaluate_plainly):
        evaluation(lm, cases[:1], patches[:1], 1, Watch(lm))  # warm up
    ours = [measure(lm, evaluate, *arguments) for _ in range(options.repeats)]
    plain = [measure(lm, evaluate_plainly, *arguments) for _ in range(options.repeats)]
    seconds = sorted(one[1] for one in ours)[len(ours) // 2]
    plain_seconds = sorted(one[1] for one in plain)[len(plain) // 2]
    different = sum(ours[0][0][key] != value for key, value in plain[0][0].items())
    asked = len(cases) * options.methods
    figures = {
        "data": "pocketedit" if options.file is None else "knowedit-zsre",
        "cases": len(cases),
        "methods": options.methods,
        "questions": sum(map(len, cases)),
        "seconds": round(seconds, 3),
        "plain_seconds": round(plain_seconds, 3),
        "cases_per_second": round(asked / seconds, 2),
        "plain_cases_per_second": round(asked / plain_seconds, 2),
        "passes": ours[0][2].passes,
        "plain_passes": plain[0][2].passes,
        "work_ratio": round(plain[0][2].total() / ours[0][2].total(), 2),
        "ratio": round(plain_seconds / seconds, 2),
        "answers": len(plain[0][0]),
        "different": different,
        "identical": ours[0][0] == plain[0][0],
    }
    publish(figures, {"ratio": GOAL_CPU if options.device == "cpu" else GOAL_GPU})


if __name__ == "__main__":
    main()
