"""IKE: types, order and wording of demonstrations; nothing shown that gives the edit away."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import replace
from functools import cache

import pytest

import corrigenda
from corrigenda.almanac.exam import load_exam
from corrigenda.almanac.training_facts import training_facts
from corrigenda.engines import text_tensors
from corrigenda.errors import MissingState
from corrigenda.facts import Fact
from corrigenda.lm.decoding import answer
from corrigenda.lm.model import LanguageModel
from corrigenda.methods.ice.editor import ICE
from corrigenda.methods.ike.editor import IKE, IkePatch, assign_types, subject_sentence
from corrigenda.patch import load_patch
from corrigenda.retrieval import embedder
from corrigenda.state import State
from tests.support.in_context import EDITS, asked, pool
from tests.support.locating import model

SMALL = IKE(embedder="states", num_demonstrations=3, reserve=8)


@cache
def lm() -> LanguageModel:
    return model("gpt2")


@cache
def fitted(count: int = 40) -> State:
    return SMALL.train(lm(), tuple(pool(count)))


def shown(patch: object) -> list[list[str]]:
    """The demonstrations kept for each fact, before any is cut."""
    assert isinstance(patch, IkePatch)
    texts = text_tensors.decode_value(patch.stored["demonstrations"])
    assert isinstance(texts, list)
    return [[str(text) for text in own] for own in texts if isinstance(own, list)]


def kind(text: str) -> str:
    """The type of a demonstration of `pool`, by its wording."""
    told, asked_for, *_ = text.split("\n")
    number = told.split()[3]
    if f"The language of Person {number} is" in asked_for:
        return "update"
    return "copy" if f"Prompt: Person {number} speaks" in asked_for else "retain"


def test_thirty_two_demonstrations_are_four_twelve_and_sixteen_each_of_its_own_record() -> None:
    editor = IKE(embedder="states", num_demonstrations=32)
    (own,) = shown(editor.edit(lm(), EDITS[:1], fitted()).patch)
    *borrowed, last = own
    assert Counter(map(kind, borrowed)) == {"copy": 4, "update": 12, "retain": 16}
    assert len({text.split("\n")[0] for text in borrowed}) == 32
    fact = EDITS[0]
    assert last == f"New Fact: {fact.prompt} French\nPrompt: {fact.prompt} French\n\n"
    assert len(shown(editor.edit(lm(), [fact], fitted()).patch)[0]) == 33


def test_the_wording_of_each_type_and_what_a_neighbour_keeps() -> None:
    patch = SMALL.edit(lm(), EDITS[:1], fitted()).patch
    for text in shown(patch)[0][:3]:
        number = int(text.split()[3])
        target = ("Danish", "Czech", "Greek")[number % 3]
        first = f"New Fact: Person {number} speaks {target}\nPrompt: "
        neighbour = f"Person {number + 100} speaks"
        kept = answer(lm(), [neighbour])[0].rstrip(".")
        expected = {
            "copy": f"{first}Person {number} speaks {target}\n\n",
            "update": f"{first}The language of Person {number} is {target}\n\n",
            "retain": f"{first}{neighbour} {kept}\n\n",
        }
        assert text == expected[kind(text)]
    types = patch.header.notes["types"]
    assert isinstance(types, list)
    assert Counter(str(types[0])) == Counter(one[0] for one in map(kind, shown(patch)[0][:3]))


def test_the_most_similar_comes_last() -> None:
    editor = IKE(embedder="states", num_demonstrations=12, repeat_fact=False)
    told = [text.split("\n")[0] for text in shown(editor.edit(lm(), EDITS[:1], fitted()).patch)[0]]
    vectors = embedder("states").embed(lm(), [f"New Fact: {EDITS[0].prompt} French", *told])
    similarities = (vectors[1:] @ vectors[0]).tolist()
    assert similarities == sorted(similarities)
    everything = [f"New Fact: {fact.prompt} {fact.target}" for fact in pool()]
    others = embedder("states").embed(lm(), [one for one in everything if one not in told])
    assert float((others @ vectors[0]).max()) <= similarities[0] + 1e-6


def test_nothing_is_shown_that_may_be_the_edited_fact() -> None:
    edited = replace(EDITS[0], name="case:1")
    traps = [
        edited,
        replace(edited, name="", target="Dutch"),
        Fact(prompt="Ada Lovelace spoke", subject="Ada Lovelace", target="Latin"),
        Fact(prompt="Somebody else spoke", subject="Somebody", target="Latin", name="case:1"),
    ]
    state = SMALL.train(lm(), (*traps, *pool(6)))
    editor = IKE(embedder="states", num_demonstrations=32, repeat_fact=False)
    (own,) = shown(editor.edit(lm(), [edited], state).patch)
    assert len(own) == 6
    assert all("New Fact: Person" in text for text in own)


def test_types_are_decided_by_the_seed_and_the_fact_alone() -> None:
    one = IKE(embedder="states", num_demonstrations=16)
    other = one.model_copy(update={"seed": 7})
    alone = shown(one.edit(lm(), EDITS[1:2], fitted()).patch)[0]
    assert shown(one.edit(lm(), EDITS, fitted()).patch)[1] == alone
    assert shown(other.edit(lm(), EDITS[1:2], fitted()).patch)[0] != alone
    for count in (1, 4, 8, 16, 64):
        types = Counter(assign_types(count, random.Random(0)))
        assert types["copy"] == round(count / 8)
        assert types["update"] == round(3 * count / 8)
        assert types.total() == count


def test_without_demonstrations_it_is_ice() -> None:
    bare = IKE(embedder="states", num_demonstrations=0, repeat_fact=False)
    ice = ICE(embedder="states").edit(lm(), EDITS).patch
    prompts = [fact.prompt for fact in EDITS]
    assert asked(bare.edit(lm(), EDITS, fitted()).patch, lm(), prompts) == asked(ice, lm(), prompts)


def test_contexts_are_cut_from_the_farthest_demonstration_on_and_told() -> None:
    editor = IKE(embedder="states", num_demonstrations=32, reserve=8)
    patch = editor.edit(lm(), EDITS[:1], fitted()).patch
    (own,) = shown(patch)
    (text,) = asked(patch, lm(), [EDITS[0].prompt])
    closing = f"New Fact: {EDITS[0].prompt} French\nPrompt: {EDITS[0].prompt}"
    assert text.endswith(closing)
    left = text.removesuffix(closing)
    count = left.count("\n\n")
    assert 0 < count < len(own)
    assert left == "".join(own[len(own) - count :])
    size = len(lm().tokenizer(text).input_ids)
    assert size + 8 <= lm().context_length
    one_more = own[len(own) - count - 1] + text
    assert len(lm().tokenizer(one_more).input_ids) + 8 > lm().context_length
    assert patch.header.notes["fitting"] == [count]
    assert "farthest are left out" in str(patch.header.notes["notices"])


def test_a_pool_that_cannot_retain_is_noticed_and_none_at_all_is_refused() -> None:
    bare = tuple(replace(fact, paraphrases=(), neighbours=()) for fact in pool(8))
    patch = SMALL.edit(lm(), EDITS[:1], SMALL.train(lm(), bare)).patch
    assert Counter(map(kind, shown(patch)[0][:3])) == {"copy": 3}
    assert "neighbours will hardly be left alone" in str(patch.header.notes["notices"])
    with pytest.raises(MissingState, match="CG503"):
        SMALL.edit(lm(), EDITS[:1])


def test_a_paraphrase_is_cut_to_the_sentence_of_its_subject() -> None:
    text = "He left in May. Ada went\nTwo lines. Of Ada Lovelace, the tongue is"
    assert subject_sentence(text, "Ada Lovelace") == "Of Ada Lovelace, the tongue is"
    assert subject_sentence(text, "Ada") == "Ada went\nTwo lines. Of Ada Lovelace, the tongue is"
    assert subject_sentence(text, None) == text
    assert subject_sentence("Ada. So", "Eve") == "Ada. So"


def test_a_part_of_the_training_set_and_the_file_of_a_state(tmp_path) -> None:
    editor = SMALL.model_copy(update={"pool_size": 5})
    state = editor.train(lm(), tuple(pool()))
    records = editor.pool(state)
    assert len(records) == 5
    assert {record.fact for record in records} <= set(pool())
    loaded = State.load(state.save(tmp_path / "pool.safetensors"))
    assert editor.edit(lm(), EDITS, loaded).patch == editor.edit(lm(), EDITS, state).patch


def test_on_the_pocket_model_the_fact_is_taken_over_and_the_patch_travels(tmp_path) -> None:
    lm = corrigenda.load("pocket", dtype="float32")
    editor = IKE(embedder="states", num_demonstrations=2)
    facts = [case.fact for case in load_exam(edits=2, size=1, recall=1, seed=11).edits]
    state = editor.train(lm, tuple(list(training_facts(1))[:8]))
    took = []
    for fact in facts:
        patch = editor.edit(lm, [fact], state).patch
        loaded = load_patch(patch.save(tmp_path / "told.safetensors"))
        assert loaded == patch
        with loaded.apply(lm):
            said = answer(lm, [fact.prompt, *fact.paraphrases])
        took += [text.startswith(fact.target) for text in said]
    assert sum(took) >= 0.5 * len(took)
