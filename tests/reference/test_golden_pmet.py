"""PMET against stored outputs of a public implementation, where they are at hand.

The reference ran with right padding: as shipped it pads left and reads wrong tokens. Named
deviations: none in keys, targets and changes.
"""

from __future__ import annotations

import pytest

from corrigenda.engines.locate import pipeline
from corrigenda.engines.locate.contexts import Contexts
from corrigenda.engines.locate.target_search import find_targets
from corrigenda.lm.sites import Site
from corrigenda.methods.pmet.editor import Pmet
from corrigenda.patch import WeightPatch
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

METHOD = "pmet_right"


def pmet() -> Pmet:
    hparams = golden(METHOD)["hparams"]
    return Pmet(
        layers=tuple(hparams["layers"]),
        weight=hparams["mom2_update_weight"],
        contexts=TWO_LEVEL,
        **common(METHOD),
    )


@pytest.mark.parametrize("tag", ["s0", slow("s3"), slow("b16")])
def test_both_targets(tag: str) -> None:
    wanted = facts(16) if tag == "b16" else [facts(8)[int(tag[1:])]]
    found = find_targets(
        model(),
        pipeline.rewrite_rows(model(), wanted, Contexts(PREFIXES)),
        layer=golden(METHOD)["hparams"]["layers"][-1],
        role="components",
        settings=pmet().search_settings(model()),
        names=[fact.label for fact in wanted],
    )
    attention, mlp = found.wanted.chunk(2, dim=1)
    assert relative(attention, tensors(METHOD)[f"{tag}/z_attn"]) <= TOLERANCE
    assert relative(mlp, tensors(METHOD)[f"{tag}/z_mlp"]) <= TOLERANCE


@pytest.mark.parametrize("tag", ["s0", "b16", *(slow(f"s{i}") for i in range(1, 8))])
def test_pmet(tag: str) -> None:
    editor, batch = pmet(), tag == "b16"
    wanted = facts(16) if batch else [facts(8)[int(tag[1:])]]
    record = golden(METHOD)["batch"] if batch else golden(METHOD)["single"][int(tag[1:])]
    patch = editor.edit(model(), wanted, state()).patch
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
    for one in editor.solve_layers(model(), wanted, state()):
        assert relative(one.keys, stored[f"{tag}/ks_layer{one.site.layer}"]) <= TOLERANCE
