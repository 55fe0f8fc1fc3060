"""The Python API: an edit is a value, and its report says what it did."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import corrigenda as cg
from corrigenda.assessment import Outcome, Role, begins_with_target, check_targets
from corrigenda.engines.locate.contexts import Contexts
from corrigenda.errors import AmbiguousSubject, BadConfig, UnknownMethod
from corrigenda.testing.tiny import tiny_model
from tests.support.tiny_on_disk import nearest_fact

SETTINGS = {
    "layer": 2,
    "use_moment": False,
    "contexts": Contexts(),
    "steps": 40,
    "clamp": 20.0,
    "weight_decay": 0.0,
    "kl_weight": 0.0,
}


@pytest.fixture(scope="module")
def lm() -> cg.LanguageModel:
    return tiny_model("llama")


@pytest.fixture(scope="module")
def fact(lm: cg.LanguageModel) -> cg.Fact:
    return nearest_fact(lm)


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("CORRIGENDA_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module")
def correction(lm: cg.LanguageModel, fact: cg.Fact, cache: None) -> cg.Assessment:
    return cg.correct(lm, fact, **SETTINGS)


def test_every_public_name_exists() -> None:
    assert set(cg.__all__) <= set(dir(cg))
    for name in cg.__all__:
        assert getattr(cg, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'corect'"):
        _ = cg.corect


def test_import_is_free_of_torch() -> None:
    program = "import sys, corrigenda; corrigenda.Fact; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", program], check=True)


def test_edit_is_a_value(lm: cg.LanguageModel, fact: cg.Fact) -> None:
    digest = lm.digest()
    before = cg.answer(lm, fact.prompt)
    with pytest.warns(UserWarning, match="not converged"):
        patch = cg.edit(lm, fact, "rome", **SETTINGS)
    assert lm.digest() == digest
    with patch.apply(lm):
        assert cg.answer(lm, fact.prompt).startswith(fact.target)
    assert lm.digest() == digest
    assert cg.answer(lm, [fact.prompt]) == [before]


def test_correction_says_what_the_edit_did(correction: cg.Assessment, fact: cg.Fact) -> None:
    assert correction.outcomes == (Outcome.SUCCEEDED,)
    assert correction.succeeded
    assert not correction.is_no_op
    assert [item.role for item in correction.answers] == [Role.PROMPT, Role.NEIGHBOUR]
    assert correction.share(Role.PROMPT) in (0.0, 1.0)
    assert correction.share(Role.PARAPHRASE) is None
    kept = not correction.answers[1].changed
    assert correction.share(Role.NEIGHBOUR) == float(kept)
    (change,) = correction.changes
    assert change.rank == 1
    assert change.stored == sum(correction.patch.changes[cg.Site(2)].shape)
    assert correction.config["layer"] == 2


def test_size_of_the_change(lm: cg.LanguageModel, correction: cg.Assessment) -> None:
    before = lm.weight(cg.Site(2)).double().clone()
    with correction.patch.apply(lm):
        after = lm.weight(cg.Site(2)).double().clone()
    (change,) = correction.changes
    assert change.relative_norm == pytest.approx(
        float((after - before).norm() / before.norm()), rel=1e-4
    )


def test_facts_that_hold_are_left_out(
    lm: cg.LanguageModel, correction: cg.Assessment, fact: cg.Fact
) -> None:
    with correction.patch.apply(lm):
        assert check_targets(lm, [fact, replace(fact, target="nothing of the kind")]) == [
            True,
            False,
        ]
        with pytest.warns(UserWarning, match=f'CG107 .* "{fact.target}" already'):
            patch = cg.edit(lm, fact, **SETTINGS)
        again = cg.correct(lm, fact, **SETTINGS)
    assert patch.is_empty
    assert again.patch.is_empty
    assert again.outcomes == (Outcome.ALREADY_TRUE,)
    assert again.is_no_op
    assert not any(item.changed for item in again.answers)
    assert again.changes == ()


def test_an_alias_counts_as_the_target(
    lm: cg.LanguageModel, correction: cg.Assessment, fact: cg.Fact
) -> None:
    with correction.patch.apply(lm):
        assert check_targets(lm, [replace(fact, target="Nowhere", aliases=(fact.target,))]) == [
            True
        ]


def test_no_separator_is_read_off_the_continuation(lm: cg.LanguageModel) -> None:
    (reply,) = cg.ask(lm, ["The river is"])
    said = cg.Fact(prompt="The river is", target=reply.continuation[:8], separator="")
    assert check_targets(lm, [said, replace(said, target="nothing")]) == [True, False]


def test_ask(lm: cg.LanguageModel) -> None:
    (reply,) = cg.ask(lm, ["The river is"], top=3)
    assert len(reply.top) == 3
    assert reply.top[0][1] >= reply.top[1][1] >= reply.top[2][1] > 0
    assert reply.answer == cg.answer(lm, "The river is")
    with pytest.raises(BadConfig, match="no chat template"):
        cg.ask(lm, ["The river is"], chat=True)


def test_a_missing_subject_is_found_or_asked_for(lm: cg.LanguageModel, fact: cg.Fact) -> None:
    found = cg.correct(lm, replace(fact, subject=None), **SETTINGS)
    assert found.facts[0].subject == fact.subject
    assert any("(found)" in line for line in found.notices)
    with pytest.raises(AmbiguousSubject, match=r"(?s)^CG104 .*--subject"):
        cg.edit(lm, cg.Fact(prompt="the sky over Rome and Milan is", target="blue"), **SETTINGS)


def test_unknown_method_and_option_are_refused(lm: cg.LanguageModel, fact: cg.Fact) -> None:
    with pytest.raises(UnknownMethod, match='Did you mean "rome"'):
        cg.edit(lm, fact, "romee")
    with pytest.raises(BadConfig, match="learning_rat"):
        cg.edit(lm, fact, learning_rat=1.0)


def test_load_by_path_and_dtype(tmp_path: Path, lm: cg.LanguageModel) -> None:
    lm.model.save_pretrained(tmp_path)
    lm.tokenizer.save_pretrained(tmp_path)
    assert cg.load(tmp_path, dtype="bfloat16").dtype == torch.bfloat16
    assert cg.load(tmp_path, dtype=torch.float64).dtype == torch.float64
    with pytest.raises(BadConfig, match='Did you mean "float32"'):
        cg.load(tmp_path, dtype="flaot32")


def test_answers_begin_with_whole_words() -> None:
    fact = cg.Fact(prompt="a", target="Rom", aliases=("Roma",))
    assert begins_with_target("Rom, of course", fact)
    assert begins_with_target("Roma", fact)
    assert not begins_with_target("Romania", fact)
    assert not begins_with_target("in Rom", fact)
