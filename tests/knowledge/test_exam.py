"""What a model knows: asked, judged, kept in the cache, and drawn as edits that it can answer."""

from __future__ import annotations

from pathlib import Path

import pytest

import corrigenda as cg
from corrigenda.almanac.documents import write_prompt
from corrigenda.almanac.exam import draw_edits
from corrigenda.almanac.known_facts import (
    KnownFacts,
    list_askable,
    list_places,
    parse_known_facts,
)
from corrigenda.almanac.world import load_world
from corrigenda.errors import BadConfig
from corrigenda.knowledge import exam as module
from corrigenda.knowledge.exam import draw_cases, exam, names, write_known_facts
from corrigenda.lm.decoding import answer, begins
from corrigenda.lm.model import LanguageModel
from corrigenda.testing.tiny import tiny_model
from tests.support.tiny_on_disk import command

SAMPLE = 12


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(autouse=True)
def cache(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cache that the tests share, so that each fact is asked once."""
    monkeypatch.setenv("CORRIGENDA_CACHE", str(folder))


@pytest.fixture(scope="module")
def pocket() -> LanguageModel:
    return cg.load("pocket")


def known_in_part() -> KnownFacts:
    """Three relations with some answers; the last fact of each is answered once only."""
    right: dict[tuple[str, str], tuple[int, ...]] = {}
    asked: list[tuple[str, str]] = []
    world = load_world()
    with_currency = [one for one in world.of_relation("P36") if world.get(one.subject, "P38")]
    for relation in ("P36", "P38", "P103"):
        clozes, questions = list_places(relation)
        facts = (with_currency if relation == "P36" else world.of_relation(relation))[:9]
        asked += [(one.subject, relation) for one in facts]
        for number, one in enumerate(facts[:8]):
            right[one.subject, relation] = (*clozes[number % 3 :][:3], questions[0])
        right[facts[8].subject, relation] = (clozes[0],)
    return KnownFacts(model="m", digest="d", chat=False, asked=tuple(asked), right=right)


def test_right_phrasings_are_those_whose_answer_begins_with_the_object(
    pocket: LanguageModel,
) -> None:
    known = exam(pocket, SAMPLE, progress=False)
    assert len(known.asked) == SAMPLE
    assert len(known) > 0.8 * SAMPLE
    world = load_world()
    asked = []
    for subject, relation in known.asked[:6]:
        triple = world.get(subject, relation)
        assert triple is not None
        clozes, questions = list_places(relation)
        texts = world.relations[relation].phrasings
        for place in (*clozes, *questions):
            right = place in known.right.get((subject, relation), ())
            asked.append((write_prompt(texts[place], subject), triple.objects, right))
    said = answer(pocket, [prompt for prompt, _, _ in asked])
    for (prompt, objects, right), text in zip(asked, said, strict=True):
        assert any(begins(text, one) for one in objects) == right, (prompt, text)


def test_a_random_model_knows_nothing_and_is_asked_no_invented_facts() -> None:
    known = exam(tiny_model("gpt2"), 30, progress=False)
    assert len(known) == 0
    assert not known.cases(5)
    groups = load_world().groups
    assert not {groups[subject] for subject, _ in known.asked} & {"person", "company"}


def test_an_exam_is_asked_once_and_a_larger_one_asks_the_rest(
    pocket: LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_FACTS_AT_ONCE", 4)
    asked: list[int] = []
    ask = module._ask

    def count(lm: LanguageModel, facts: list[object], chat: bool) -> object:
        asked.append(len(facts))
        return ask(lm, facts, chat)  # type: ignore[arg-type]  # passed on

    monkeypatch.setattr(module, "_ask", count)
    first = exam(pocket, 4, progress=False)
    assert exam(pocket, 4, progress=False) == first
    assert asked == [4]
    more = exam(pocket, 8, progress=False)
    assert asked == [4, 4]
    assert more.asked[:4] == first.asked
    assert exam(pocket, 4, seed=1, progress=False).asked != first.asked


def test_facts_that_can_be_read_off_the_name_are_not_asked() -> None:
    asked = list_askable(invented=True)
    assert len(asked) > 8000
    assert not [one for one in asked if any(name in one.subject for name in one.objects)]


def test_a_fact_answered_once_is_not_known() -> None:
    known = known_in_part()
    assert len(known) == 24
    assert [(row.asked, row.known) for row in known.by_relation()] == [(9, 8)] * 3


def test_cases_use_what_the_model_answers_and_carry_its_answers() -> None:
    known, world = known_in_part(), load_world()
    cases = known.cases(9)
    right = {
        write_prompt(text, one.subject): one
        for one in known.triples()
        for text in (*known.phrasings(one).clozes, *known.phrasings(one).questions)
    }
    turns = [case.fact.name.rsplit("/")[-1] for case in cases]
    assert {turns.count(relation) for relation in ("P36", "P38", "P103")} <= {2, 3, 4}
    for case in cases:
        fact = case.fact
        triple = right[fact.prompt]
        assert fact.before == triple.object
        assert fact.target in world.objects(triple.relation)
        assert fact.target not in triple.objects
        assert fact.paraphrases
        assert fact.neighbours
        assert all(right[text] == triple for text in (*fact.paraphrases, *case.shown))
        assert not {*case.shown} & {fact.prompt, *fact.paraphrases}
        for text in fact.neighbours:
            assert right[text].relation == triple.relation
            assert right[text].subject != triple.subject
            assert case.right[text] == right[text].objects
        for text in case.fact.same_subject:
            assert right[text].subject == triple.subject
            assert case.right[text] == right[text].objects
    assert any(case.fact.same_subject for case in cases)


def test_cases_are_drawn_by_the_seed_and_leave_subjects_out() -> None:
    known = known_in_part()
    first = known.cases(6)
    assert known.cases(6) == first
    assert known.cases(6, seed=1) != first
    rest = known.cases(100, exclude=first)
    assert len(rest) >= 6
    assert not {one.fact.subject for one in rest} & {one.fact.subject for one in first}


def test_cases_of_a_pocket_model_are_those_of_its_exam(pocket: LanguageModel) -> None:
    cases = draw_cases(pocket, 8, seed=11)
    assert cases == draw_edits(load_world(), 8, seed=11)
    others = draw_cases(pocket, 8, seed=11, exclude=cases)
    assert len(others) == 8
    assert not {one.fact.subject for one in others} & {one.fact.subject for one in cases}


def test_what_is_known_can_be_written_and_read(tmp_path: Path) -> None:
    known = known_in_part()
    file = write_known_facts(known, tmp_path / "known.json")
    assert parse_known_facts(file.read_text(encoding="utf-8"), where="known.json") == known


def test_the_command_counts_and_writes(tmp_path: Path) -> None:
    file = tmp_path / "known.json"
    ran = command("exam", "pocket", "--sample", SAMPLE, "-o", file, "--json")
    assert ran.code == 0
    assert ran.json["asked"] == SAMPLE
    assert ran.json["known"] == len(ran.json["facts"]) > 0.8 * SAMPLE
    assert len(parse_known_facts(file.read_text(encoding="utf-8"), where="")) == ran.json["known"]
    shown = command("exam", "pocket", "--sample", SAMPLE)
    assert f"of {SAMPLE} facts" in shown.out


def test_wrong_arguments_are_refused(pocket: LanguageModel) -> None:
    with pytest.raises(BadConfig, match=r"CG502.*sample of 0"):
        exam(pocket, 0)
    with pytest.raises(BadConfig, match="no chat template"):
        exam(pocket, 3, chat=True, progress=False)


def test_an_answer_in_a_sentence_is_found_as_whole_words() -> None:
    assert names("The capital of France is Paris, of course", "Paris")
    assert not names("The capital of France is Parisian", "Paris")
