"""Questions in other surroundings: what is made from a record, and what is not."""

from collections import Counter

import pytest

from corrigenda.benchmarks.benchmark import BENCHMARKS
from corrigenda.benchmarks.robustness_contexts import add_surroundings
from corrigenda.cases import SURROUNDINGS, Against, Case, Probe, Protocol
from corrigenda.facts import Fact

FACT = Fact(prompt="The mother tongue of Ada is", target="English", subject="Ada", before="French")


def kept(prompt, answer, kind="relation_specificity"):
    return Probe(
        prompt=prompt,
        expected=((answer,),),
        role=f"locality/{kind}",
        protocol=Protocol.GREEDY,
        against=Against.UNEDITED,
    )


@pytest.fixture
def case():
    probes = (
        kept("Ada was born in", "Lyon"),
        kept("Ada works as a", "painter"),
        kept("Ada grew up speaking", "French"),
        kept("The mother tongue of Bert is", "Dutch", "neighborhood"),
    )
    return Case(id="1", facts=(FACT,), probes=probes)


def made(case, kind):
    return [
        probe for probe in add_surroundings(case, [kind]).probes if probe.family == "robustness"
    ]


def test_every_kind_asks_for_the_new_answer_and_against_the_old(case):
    probes = add_surroundings(case, SURROUNDINGS).probes[len(case.probes) :]
    assert {probe.role for probe in probes} == {f"robustness/{kind}" for kind in SURROUNDINGS}
    assert all(probe.expected == (("English",),) for probe in probes)
    assert all(probe.rivals == ("French",) for probe in probes)
    assert all("English" not in probe.prompt for probe in probes)


def test_related_text_tells_neither_answer(case):
    (probe,) = made(case, "long")
    assert probe.prompt == (
        "Ada was born in Lyon. Ada works as a painter. The mother tongue of Ada is"
    )
    (noisy,) = made(case, "noisy")
    assert noisy.prompt.startswith("The mother tongue of Bert is Dutch. Ada was born")


def test_a_reference_names_the_subject_no_more(case):
    (probe,) = made(case, "long_reference")
    assert probe.prompt.endswith("The mother tongue of the subject of this text is")


def test_doubts_follow_the_models_own_answer(case):
    (doubt,) = made(case, "doubt")
    assert doubt.prompt == FACT.prompt
    assert len(doubt.turns) == 1
    (assertion,) = made(case, "assertion")
    assert "French" in assertion.turns[0]
    first, last = made(case, "dialogue")
    assert first.test == last.test == "dialogue"
    assert first.turns == ()
    assert last.turns == ("Ada was born in", "Ada works as a", FACT.prompt)


def test_what_cannot_be_made_is_counted(case):
    skipped = Counter()
    bare = Case(id="1", facts=(FACT,), probes=())
    assert len(add_surroundings(bare, SURROUNDINGS, skipped).probes) == 3
    assert sum(skipped.values()) == len(SURROUNDINGS) - 3
    unknown = Fact(prompt="Ada speaks", target="English", subject="Ada")
    assert (
        add_surroundings(Case(id="1", facts=(unknown,), probes=()), SURROUNDINGS, skipped).probes
        == ()
    )
    several = Case(id="2", facts=(FACT, FACT), probes=())
    assert add_surroundings(several, SURROUNDINGS, skipped) is several


def test_the_pocket_world_has_all_of_them():
    cases = BENCHMARKS.get("pocketedit")().load(limit=12).cases
    found = Counter(
        probe.role
        for case in cases
        for probe in add_surroundings(case, SURROUNDINGS).probes
        if probe.family == "robustness"
    )
    assert set(found) == {f"robustness/{kind}" for kind in SURROUNDINGS}
