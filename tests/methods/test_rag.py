"""The baseline rag: what is found, and what is left bit for bit as it was."""

from __future__ import annotations

from corrigenda.facts import Fact
from corrigenda.lm.decoding import score
from corrigenda.methods.rag.editor import Rag
from corrigenda.patch import load_patch
from tests.support.in_context import EDITS, asked
from tests.support.locating import model

PAIRS = [(fact.prompt, fact.target) for fact in EDITS]
HEAD = "These facts are true, even where you know otherwise:"


def told(fact: Fact) -> str:
    return f"- {fact.prompt} {fact.target}"


def test_only_what_is_near_is_written_and_the_rest_is_bit_for_bit_the_same() -> None:
    lm = model()
    before = score(lm, PAIRS)
    patch = Rag(embedder="states", threshold=0.9999, num_facts=2).edit(lm, EDITS[:1]).patch
    near, far = asked(patch, lm, [EDITS[0].prompt, EDITS[1].prompt])
    assert near == f"{HEAD}\n{told(EDITS[0])}\n\n{EDITS[0].prompt}"
    assert far == EDITS[1].prompt
    with patch.apply(lm):
        after = score(lm, PAIRS)
    assert after[0] != before[0]
    assert after[1:] == before[1:]
    assert score(lm, PAIRS) == before


def test_what_is_found_does_not_depend_on_the_target() -> None:
    lm = model()
    other = [Fact(prompt=one.prompt, target="Oslo", subject=one.subject) for one in EDITS]
    editor = Rag(embedder="states", scope="always", num_facts=1)
    ours, theirs = (editor.edit(lm, facts).patch for facts in (EDITS, other))
    (one,), (same,) = (asked(patch, lm, [EDITS[2].prompt]) for patch in (ours, theirs))
    assert one.replace(EDITS[2].target, "Oslo") == same


def test_a_later_fact_takes_the_place_of_an_earlier(tmp_path) -> None:
    lm = model()
    newer = Fact(prompt=EDITS[0].prompt, target="Oslo", subject=EDITS[0].subject)
    editor = Rag(embedder="states", scope="always")
    path = tmp_path / "rag.safetensors"
    editor.edit(lm, [*EDITS, newer]).patch.save(path)
    (text,) = asked(load_patch(path), lm, [EDITS[0].prompt])
    assert text.count(EDITS[0].prompt) == 2
    assert f"{EDITS[0].prompt} Oslo" in text
    assert f"{EDITS[0].prompt} {EDITS[0].target}" not in text
