"""The figures of a card, on tiny models whose answers are known because they were asked before."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from corrigenda.almanac.exam import ExamQuestion, draw_edits
from corrigenda.almanac.world import load_world
from corrigenda.facts import Fact
from corrigenda.lm.model import LanguageModel
from corrigenda.pocket import card
from tests.support.learnt_sentences import PROMPTS, SAID, learn_sentences, make_cases


@pytest.fixture(scope="module")
def lm() -> LanguageModel:
    return learn_sentences()


def test_any_of_the_right_answers_counts(lm: LanguageModel) -> None:
    asked = [
        ExamQuestion(PROMPTS[0], ("Timbuktu", SAID[0])),
        ExamQuestion(PROMPTS[1], (SAID[1],)),
        ExamQuestion(PROMPTS[2], ("Timbuktu",)),
    ]
    assert card.measure_right(lm, asked) == pytest.approx(2 / 3)
    assert card.measure_right(lm, []) is None


def test_traces_are_summed_up(lm: LanguageModel, monkeypatch: pytest.MonkeyPatch) -> None:
    facts = [item.fact for item in make_cases()]
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
    figures = card.summarise_injection(lm, [case.fact for case in make_cases()], ["It rains. "])
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
