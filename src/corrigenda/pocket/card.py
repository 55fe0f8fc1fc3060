"""The figures of a pocket model: what it knows, reads and refuses, and how it can be edited.

Every figure is a function over plain lists, so it can be measured on any model and any facts;
`measure` puts them together for `corrigenda pocket card` and `perf/pocket_card.py`.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from corrigenda.almanac.exam import ExamEdit, ExamQuestion
from corrigenda.analysis.causal_trace import causal_trace
from corrigenda.analysis.injection import find_best_layer, measure_injection
from corrigenda.analysis.state_restoration import measure_subject_deviation
from corrigenda.analysis.trace_average import average_traces
from corrigenda.analysis.trace_effects import Bin, Kind
from corrigenda.facts import Fact
from corrigenda.knowledge.edit_trial import compute_share, try_batch_edit, try_single_edits
from corrigenda.lm.decoding import greedy, score
from corrigenda.methods.presets import build_editor

if TYPE_CHECKING:
    from corrigenda.almanac.exam import Exam
    from corrigenda.almanac.world import World
    from corrigenda.lm.model import LanguageModel
    from corrigenda.progress import Progress
    from corrigenda.statistics.corpus import Corpus, Source

LEAST_TOTAL_EFFECT = 0.1
"""Prompts whose answer the noise hardly lowers say nothing about where it is recalled."""

_FINAL = "Final answer:"


def measure_right(lm: LanguageModel, asked: Sequence[ExamQuestion]) -> float | None:
    """Return the share of prompts whose greedy continuation begins with a right answer."""
    pairs = [(item.prompt, one) for item in asked for one in item.answers]
    said = iter(score(lm, pairs))
    right = [any([all(next(said).correct) for _ in item.answers]) for item in asked]
    return compute_share(right)


def measure_concluding(
    lm: LanguageModel, asked: Sequence[ExamQuestion], *, max_new_tokens: int = 96
) -> float | None:
    """Return the share of prompts worked through to a right "Final answer: ..."."""
    texts = greedy(lm, [item.prompt for item in asked], max_new_tokens=max_new_tokens, stop=())
    right = []
    for item, text in zip(asked, texts, strict=True):
        said = text.partition(_FINAL)[2].lstrip(" ").partition("\n")[0].strip().removesuffix(".")
        right.append(said in item.answers)
    return compute_share(right)


def summarise_injection(
    lm: LanguageModel, facts: Sequence[Fact], prefixes: Sequence[str]
) -> dict[str, object]:
    """Measure injection and transfer at the best block, at the best after the first, and by block.

    See `analysis.injection`. Ties go to the larger transfer, then to the later block.
    """
    results = measure_injection(lm, facts, prefixes=prefixes)
    best, later = find_best_layer(results), find_best_layer(results[1:] or results)
    return {
        "injection": best.share,
        "injection_transfer": best.transfer,
        "injection_layer": best.layer,
        "injection_later": later.share,
        "injection_later_transfer": later.transfer,
        "injection_later_layer": later.layer,
        "injection_by_layer": [_round(result.share) for result in results],
        "injection_transfer_by_layer": [_round(result.transfer) for result in results],
    }


def select_traceable(lm: LanguageModel, facts: Sequence[Fact]) -> list[Fact]:
    """Return the facts known under their own prompt, where it does not end with the subject."""
    inside = [fact for fact in facts if fact.before and fact.span.end < len(fact.prompt.rstrip())]
    said = score(lm, [(fact.prompt, fact.before or "") for fact in inside])
    return [fact for fact, one in zip(inside, said, strict=True) if all(one.correct)]


def summarise_trace(
    lm: LanguageModel, facts: Sequence[Fact], *, samples: int = 5, window: int | None = None
) -> dict[str, object]:
    """Average causal traces: early site, effects, and how many prompts agree.

    The site is that of single states. `trace_site_share` is the share of prompts whose own early
    site lies at the subject's last token. Prompts with a total effect below `LEAST_TOTAL_EFFECT`
    are left out.

    Args:
        lm: The model; left as it was.
        facts: Prompts with their subjects; what is followed is the model's own next token.
        samples: Noise samples of each prompt.
        window: Blocks restored at once for MLP and attention; in proportion to the paper's if None.
    """
    if not facts:
        return {"trace_site": None, "trace_prompts": 0}
    noise = 3.0 * measure_subject_deviation(
        lm, [(fact.prompt, fact.subject or "") for fact in facts]
    )
    traces = [
        causal_trace(
            lm,
            fact.prompt,
            fact.subject or "",
            subject_start=fact.subject_start,
            kinds=tuple(Kind),
            severed=(Kind.MLP, Kind.ATTENTION),
            window=window,
            samples=samples,
            noise=noise,
        )
        for fact in facts
    ]
    kept = [trace for trace in traces if trace.total_effect >= LEAST_TOTAL_EFFECT]
    if not kept:
        return {"trace_site": None, "trace_prompts": 0}
    average = average_traces(kept)
    where, layer, _, effect = average.early_site(Kind.STATE)
    mlp_where, mlp_layer, _, mlp_effect = average.early_site(Kind.MLP)
    row = list(Bin).index(Bin.SUBJECT_LAST)
    return {
        "trace_site": str(where),
        "trace_layer": layer,
        "trace_effect": effect,
        "trace_site_share": compute_share(
            [trace.early_site(Kind.STATE).at_subject_last for trace in kept]
        ),
        "trace_mlp_site": str(mlp_where),
        "trace_mlp_layer": mlp_layer,
        "trace_mlp_effect": mlp_effect,
        "trace_prompts": len(kept),
        "trace_clean": average.clean,
        "trace_corrupted": average.corrupted,
        "trace_noise": noise,
        "trace_subject_last": {
            str(kind): [_round(value) for value in grid[row].tolist()]
            for kind, grid in average.effects.items()
        },
        "trace_severed": {
            str(path): [_round(value) for value in curve.tolist()]
            for path, curve in average.severed.items()
        },
    }


def read_counterfact_prompts(path: Path, world: World) -> list[ExamQuestion] | None:
    """Read the CounterFact prompts whose fact the world holds; None without the file."""
    if not path.is_file():
        return None
    asked = []
    for record in json.loads(path.read_text(encoding="utf-8")):
        rewrite = record["requested_rewrite"]
        triple = world.get(rewrite["subject"], rewrite["relation_id"])
        if triple is not None and rewrite["target_true"]["str"] in triple.objects:
            asked.append(
                ExamQuestion(rewrite["prompt"].replace("{}", rewrite["subject"]), triple.objects)
            )
    return asked


def measure_size(lm: LanguageModel, folder: Path) -> dict[str, object]:
    """Count the parameters (tied ones once) and the bytes on disk."""
    return {
        "parameters": sum(parameter.numel() for parameter in lm.model.parameters()),
        "weights_mb": sum(file.stat().st_size for file in folder.glob("*.safetensors")) / 1e6,
        "folder_mb": sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()) / 1e6,
        "context_length": lm.context_length,
    }


def find_model_folder(name_or_path: str) -> Path | None:
    """Return the folder of a model, local or in the package; None for a name on the hub."""
    for folder in (Path(name_or_path), Path(__file__).parent / name_or_path):
        if (folder / "config.json").is_file():
            return folder
    return None


_LOADING_SCRIPT = """
import sys
sys.modules["corrigenda"] = None
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
folder, prompt = sys.argv[1:]
tokenizer = AutoTokenizer.from_pretrained(folder)
model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
ids = tokenizer(prompt, return_tensors="pt").input_ids
print(int(model(ids).logits[0, -1].argmax()))
"""


def loads_without_us(lm: LanguageModel, folder: Path, prompt: str) -> bool:
    """Return whether transformers alone, without this package, gives the same answer."""
    done = subprocess.run(
        [sys.executable, "-c", _LOADING_SCRIPT, str(folder), prompt],
        capture_output=True,
        text=True,
        check=False,
    )
    ours = lm.tokenizer(prompt, return_tensors="pt").input_ids.to(lm.device)
    said = int(lm.model(input_ids=ours).logits[0, -1].argmax())
    return done.returncode == 0 and done.stdout.split()[-1:] == [str(said)]


def measure_edits(
    lm: LanguageModel,
    cases: Sequence[ExamEdit],
    *,
    corpus: Corpus | Source | None = None,
    preset: str | None = None,
    progress: Progress | None = None,
) -> dict[str, object]:
    """Measure single R-ROME edits and one MEMIT batch, with the presets of the model.

    Args:
        lm: The model; left as it was.
        cases: Facts to edit.
        corpus: Text for the key statistics; see `Corpus` for None.
        preset: Name whose presets are used; the model's own if None.
        progress: Called with (stage, done, total).
    """
    name = preset or lm.name
    rome, memit = build_editor("rome", name), build_editor("memit", name)
    state = rome.fit(lm, corpus, progress=progress)
    single = try_single_edits(lm, rome, cases, state=state, progress=progress)
    batch = try_batch_edit(lm, memit, cases, state=memit.fit(lm, corpus, progress=progress))
    return {
        **{f"rome_{field}": value for field, value in single._asdict().items()},
        **{f"memit_{field}": value for field, value in batch._asdict().items()},
        "edits": len(cases),
    }


def measure(
    lm: LanguageModel,
    exam: Exam,
    *,
    counterfact: Sequence[ExamQuestion] | None = None,
    corpus: Corpus | Source | None = None,
    preset: str | None = None,
    num_injected: int = 40,
    num_traced: int = 20,
    progress: Progress | None = None,
) -> dict[str, object]:
    """Measure every figure of a card that needs no files.

    Args:
        lm: The model; left as it was.
        exam: What is asked and edited.
        counterfact: Prompts of `read_counterfact_prompts`.
        corpus: Text for the key statistics of the editing methods; see `Corpus` for None.
        preset: Name whose presets are used; the model's own if None.
        num_injected: Facts among the edits to inject.
        num_traced: Known facts among the edits to trace.
        progress: Called with (stage, done, total).

    Returns:
        Figures by name, shares in [0, 1], rounded to four digits; None where nothing was asked.
    """
    facts = [item.fact for item in exam.edits]
    stages: list[tuple[str, Callable[[], dict[str, object]]]] = [
        ("recall", lambda: {"recall": measure_right(lm, exam.recall)}),
        ("held-out", lambda: {"recall_held_out": measure_right(lm, exam.recall_held_out)}),
        ("context", lambda: {"context_override": measure_right(lm, exam.context_override)}),
        ("two hops", lambda: {"two_hop_chained": measure_concluding(lm, exam.two_hop)}),
        ("refusal", lambda: {"refusal": measure_right(lm, exam.refusal)}),
        ("CounterFact", lambda: _measure_counterfact(lm, counterfact)),
        ("injection", lambda: summarise_injection(lm, facts[:num_injected], exam.contexts[:3])),
        ("trace", lambda: summarise_trace(lm, select_traceable(lm, facts)[:num_traced])),
        (
            "edits",
            lambda: measure_edits(lm, exam.edits, corpus=corpus, preset=preset, progress=progress),
        ),
    ]
    figures: dict[str, object] = {}
    for number, (stage, run) in enumerate(stages):
        if progress is not None:
            progress(f"card: {stage}", number, len(stages))
        figures |= run()
    return {name: _round(value) for name, value in figures.items()}


def _measure_counterfact(
    lm: LanguageModel, asked: Sequence[ExamQuestion] | None
) -> dict[str, object]:
    if asked is None:
        return {"counterfact_known": None, "counterfact_asked": 0}
    return {"counterfact_known": measure_right(lm, asked), "counterfact_asked": len(asked)}


def _round(value: object) -> object:
    return round(value, 4) if isinstance(value, float) else value
