"""Editors, facts and states shared by the tests of streams, on tiny random models."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import torch
from torch import Tensor

from corrigenda.editor import Editor
from corrigenda.facts import Fact
from corrigenda.lm.model import LanguageModel
from corrigenda.lm.sites import Site
from corrigenda.methods.alphaedit.editor import AlphaEdit
from corrigenda.methods.emmet.editor import Emmet
from corrigenda.methods.grace.editor import Grace
from corrigenda.methods.memit.editor import Memit
from corrigenda.methods.pmet.editor import Pmet
from corrigenda.methods.rlsedit.editor import RLSEdit
from corrigenda.methods.ultraedit.editor import UltraEdit
from corrigenda.patch import WeightPatch
from corrigenda.state import State
from corrigenda.streaming.batches import StreamBatch
from corrigenda.streaming.edit_stream import EditStream
from corrigenda.testing.tiny import tiny_model
from tests.support.locating import TWO_LEVEL, moments

LAYERS = (1, 2)
_SEARCH = {"contexts": TWO_LEVEL, "steps": 2, "learning_rate": 0.3}
_SEVERAL = {"layers": LAYERS, "weight": 0.5, **_SEARCH}

EDITORS: dict[str, Editor] = {
    "memit": Memit(**_SEVERAL),
    "memit in sequence": Memit(sequential=True, **_SEVERAL),
    "alphaedit": AlphaEdit(energy=0.3, **_SEVERAL),
    "rlsedit": RLSEdit(norm_weight=0.25, **_SEVERAL),
    "pmet": Pmet(**_SEVERAL),
    "emmet": Emmet(layer=1, **_SEARCH),
    "emmet with a ridge": Emmet(layer=1, gamma=0.5, **_SEARCH),
    "ultraedit": UltraEdit(layers=LAYERS, learning_rate=0.01),
    "grace": Grace(layer=1, steps=2, radius=0.3),
}
"""Every kind of method whose edits can be taken out."""

JOINT = ("memit in sequence", "alphaedit", "rlsedit")
WEIGHTS = tuple(name for name in EDITORS if name != "grace")


def facts(count: int) -> list[Fact]:
    """Facts about as many subjects."""
    places = ("Paris", "Tokyo", "Cairo", "Lima", "Oslo")
    return [
        Fact(
            prompt=f"Station {chr(65 + n % 26)}{n} lies in",
            subject=f"Station {chr(65 + n % 26)}{n}",
            target=places[n % len(places)],
        )
        for n in range(count)
    ]


@cache
def lm() -> LanguageModel:
    """A random tiny model."""
    return tiny_model("llama")


@cache
def state_of(name: str) -> State:
    """The state of an editor on the tiny model."""
    editor = EDITORS[name]
    if not editor.requires.moments:
        return State()
    fitted = moments(lm(), LAYERS)
    if isinstance(editor, AlphaEdit):
        return editor.with_projectors(fitted, fitted.moment_sites)
    return fitted


def weights(edits: EditStream) -> dict[Site, Tensor]:
    """The weights that a stream leaves in a model."""
    model = lm()
    with edits.apply(model):
        return {Site(layer): model.weight(Site(layer)).clone() for layer in LAYERS}


def same_bits(first: EditStream, second: EditStream) -> bool:
    """Whether two streams are the same edit to the bit: weights, or entries and what they do."""
    if not isinstance(first.patch, WeightPatch):
        ours, others = first.patch.tensors(), second.patch.tensors()
        return ours.keys() == others.keys() and all(
            torch.equal(one, others[name]) for name, one in ours.items()
        )
    exact = (edits.solution.changes() for edits in (first, second))
    (ours, theirs), (mine, others) = exact, (weights(first), weights(second))
    return all(
        torch.equal(ours[site].delta, theirs[site].delta) and torch.equal(mine[site], others[site])
        for site in ours.keys() | theirs.keys()
    )


def difference(first: EditStream, second: EditStream) -> float:
    """Greatest difference of the changes of weights, float64."""
    ours, theirs = (edits.solution.changes() for edits in (first, second))
    assert ours.keys() == theirs.keys()
    return max(float((ours[site].delta - theirs[site].delta).abs().max()) for site in ours)


def without_records(edits: EditStream, places: Sequence[int]) -> EditStream:
    """A stream that never had some facts, from the records of the others alone, numbered anew."""
    kept: list[StreamBatch] = []
    first = 0
    for batch in edits.batches:
        left = [place for place in batch.places if place not in places]
        new = {place: first + index for index, place in enumerate(left)}
        records = {}
        for site, own in batch.records.items():
            mine = own.select(torch.isin(own.owners, torch.tensor(left)))
            owners = torch.tensor([new[place] for place in mine.owners.tolist()])
            records[site] = mine._replace(owners=owners)
        one = StreamBatch(
            first,
            tuple(batch.facts[place - batch.first] for place in left),
            tuple(batch.statuses[place - batch.first] for place in left),
            records,
            batch.keep_entries(frozenset(places)),
            tuple(new[place] for place in batch.owners if place in new),
        )
        if left:
            kept.append(one)
            first += len(left)
    return EditStream.of(edits.editor, edits.state, edits.base, kept)
