"""The figures of a card, on tiny models whose answers are known because they were asked before."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import pytest
import torch

from corrigenda.almanac.exam import ExamEdit, ExamQuestion, draw_edits
from corrigenda.almanac.world import load_world
from corrigenda.facts import Fact
from corrigenda.knowledge import edit_trial
from corrigenda.linalg.lowrank import LowRank
from corrigenda.lm.model import LanguageModel
from corrigenda.lm.sites import Site
from corrigenda.patch import Header, WeightPatch
from corrigenda.patch.ledger import ledger_of
from corrigenda.pocket import card
from corrigenda.testing.tiny import tiny_model

PROMPTS = ("The Space Needle is in", "Anna speaks", "The capital of France is")
SAID = ("Seattle", "German", "Paris")


class Edited(NamedTuple):
    """What an editor returns."""

    patch: WeightPatch
    state: object = None


class Fixed:
    """An editor that returns one change whatever the facts, and remembers how they came."""

    name = "fixed"

    def __init__(self, lm: LanguageModel, changes: dict[Site, LowRank]) -> None:
        header = Header(method="fixed", base_digest=lm.digest(), base_name=lm.name)
        self.patch, self.groups = WeightPatch(changes, header), []

    def search_ahead(self, lm: LanguageModel, facts: Sequence[Fact], state: object) -> None:
        """Do nothing."""

    def edit(self, lm: LanguageModel, facts: Sequence[Fact], state: object = None) -> Edited:
        """Return the change."""
        self.groups.append(len(facts))
        return Edited(self.patch)


class Remembering(Fixed):
    """Changes nothing; remembers which state came, and how many patches were active."""

    def __init__(self, lm: LanguageModel) -> None:
        super().__init__(lm, {})
        self.active, self.states = [], []

    def edit(self, lm: LanguageModel, facts: Sequence[Fact], state: object = None) -> Edited:
        self.active.append(len(ledger_of(lm)))
        self.states.append(state)
        return Edited(super().edit(lm, facts).patch, f"after {len(self.states)}")


@pytest.fixture(scope="module")
def lm() -> LanguageModel:
    """A tiny model that has learnt three sentences by heart."""
    lm = tiny_model("llama")
    rows = [lm.tokenizer(f"{a} {b}").input_ids for a, b in zip(PROMPTS, SAID, strict=True)]
    parameters = list(lm.model.parameters())
    optimiser = torch.optim.Adam(parameters, lr=3e-3)
    for parameter in parameters:
        parameter.requires_grad_(True)
    for _ in range(60):
        losses = [
            lm.model(input_ids=torch.tensor([row]), labels=torch.tensor([row])).loss for row in rows
        ]
        optimiser.zero_grad()
        torch.stack(losses).mean().backward()
        optimiser.step()
    for parameter in parameters:
        parameter.requires_grad_(False)
    return lm


def cases(lm: LanguageModel) -> list[ExamEdit]:
    """Two facts; the first one's target is what the model says already."""
    return [
        ExamEdit(
            Fact(
                prompt=PROMPTS[0],
                subject="Space Needle",
                target=SAID[0],
                paraphrases=PROMPTS[:1],
                neighbours=PROMPTS[1:],
            ),
        ),
        ExamEdit(
            Fact(
                prompt=PROMPTS[1],
                subject="Anna",
                target="Timbuktu",
                paraphrases=PROMPTS[2:],
                same_subject=PROMPTS[:1],
            ),
        ),
    ]


def test_any_of_the_right_answers_counts(lm: LanguageModel) -> None:
    asked = [
        ExamQuestion(PROMPTS[0], ("Timbuktu", SAID[0])),
        ExamQuestion(PROMPTS[1], (SAID[1],)),
        ExamQuestion(PROMPTS[2], ("Timbuktu",)),
    ]
    assert card.measure_right(lm, asked) == pytest.approx(2 / 3)
    assert card.measure_right(lm, []) is None


def test_an_empty_patch_keeps_everything(lm: LanguageModel) -> None:
    editor = Fixed(lm, {})
    figures = edit_trial.try_single_edits(lm, editor, cases(lm))
    assert editor.groups == [1, 1]
    assert figures[:4] == (0.5, 0.5, 1.0, 1.0)
    assert figures.seconds > 0
    assert figures.num_bytes > 0


def test_a_wild_patch_breaks_everything_and_is_taken_off(lm: LanguageModel) -> None:
    torch.manual_seed(0)
    weight = lm.weight(Site(0))
    wild = LowRank(100 * torch.randn(weight.shape[0], 4), torch.randn(weight.shape[1], 4))
    before = lm.digest()
    editor = Fixed(lm, {Site(0): wild})
    figures = edit_trial.try_batch_edit(lm, editor, cases(lm))
    assert editor.groups == [2]
    assert figures.efficacy == 0.0
    assert figures.locality == 0.0
    assert lm.digest() == before


def test_a_sequence_is_asked_at_its_end_and_taken_off(lm: LanguageModel) -> None:
    before = lm.digest()
    editor = Remembering(lm)
    figures = edit_trial.try_sequence(lm, editor, cases(lm))
    assert editor.groups == [1, 1]
    assert editor.active == [0, 1]
    assert editor.states == [None, "after 1"]
    assert figures.efficacy == 0.5
    assert lm.digest() == before


def test_traces_are_summed_up(lm: LanguageModel, monkeypatch: pytest.MonkeyPatch) -> None:
    facts = [item.fact for item in cases(lm)]
    monkeypatch.setattr(card, "LEAST_TOTAL_EFFECT", -1.0)
    figures = card.summarise_trace(lm, facts, samples=2)
    assert figures["trace_prompts"] == 2
    assert 0 <= figures["trace_layer"] < lm.num_layers
    assert len(figures["trace_severed"]["mlp"]) == lm.num_layers
    json.dumps(figures)
    monkeypatch.setattr(card, "LEAST_TOTAL_EFFECT", 2.0)
    assert card.summarise_trace(lm, facts)["trace_site"] is None


def test_only_known_facts_are_traced(lm: LanguageModel) -> None:
    known = Fact(prompt=PROMPTS[1], subject="Anna", target="Timbuktu", before=SAID[1])
    unknown = Fact(prompt=PROMPTS[1], subject="Anna", target="Paris", before="Timbuktu")
    at_end = Fact(prompt="He met Anna", subject="Anna", target="Paris", before="Rome")
    assert card.select_traceable(lm, [unknown, known, at_end]) == [known]


def test_injection_names_its_best_block(lm: LanguageModel) -> None:
    figures = card.summarise_injection(lm, [case.fact for case in cases(lm)], ["It rains. "])
    by_layer = figures["injection_by_layer"]
    assert len(by_layer) == lm.num_layers
    assert figures["injection"] == max(by_layer) == by_layer[figures["injection_layer"]]


def test_conclusions_are_read_behind_their_mark(
    lm: LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = iter(
        [["Answer: Rome\nFinal answer: Italy.\nQuestion:", "Final answer: Spain", "Italy"]]
    )
    monkeypatch.setattr(card, "greedy", lambda *_, **__: next(texts))
    asked = [ExamQuestion("q", ("Italy",))] * 3
    assert card.measure_concluding(lm, asked) == pytest.approx(1 / 3)


def test_counterfact_prompts_are_those_the_world_holds(tmp_path: Path) -> None:
    world = load_world("small")
    triple = next(triple for triple in world.triples() if len(triple.objects) == 1)

    def record(subject: str, target: str) -> dict[str, object]:
        return {
            "requested_rewrite": {
                "prompt": "About {}: it is",
                "subject": subject,
                "relation_id": triple.relation,
                "target_true": {"str": target},
            }
        }

    path = tmp_path / "counterfact.json"
    path.write_text(
        json.dumps(
            [
                record(triple.subject, triple.object),
                record(triple.subject, "Timbuktu"),
                record("Nobody", triple.object),
            ]
        )
    )
    expected = [ExamQuestion(f"About {triple.subject}: it is", triple.objects)]
    assert card.read_counterfact_prompts(path, world) == expected
    assert card.read_counterfact_prompts(tmp_path / "none.json", world) is None


def test_plain_transformers_loads_a_folder(
    lm: LanguageModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lm.model.save_pretrained(tmp_path)
    lm.tokenizer.save_pretrained(tmp_path)
    assert card.loads_without_us(lm, tmp_path, PROMPTS[0])
    sizes = card.measure_size(lm, tmp_path)
    assert sizes["folder_mb"] > sizes["weights_mb"] > 0
    monkeypatch.setattr(card, "_LOADING_SCRIPT", "print(-1)")
    assert not card.loads_without_us(lm, tmp_path, PROMPTS[0])
    monkeypatch.setattr(card, "_LOADING_SCRIPT", "raise SystemExit(1)")
    assert not card.loads_without_us(lm, tmp_path, PROMPTS[0])


def test_what_a_method_is_told_is_not_what_it_is_judged_by() -> None:
    for case in draw_edits(load_world("small"), 20):
        judged = {case.fact.prompt, *case.fact.paraphrases}
        assert len({*case.training_fact.paraphrases}) == 3
        assert not judged & {*case.training_fact.paraphrases}
        assert all(case.fact.subject in text for text in case.training_fact.paraphrases)
        assert case.training_fact.neighbours == ()
        assert (case.training_fact.prompt, case.training_fact.target) == (
            case.fact.prompt,
            case.fact.target,
        )
