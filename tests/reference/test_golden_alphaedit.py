"""AlphaEdit against stored outputs of a public implementation, where they are at hand.

Named deviation: the reference solves its non-symmetric d_in x d_in system in float32, which leaves
noise of full rank in its change (numerical rank above the number of facts); keys and targets do not
suffer from it. The projector is compared by its rank.
"""

from __future__ import annotations

import pytest

from corrigenda.engines.locate import pipeline
from corrigenda.engines.locate.contexts import Contexts
from corrigenda.engines.locate.target_search import find_targets
from corrigenda.lm.sites import Site
from corrigenda.methods.alphaedit.editor import AlphaEdit
from corrigenda.patch import WeightPatch
from corrigenda.state import State
from tests.support.golden import (
    PREFIXES,
    TOLERANCE,
    TWO_LEVEL,
    check_change,
    check_trace,
    common,
    facts,
    golden,
    model,
    needed,
    relative,
    slow,
    state,
    tensors,
)

pytestmark = needed

METHOD = "alphaedit"


def alphaedit() -> AlphaEdit:
    hparams = golden(METHOD)["hparams"]
    return AlphaEdit(
        layers=tuple(hparams["layers"]),
        weight=hparams["L2"],
        threshold=hparams["nullspace_threshold"],
        contexts=TWO_LEVEL,
        **common(METHOD),
    )


@pytest.fixture(scope="module")
def fitted() -> State:
    editor = alphaedit()
    return editor.with_projectors(state(), editor.sites(model()))


def test_the_projectors_have_the_stored_ranks(fitted: State) -> None:
    editor = alphaedit()
    ranks = [editor.projector(fitted, site).rank for site in editor.sites(model())]
    assert ranks == golden(METHOD)["P_rank"]


@pytest.mark.parametrize("tag", ["s0", slow("s3"), slow("b16")])
def test_targets(tag: str) -> None:
    wanted = facts(16) if tag == "b16" else [facts(8)[int(tag[1:])]]
    found = find_targets(
        model(),
        pipeline.rewrite_rows(model(), wanted, Contexts(PREFIXES)),
        layer=golden(METHOD)["hparams"]["layers"][-1],
        role="state",
        settings=alphaedit().search_settings(model()),
        names=[fact.label for fact in wanted],
    )
    assert relative(found.wanted, tensors(METHOD)[f"{tag}/z"]) <= TOLERANCE


@pytest.mark.parametrize("tag", ["s0", "b16", *(slow(f"s{i}") for i in range(1, 8))])
def test_alphaedit(tag: str, fitted: State) -> None:
    editor, batch = alphaedit(), tag == "b16"
    wanted = facts(16) if batch else [facts(8)[int(tag[1:])]]
    record = golden(METHOD)["batch"] if batch else golden(METHOD)["single"][int(tag[1:])]
    patch = editor.edit(model(), wanted, fitted).patch
    assert isinstance(patch, WeightPatch)
    traces, begin = record["loss_trace_total_nll_kl_wd"], 0
    for index, search in enumerate(patch.header.notes["search"]):
        length = len(search["losses"])
        check_trace(patch, index, traces[begin : begin + length])
        begin += length
    assert begin == len(traces)
    stored = tensors(METHOD)
    for layer in golden(METHOD)["hparams"]["layers"]:
        check_change(patch.changes[Site(layer)].to_dense(), METHOD, tag, layer)
    for one in editor.solve_layers(model(), wanted, fitted):
        assert relative(one.keys, stored[f"{tag}/ks_layer{one.site.layer}"]) <= TOLERANCE
