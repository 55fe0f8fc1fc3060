"""Facts taken out of a stream: to the bit, or by down-dating with the error that is stated."""

from __future__ import annotations

from functools import cache

import pytest
import torch

import corrigenda as cg
from corrigenda.errors import BadConfig, NotApplied
from corrigenda.methods.rome.editor import Rome
from corrigenda.streaming.edit_stream import EditStream, is_separable
from tests.support.streams import (
    EDITORS,
    JOINT,
    LAYERS,
    WEIGHTS,
    difference,
    facts,
    lm,
    same_bits,
    state_of,
    weights,
    without_records,
)


@cache
def streamed(name: str, count: int = 10, size: int = 3) -> EditStream:
    """A stream of facts about different subjects."""
    return cg.stream(
        lm(), EDITORS[name], facts(count), batch_size=size, state=state_of(name), progress=False
    )


@pytest.mark.parametrize("name", EDITORS)
def test_what_is_left_is_to_the_bit_a_stream_that_never_had_them(name: str) -> None:
    edits = streamed(name)
    assert edits.written == tuple(range(10))
    fewer = edits.without(4)
    assert same_bits(fewer, without_records(edits, [4]))
    assert not same_bits(fewer, edits)
    # One by one, together, and a whole batch with others: the order does not matter.
    more = fewer.without([0, 9]).without(batches=1)
    assert same_bits(more, edits.without([9, 5, 3, 0], batches=[1]))
    assert same_bits(more, without_records(edits, [0, 3, 4, 5, 9]))
    assert more.written == (1, 2, 6, 7, 8)
    assert len(more.patch.header.facts) == 5 or name == "grace"
    assert fewer.error is None


@pytest.mark.parametrize("name", EDITORS)
def test_without_any_fact_the_model_is_the_unedited_one(name: str) -> None:
    edits = streamed(name)
    before = {
        site: one.clone()
        for site, one in weights(EditStream.empty(edits.editor, edits.state, edits.base)).items()
    }
    nothing = edits.without(batches=range(4))
    after = weights(nothing)
    assert all(torch.equal(before[site], after[site]) for site in before)


@pytest.mark.parametrize("name", WEIGHTS)
def test_a_stream_does_what_its_editor_does_batch_by_batch(name: str) -> None:
    model, editor, state = lm(), EDITORS[name], state_of(name)
    edits = streamed(name)
    applied, total = [], {}
    for begin in range(0, 10, 3):
        made = editor.edit(model, facts(10)[begin : begin + 3], state)
        state = made.state
        applied.append(made.patch.apply(model))
    total = {layer: model.weight(cg.Site(layer)).clone() for layer in LAYERS}
    for one in reversed(applied):
        one.revert()
    ours = weights(edits)
    base = {layer: model.weight(cg.Site(layer)) for layer in LAYERS}
    for layer in LAYERS:
        change = total[layer] - base[layer]
        assert (
            float((ours[cg.Site(layer)] - total[layer]).abs().max())
            <= 2e-3 * float(change.abs().max())
            or float(change.abs().max()) == 0.0
        )


@pytest.mark.parametrize("name", WEIGHTS)
def test_down_dating_is_as_near_as_it_says(name: str) -> None:
    edits = streamed(name)
    exact = edits.without([4, 7, 0])
    near = edits.without(4, how="downdate").without([7, 0], how="downdate")
    assert exact.error is None
    assert near.error is not None
    size = max(float(one.delta.abs().max()) for one in exact.solution.changes().values())
    found = difference(near, exact)
    assert found <= 1e-9 * size
    assert near.error <= 1e-9 * size
    # The error is of the order of what is found, or a bound of it.
    assert found <= 100 * near.error + 1e-16
    assert same_bits(near.recomputed(), exact)


@pytest.mark.parametrize("name", JOINT)
def test_a_joint_system_meets_its_normal_equation(name: str) -> None:
    """sum (D b - r) b^T + weight D = 0 over the records, in the coordinates of the method."""
    edits = streamed(name).without([2, 3])
    for site, sums in edits.solution.sums.items():
        left = sums.weight * sums.solution
        for batch in edits.batches:
            own = batch.keep(edits.gone)[site]
            keys = edits.editor.coordinates(edits.state, site, own.keys.T)
            left = left + (sums.solution @ keys - own.residuals.T) @ keys.T
        assert left.norm() <= 1e-10 * sums.cross.norm()


@pytest.mark.parametrize("name", JOINT)
def test_other_facts_keep_what_they_were_given(name: str) -> None:
    """Taking one fact out moves the outputs at the other keys less than a ridge moves them."""
    edits = streamed(name)
    fewer = edits.without(4)
    for site in edits.solution.sums:
        keys = torch.cat([batch.keep(frozenset())[site].keys for batch in edits.batches]).T
        before, after = (one.solution.changes()[site].delta @ keys for one in (edits, fewer))
        moved = (after - before).norm(dim=0)
        others = torch.cat([moved[:4], moved[5:]])
        assert float(others.median()) < float(moved[4])


def test_on_the_base_model_a_batch_that_is_taken_out_was_never_there() -> None:
    """A stream of the other facts, searched anew, has the same bits."""
    options = {"batch_size": 3, "search_on": "base", "progress": False}
    for name in ("memit", "memit in sequence", "rlsedit"):
        editor, state = EDITORS[name], state_of(name)
        edits = cg.stream(lm(), editor, facts(9), state=state, **options)
        others = facts(9)[:3] + facts(9)[6:]
        anew = cg.stream(lm(), editor, others, state=state, **options)
        assert same_bits(edits.without(batches=1), anew)
        assert not same_bits(edits, anew)


@pytest.mark.parametrize("name", EDITORS)
def test_the_last_batch_taken_out_leaves_the_stream_before_it(name: str) -> None:
    options = {"batch_size": 3, "state": state_of(name), "progress": False}
    shorter = cg.stream(lm(), EDITORS[name], facts(9), **options)
    assert same_bits(streamed(name).without(batches=3), shorter)


def test_a_stream_goes_on_after_facts_were_taken_out() -> None:
    edits = streamed("rlsedit")
    near = edits.without(4, how="downdate")
    batch = edits.batches[0]
    from dataclasses import replace

    again = replace(batch, first=10)
    assert same_bits(near.added(again), edits.without(4).added(again))
    assert near.added(again).error is None


@pytest.mark.parametrize("name", ["memit", "grace"])
def test_the_patch_is_like_any_other(name: str, tmp_path) -> None:
    edits = streamed(name).without(1)
    file = edits.patch.save(tmp_path / "edits.safetensors")
    loaded = cg.load_patch(file)
    assert loaded == edits.patch
    digest = lm().digest()
    with loaded.apply(lm()):
        assert name == "grace" or lm().digest() != digest
    assert lm().digest() == digest


def test_places_numbers_and_ways_that_are_none_are_refused() -> None:
    edits = streamed("memit")
    with pytest.raises(BadConfig, match="no fact 10 in a stream of 10"):
        edits.without(10)
    with pytest.raises(BadConfig, match="no batch 4"):
        edits.without(batches=4)
    with pytest.raises(BadConfig, match="no fact -1"):
        edits.without([-1])
    with pytest.raises(BadConfig, match="no way to take facts out"):
        edits.without(0, how="undo")
    assert edits.gone == frozenset()


def test_methods_whose_edits_cannot_be_taken_out_are_refused_and_others_named() -> None:
    with pytest.raises(BadConfig, match="edits of rome cannot be streamed") as raised:
        cg.stream(lm(), Rome(layer=1), facts(2))
    named = raised.value.hint.removeprefix("These can: ").rstrip(".").split(", ")
    assert set(named) >= {"memit", "emmet", "alphaedit", "ultraedit", "rlsedit", "grace"}
    assert "rome" not in named
    assert all(is_separable(editor) for editor in EDITORS.values())


def test_an_option_that_ties_edits_together_is_refused() -> None:
    tied = EDITORS["memit"].model_copy(update={"ideal_weight": 1.0})
    with pytest.raises(BadConfig, match="none comes out alone"):
        cg.stream(lm(), tied, facts(2))


def test_active_patches_and_bad_counts_are_refused_before_any_work() -> None:
    with streamed("memit").apply(lm()), pytest.raises(NotApplied, match="patches are active"):
        cg.stream(lm(), EDITORS["memit"], facts(2))
    for options in ({"batch_size": 0}, {"checkpoint_every": 0}, {"check_every": 0}):
        with pytest.raises(BadConfig, match="is 0"):
            cg.stream(lm(), EDITORS["memit"], facts(2), **options)
    with pytest.raises(BadConfig, match="search_on"):
        cg.stream(lm(), EDITORS["memit"], facts(2), search_on="other")
    with pytest.raises(BadConfig, match="searches no targets"):
        cg.stream(lm(), EDITORS["ultraedit"], facts(2), search_on="base")
