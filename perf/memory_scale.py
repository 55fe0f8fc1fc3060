"""What memories of many edits cost while a model generates: GRACE, MELO, NeuralDB, SERAC, IKE.

    python perf/memory_scale.py [--stored 10,1000,100000] [--only grace,melo] [--tokens 64]

The stores are made directly: eight edits of the prompts asked, the others at random. Two batches of
eight prompts are generated from: all out of scope, and all in scope. Each edit is routed once, on
the prompt; NeuralDB looks up every token, as `neuraldb` among all its rows, as `neuraldb-token`
among those of the token. By method and number of edits:

- `outside`, `inside`: time per generated token, the median over the tokens, beside that of the
  unedited model (1: equal);
- `prompt_ms`: reading a batch of prompts out of scope, routing included, less the unedited model's;
- `build_s`: the first question behind a store that nobody has asked yet;
- `bytes`: of the patch, per edit.

Times are medians over repeats, the unedited and the edited model taking turns. The last line is one
JSON object.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import NamedTuple

import torch
from figures import publish
from torch import Tensor
from transformers import StoppingCriteria, StoppingCriteriaList
from transformers.utils import logging

from corrigenda.almanac.exam import load_exam
from corrigenda.engines import text_tensors
from corrigenda.engines.shared_memory import keys_at
from corrigenda.facts import Fact
from corrigenda.lm.model import LanguageModel
from corrigenda.lm.sites import Point, Site, Tokens, key, value
from corrigenda.lm.spans import encode
from corrigenda.methods.grace import codebook
from corrigenda.methods.grace.editor import Grace, GracePatch
from corrigenda.methods.ike.editor import IkePatch
from corrigenda.methods.melo import clusters
from corrigenda.methods.melo.editor import Melo, MeloPatch
from corrigenda.methods.neuraldb.database import DatabaseRows
from corrigenda.methods.neuraldb.editor import NeuralDB, NeuralDBPatch
from corrigenda.methods.presets import build_editor
from corrigenda.methods.serac.editor import SeracPatch
from corrigenda.methods.serac.scope import ScopeHead
from corrigenda.patch import ModulePatch
from corrigenda.retrieval import embedder

BATCH = 8
EMBEDDER = "states"
EDITS_A_BLOCK = 100
DEMONSTRATIONS = 2
# All of a prompt's own vector, and hardly another's.
SAME = 0.999

Make = Callable[[LanguageModel, Sequence[Fact], Sequence[Fact], torch.Generator], ModulePatch]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="pocket", help="a name or a folder")
    parser.add_argument("--stored", default="10,1000,100000", help="numbers of edits, with commas")
    parser.add_argument("--only", default=",".join(MAKE), help="methods, with commas")
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    logging.set_verbosity_error()
    lm = LanguageModel.load(options.model, dtype=torch.float32)
    facts = [case.fact for case in load_exam(edits=2 * BATCH, size=1, recall=1).edits]
    inside, outside = facts[:BATCH], facts[BATCH:]
    table: dict[str, object] = {}
    for method in options.only.split(","):
        for count in map(int, options.stored.split(",")):
            generator = torch.Generator().manual_seed(0)
            fillers = [Fact(prompt=f"Entry {i} is", target="x") for i in range(count - BATCH)]
            patch = MAKE[method](lm, inside, fillers, generator)
            one = measure(lm, patch, inside, outside, options.tokens, options.repeats)
            size = sum(each.numel() * each.element_size() for each in patch.tensors().values())
            one["bytes"] = round((size + len(patch.header.to_json())) / count)
            table[f"{method}: {count}"] = one
            print(f"{method:>8} {count:>7}  {one}", flush=True)
    publish({"model": lm.name, "tokens": options.tokens, "batch": BATCH, **table})


def measure(
    lm: LanguageModel,
    patch: ModulePatch,
    inside: Sequence[Fact],
    outside: Sequence[Fact],
    tokens: int,
    repeats: int,
) -> dict[str, float]:
    """Times with a patch beside times without it."""
    batches = {"outside": padded(lm, outside), "inside": padded(lm, inside)}
    ratios: dict[str, list[float]] = {name: [] for name in batches}
    prompts: list[float] = []
    builds: list[float] = []
    for _ in range(repeats):
        plain = {name: times(lm, batch, tokens) for name, batch in batches.items()}
        # Applied once a repeat: hashing a large store to apply it takes longer than asking.
        with patch.apply(lm):
            builds.append(times(lm, batches["outside"], 0).prompt)
            edited = {name: times(lm, batch, tokens) for name, batch in batches.items()}
        for name, found in ratios.items():
            found.append(edited[name].token / plain[name].token)
        prompts.append(edited["outside"].prompt - plain["outside"].prompt)
    return {
        **{name: round(statistics.median(found), 3) for name, found in ratios.items()},
        "spread": round(max(map(_spread, ratios.values())), 3),
        "prompt_ms": round(1000 * statistics.median(prompts), 2),
        "build_s": round(statistics.median(builds), 3),
    }


class Times(NamedTuple):
    """Seconds until the first token of a batch is there, and for each token more (the median)."""

    prompt: float
    token: float


class Clock(StoppingCriteria):
    """Notes when each token is there, and stops nothing."""

    def __init__(self) -> None:
        """Start now."""
        self.stamps = [time.perf_counter()]

    def __call__(self, input_ids: Tensor, scores: object, **_: object) -> Tensor:
        """Note the time."""
        if input_ids.device.type == "cuda":
            torch.cuda.synchronize()
        self.stamps.append(time.perf_counter())
        return torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)


def padded(lm: LanguageModel, facts: Sequence[Fact]) -> Tokens:
    """Prompts of facts, padded on the left."""
    rows = [encode(lm, fact.prompt).ids for fact in facts]
    return Tokens.pad(rows, 0, "left").to(lm.device)


def times(lm: LanguageModel, batch: Tokens, tokens: int) -> Times:
    """Generate behind each prompt of a batch, with a look at the clock after each token."""
    clock = Clock()
    lm.model.generate(
        batch.ids,
        attention_mask=batch.mask,
        max_new_tokens=tokens + 1,
        min_new_tokens=tokens + 1,
        do_sample=False,
        pad_token_id=0,
        stopping_criteria=StoppingCriteriaList([clock]),
    )
    first, *later = [b - a for a, b in pairwise(clock.stamps)]
    return Times(first, statistics.median(later) if later else 0.0)


def grace(
    lm: LanguageModel, own: Sequence[Fact], fillers: Sequence[Fact], generator: torch.Generator
) -> ModulePatch:
    """A codebook: keys of the prompts, and random ones around them."""
    editor = build_editor("grace", lm.name)
    assert isinstance(editor, Grace), "found by its name"
    site = editor.site(lm)
    keys = scattered(prompt_keys(lm, own, key(site)), len(fillers), generator)
    count = len(keys)
    stored = codebook.CodebookRecords(
        keys=keys,
        values=torch.randn(count, lm.weight(site).shape[0], generator=generator),
        radii=torch.full((count,), editor.radius, dtype=torch.float64),
        acts=torch.full((count,), codebook.ADDED),
        ids=torch.arange(1, count + 1),
        roots=torch.zeros(count, dtype=torch.long),
        root_radii=torch.zeros(count, dtype=torch.float64),
        targets=torch.ones(count, dtype=torch.long),
        lengths=torch.ones(count, dtype=torch.long),
        facts=torch.arange(count),
    )._asdict()
    config = {**editor.model_dump(mode="json"), "layer": site.layer}
    return GracePatch.make(lm, stored, method="grace", config=config, facts=[*own, *fillers])


def melo(
    lm: LanguageModel, own: Sequence[Fact], fillers: Sequence[Fact], generator: torch.Generator
) -> ModulePatch:
    """Clusters of one key each; a hundred edits share a block."""
    editor = build_editor("melo", lm.name, batch_size=EDITS_A_BLOCK)
    assert isinstance(editor, Melo), "found by its name"
    index, targets = editor.layers(lm)
    keys = scattered(prompt_keys(lm, own, value(index)), len(fillers), generator)
    count = len(keys)
    blocks = -(-count // EDITS_A_BLOCK)
    stored = clusters.ClusterRecords(
        keys=keys,
        radii=torch.full((count,), editor.radius, dtype=torch.float64),
        noise=torch.zeros(count, dtype=torch.float64),
        acts=torch.full((count,), clusters.OPENED),
        ids=torch.arange(1, count + 1),
        roots=torch.zeros(count, dtype=torch.long),
        blocks=torch.arange(count) // EDITS_A_BLOCK,
        targets=torch.ones(count, dtype=torch.long),
        lengths=torch.ones(count, dtype=torch.long),
    )._asdict()
    for site in targets:
        d_out, d_in = lm.weight(site).shape
        stored[f"a/{site}"] = torch.randn(blocks, d_in, editor.rank, generator=generator)
        stored[f"b/{site}"] = torch.zeros(blocks, editor.rank, d_out)
    config = {
        **editor.model_dump(mode="json"),
        "index": str(index),
        "targets": [str(site) for site in targets],
    }
    return MeloPatch.make(lm, stored, method="melo", config=config, facts=[*own, *fillers])


def neuraldb(
    lm: LanguageModel, own: Sequence[Fact], fillers: Sequence[Fact], generator: torch.Generator
) -> ModulePatch:
    """Rows of the prompts, and random ones of random tokens; every token is compared with all."""
    return _database(lm, own, fillers, generator, same_token=False)


def neuraldb_token(
    lm: LanguageModel, own: Sequence[Fact], fillers: Sequence[Fact], generator: torch.Generator
) -> ModulePatch:
    """The same rows; a token is compared with those whose subject ends in it."""
    return _database(lm, own, fillers, generator, same_token=True)


def _database(
    lm: LanguageModel,
    own: Sequence[Fact],
    fillers: Sequence[Fact],
    generator: torch.Generator,
    *,
    same_token: bool,
) -> ModulePatch:
    editor = build_editor("neuraldb", lm.name)
    assert isinstance(editor, NeuralDB), "found by its name"
    assert editor.layer is not None, "the preset names it"
    site = Site(editor.layer)
    subjects = [encode(lm, fact.prompt[: fact.span.end]).ids for fact in own]
    keys = scattered(keys_at(lm, subjects, key(site)), len(fillers), generator)
    count, words = len(keys), len(lm.tokenizer)
    tokens = torch.randint(0, words, (count,), generator=generator)
    tokens[: len(own)] = torch.tensor([ids[-1] for ids in subjects])
    stored = DatabaseRows(
        keys=keys,
        residuals=torch.randn(count, lm.d_model, generator=generator),
        subjects=torch.arange(1, count + 1),
        tokens=tokens,
    )._asdict()
    config = {**editor.model_dump(mode="json"), "same_token": same_token}
    return NeuralDBPatch.make(lm, stored, method="neuraldb", config=config, facts=[*own, *fillers])


def serac(
    lm: LanguageModel, own: Sequence[Fact], fillers: Sequence[Fact], generator: torch.Generator
) -> ModulePatch:
    """Codes of the prompts and random ones, behind an untrained classifier; the model answers."""
    codes = vectors(lm, own, len(fillers), generator)
    config = build_editor("serac", embedder=EMBEDDER, threshold=SAME).model_dump(mode="json")
    head = ScopeHead(codes.shape[1], int(config["hidden"]))
    stored = {f"head/{name}": one.detach() for name, one in head.state_dict().items()}
    config = {**config, "classifier": "untrained"}
    return SeracPatch.make(
        lm, {"codes": codes, **stored}, method="serac", config=config, facts=[*own, *fillers]
    )


def ike(
    lm: LanguageModel, own: Sequence[Fact], fillers: Sequence[Fact], generator: torch.Generator
) -> ModulePatch:
    """New facts with a few demonstrations each."""
    facts = [*own, *fillers]
    editor = build_editor("ike", scope="retrieve", embedder=EMBEDDER, threshold=SAME)
    shown = f"New Fact: {own[0].prompt} {own[0].target}\nPrompt: {own[0].prompt} x\n\n"
    stored = {
        "vectors": vectors(lm, own, len(fillers), generator),
        "demonstrations": text_tensors.encode_value([[shown] * DEMONSTRATIONS for _ in facts]),
    }
    config = editor.model_dump(mode="json")
    return IkePatch.make(lm, stored, method="ike", config=config, facts=facts)


MAKE: dict[str, Make] = {
    **{"grace": grace, "melo": melo, "neuraldb": neuraldb, "neuraldb-token": neuraldb_token},
    **{"serac": serac, "ike": ike},
}
"""By method, what makes a store of edits."""


def prompt_keys(lm: LanguageModel, facts: Sequence[Fact], point: Point) -> Tensor:
    """What stands at a point where the prompts end."""
    return keys_at(lm, [encode(lm, fact.prompt).ids for fact in facts], point)


def scattered(own: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Vectors, and random ones around their mean, as far from it as they are."""
    noise = torch.randn(count, own.shape[1], generator=generator) * own.std(0)
    return torch.cat([own, own.mean(0) + 2 * noise])


def vectors(
    lm: LanguageModel, own: Sequence[Fact], count: int, generator: torch.Generator
) -> Tensor:
    """Embeddings of prompts, and random unit vectors."""
    found = embedder(EMBEDDER).embed(lm, [fact.prompt for fact in own])
    noise = torch.randn(count, found.shape[1], generator=generator)
    return torch.cat([found, noise / noise.norm(dim=1, keepdim=True)])


def _spread(found: Sequence[float]) -> float:
    return max(found) - min(found)


if __name__ == "__main__":
    main()
