"""Searches on a pocket model: what is tried, what is kept after a kill, and what is written."""

from __future__ import annotations

from pathlib import Path

import pytest

import corrigenda as cg
from corrigenda.almanac.known_facts import list_askable
from corrigenda.catalogue import build_editor
from corrigenda.errors import BadConfig, NoCases
from corrigenda.knowledge import exam
from corrigenda.knowledge.edit_trial import FactOutcome
from corrigenda.knowledge.exam import draw_cases
from corrigenda.lm.model import LanguageModel
from corrigenda.methods.presets import read_preset
from corrigenda.testing.tiny import tiny_model
from corrigenda.tuning.evaluation import Evaluator, Outcomes, read_outcomes
from corrigenda.tuning.scores import DriftMeter, score_outcomes
from corrigenda.tuning.study import MethodSearch
from corrigenda.tuning.tune import tune
from tests.support.tiny_on_disk import command

pytest.importorskip("optuna")

METHOD = "ft-m"


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("CORRIGENDA_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture(scope="module")
def pocket() -> LanguageModel:
    return cg.load("pocket")


class Stopped(Exception):
    """Stands for a kill."""


def stop_at(number: int) -> object:
    """Return a progress callback that stops at a call about the search."""
    calls: list[str] = []

    def report(stage: str, done: int, total: int) -> None:
        calls.append(stage)
        if calls.count(f"tune {METHOD}, seconds") == number:
            raise Stopped

    return report


def test_a_search_is_done_and_its_evidence_is_of_other_facts(
    pocket: LanguageModel, tmp_path: Path
) -> None:
    (found,) = tune(pocket, METHOD, facts=4, trials=2, progress=False)
    assert found.method == METHOD
    assert found.evidence["trials"] == 2
    single = found.evidence["single"]
    assert isinstance(single, dict)
    assert single["facts"] == 4
    assert 0.5 <= single["efficacy"]["value"] <= 1
    assert single["efficacy"]["low"] <= single["efficacy"]["value"] <= single["efficacy"]["high"]
    assert found.model["name"] == "pocket"
    assert found.model["digest"] == pocket.digest()
    file = found.save(tmp_path / "ft-m.toml")
    read = read_preset(file)
    assert read.options == found.options
    assert read.method == METHOD
    assert read.shape == found.preset.shape
    editor = build_editor(pocket, METHOD, preset=str(file))
    assert editor == type(editor)(**dict(found.options))
    again = tune(pocket, METHOD, facts=4, trials=2, progress=False)
    assert again[0].options == found.options
    assert again[0].evidence["trials"] == 2


def test_facts_of_the_search_and_of_the_evidence_have_no_subject_in_common(
    pocket: LanguageModel,
) -> None:
    cases = draw_cases(pocket, 24, seed=0)
    others = draw_cases(pocket, 24, seed=1, exclude=cases)
    assert not {one.fact.subject for one in cases} & {one.fact.subject for one in others}


def test_a_killed_search_goes_on_with_what_it_had_begun(
    pocket: LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[dict[str, object]] = []
    make = MethodSearch._try

    def note(search: MethodSearch, trial: object, *rest: object) -> None:
        make(search, trial, *rest)  # type: ignore[arg-type]  # passed on
        drawn.append(dict(trial.params))  # type: ignore[attr-defined]  # a trial

    monkeypatch.setattr(MethodSearch, "_try", note)
    # The first call is before the first trial; the second after its only portion of facts.
    with pytest.raises(Stopped):
        tune(pocket, METHOD, facts=4, trials=2, progress=stop_at(3))  # type: ignore[arg-type]  # a callback
    (first,) = drawn
    drawn.clear()
    (found,) = tune(pocket, METHOD, facts=4, trials=3, progress=False)
    # The second trial, which was stopped, is made again, and the first is not.
    assert first not in drawn
    assert len(drawn) >= 1
    assert found.evidence["completed"] == found.evidence["trials"] - 1 >= 2  # type: ignore[operator]  # numbers


def test_the_first_trial_is_what_is_used_today(pocket: LanguageModel) -> None:
    present = build_editor(pocket, METHOD)
    (found,) = tune(pocket, METHOD, facts=4, trials=1, progress=False)
    assert found.evidence["is_present"] is True
    kind = type(present)
    assert kind(**dict(found.options)) == present.model_copy(
        update={"layer": found.options["layer"]}
    )


def test_outcomes_go_on_where_they_stopped(pocket: LanguageModel) -> None:
    cases = draw_cases(pocket, 5, seed=3)
    evaluator = Evaluator(pocket, cases, DriftMeter(pocket), chat=False)
    editor = build_editor(pocket, METHOD)
    whole = list(evaluator.run(editor, None, at_once=False))[-1]
    part = next(evaluator.run(editor, None, at_once=False))
    assert len(part.single) == 4
    kept = read_outcomes(part.to_json())
    rest = list(evaluator.run(editor, None, at_once=False, done=kept))[-1]
    assert rest.single == whole.single
    assert rest.single_drift == whole.single_drift
    assert len(rest.single) == 5


def test_many_at_once_count_as_much_as_single_edits(pocket: LanguageModel) -> None:
    good = FactOutcome("a", False, True, (True,) * 9, (True,) * 9, (True,) * 9)
    bad = FactOutcome("b", False, False, (False,) * 9, (True,) * 9, (False,) * 9)
    one, other = Outcomes(single=[good]), Outcomes(single=[bad])
    both = Outcomes(single=[good], batch=[bad])
    assert both.score == pytest.approx((one.score + other.score) / 2)
    assert score_outcomes([good], 0.5) == pytest.approx(one.score - 0.5)
    in_chat = bad._replace(chat=True)
    assert score_outcomes([good, in_chat]) == pytest.approx(both.score)


def test_an_edit_drifts_and_none_does_not(pocket: LanguageModel) -> None:
    meter = DriftMeter(pocket)
    assert meter.measure(pocket) == pytest.approx(0, abs=1e-6)
    fact = draw_cases(pocket, 1)[0].training_fact
    patch = build_editor(pocket, METHOD, learning_rate=0.1).edit(pocket, [fact]).patch
    with patch.apply(pocket):
        assert meter.measure(pocket) > 1e-3


def test_what_cannot_be_tuned_is_refused(pocket: LanguageModel) -> None:
    with pytest.raises(BadConfig, match=r"CG502.*mend is trained before"):
        tune(pocket, "mend")
    with pytest.raises(BadConfig, match="3 facts"):
        tune(pocket, METHOD, facts=3)
    with pytest.raises(BadConfig, match="0 minutes"):
        tune(pocket, METHOD, budget=0)


def test_a_model_that_knows_nothing_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exam, "list_askable", lambda **_: list_askable(invented=False)[:3])
    with pytest.raises(NoCases, match=r"CG607.*knows 0 facts"):
        tune(tiny_model("llama"), METHOD, progress=False)


def test_the_command_writes_a_preset_that_edit_takes(tmp_path: Path) -> None:
    file = tmp_path / "own.toml"
    made = command(
        *("tune", "pocket", "--method", METHOD, "--facts", 4, "--trials", 1, "-o", file, "--json")
    )
    assert made.code == 0
    assert made.json["presets"][0]["file"] == str(file)
    fact = ("pocket", "The capital of France is", "--target", "Rome")
    ran = command("edit", *fact, "--method", METHOD, "--preset", file, "--json")
    assert ran.json["config"]["layer"] == made.json["presets"][0]["options"]["layer"]
    wrong = command("edit", *fact, "--method", "rome", "--preset", file)
    assert wrong.code == 2
    assert "CG502" in wrong.err
    assert f"Give --method {METHOD}" in wrong.err
