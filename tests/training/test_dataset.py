"""Training sets: where they come from, how they are parted, what the pocket world gives."""

from __future__ import annotations

import json
import random
from itertools import islice
from pathlib import Path

import pytest

from corrigenda.almanac.exam import draw_edits
from corrigenda.almanac.training_facts import training_facts
from corrigenda.almanac.world import load_world
from corrigenda.editor import Edit, Editor, Requires
from corrigenda.errors import BadConfig, MissingState
from corrigenda.facts import Fact
from corrigenda.lm.model import LanguageModel
from corrigenda.patch import Header, WeightPatch
from corrigenda.state import State
from corrigenda.statistics import Corpus
from corrigenda.testing.tiny import tiny_model
from corrigenda.training import QUIET, draw_unrelated_prompt, load_training_set, split
from corrigenda.training.dataset import digest

FACTS = tuple(
    Fact(
        prompt=f"{name} is in",
        subject=name,
        target=place,
        paraphrases=(f"{name} lies in",),
        neighbours=neighbours,
    )
    for name in ("Arles", "Bergen", "Cork", "Delft", "Essen")
    for place, neighbours in (("Chile", ()), ("Peru", ("Faro is in",)))
)


class Learned(Editor):
    """Counts its facts, and how often it is trained."""

    name = "learned"
    requires = Requires(training_set=True)
    rate: float = 1.0

    def sites(self, lm: LanguageModel):
        return ()

    def train(self, lm, facts, job=QUIET) -> State:
        Trainings.count += 1
        Trainings.checkpoint = job.checkpoint
        return State(meta={"count": len(facts)})

    def edit(self, lm, facts, state=None) -> Edit:
        return Edit(WeightPatch({}, Header(method=self.name)), state)


class Trainings:
    count = 0
    checkpoint: Path | None = None


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("CORRIGENDA_CACHE", str(tmp_path / "cache"))
    Trainings.count = 0
    return tmp_path / "cache"


def test_a_fit_is_kept_by_model_settings_and_facts(cache: Path) -> None:
    lm = tiny_model("gpt2", layers=1)
    state = Learned().fit(lm, FACTS)
    assert state.meta["count"] == len(FACTS)
    assert state.meta["training_set"] == {"facts": 10, "digest": digest(FACTS), "shipped": False}
    assert Learned().fit(lm, list(FACTS)) == state
    assert Trainings.count == 1
    assert Trainings.checkpoint is not None
    assert Trainings.checkpoint.parent == cache / "trained"
    Learned(rate=2.0).fit(lm, FACTS)
    Learned().fit(lm, FACTS[:-1])
    Learned().fit(tiny_model("gpt2", layers=1, seed=1), FACTS)
    assert Trainings.count == 4
    with pytest.raises(Exception, match="CG401"):
        state.require_base(tiny_model("gpt2", layers=1, seed=1))


def test_facts_come_from_a_file_too(tmp_path: Path) -> None:
    file = tmp_path / "facts.jsonl"
    lines = [{"prompt": f.prompt, "target": f.target, "subject": f.subject} for f in FACTS]
    file.write_text("\n".join(map(json.dumps, lines)))
    found = load_training_set(tiny_model("gpt2", layers=1), file, where="m")
    assert [fact.target for fact in found] == [fact.target for fact in FACTS]


def test_what_is_missing_or_of_the_wrong_kind_is_said() -> None:
    lm = tiny_model("gpt2", layers=1)
    with pytest.raises(MissingState, match=r"trained on facts(.|\n)*--training-set"):
        Learned().fit(lm)
    for text in (Corpus(["a"]), ["some text"]):
        with pytest.raises(BadConfig, match="not text"):
            Learned().fit(lm, text)
    with pytest.raises(BadConfig, match="at least 2"):
        Learned().fit(lm, FACTS[:1])
    from corrigenda.methods.memit.editor import Memit

    with pytest.raises(BadConfig, match="from text, not from facts"):
        Memit(layers=(0,)).fit(lm, FACTS)


def test_split_keeps_subjects_together() -> None:
    parts = split(FACTS, validation=2, seed=0)
    assert len(parts.validation) == 2
    assert len(parts.training) == 8
    subjects = [{fact.subject for fact in part} for part in parts]
    assert not subjects[0] & subjects[1]
    assert parts == split(FACTS, validation=2, seed=0)
    assert len({split(FACTS, validation=2, seed=seed).validation for seed in range(9)}) > 1
    one = split(FACTS[:2], validation=2, seed=0)
    assert one.training == one.validation == FACTS[:2]


def test_outsiders_are_neighbours_or_prompts_about_something_else() -> None:
    chance = random.Random(0)
    assert draw_unrelated_prompt(FACTS, 1, chance) == "Faro is in"
    drawn = {draw_unrelated_prompt(FACTS, 0, chance) for _ in range(50)}
    assert drawn == {fact.prompt for fact in FACTS[2:]}


def test_digest_sees_every_word_but_names() -> None:
    one, other = (Fact(prompt="A is", target="b", name=name) for name in ("x", "y"))
    assert digest([one]) == digest([other])
    assert digest([one]) != digest([Fact(prompt="A is", target="b", neighbours=("c",))])


def test_training_facts_of_the_pocket_world_share_no_subject_with_any_edit_of_the_exam() -> None:
    world = load_world()
    facts = list(training_facts())
    assert len(facts) > 3000
    subjects = {fact.subject for fact in facts}
    assert all(world.skill_held_out(subject or "") for subject in subjects)
    for seed in (7, 11, 3):
        assert not subjects & {item.fact.subject for item in draw_edits(world, 100, seed=seed)}
    asked = {item.fact.subject or "" for item in draw_edits(world, 100)}
    for fact in islice(facts, 0, None, 40):
        assert fact.target != fact.before
        assert len(fact.paraphrases) == 5
        assert fact.neighbours
        assert not any(name in prompt for prompt in fact.neighbours for name in asked)
    assert digest(facts) == digest(list(training_facts()))
