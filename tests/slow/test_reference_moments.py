"""Second moments of a whole corpus against those stored by the reference implementations."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from corrigenda.lm.model import LanguageModel
from corrigenda.lm.sites import Site
from corrigenda.statistics import Corpus, fit_moments

GOLDEN = Path(__file__).parents[3] / "shared" / "golden"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not (GOLDEN / "cov").is_dir(), reason="reference outputs are absent"),
]


@pytest.mark.parametrize("edited", [False, True])
def test_second_moments_agree_with_the_reference(edited: bool) -> None:
    """Layers 0 to 2 are those of the model; the stored layer 3 is that of an edited one.

    The reference gathers a layer when it first needs it, which for layer 3 was in the middle of its
    first MEMIT edit, with layers 1 and 2 written already.
    """
    lm = LanguageModel.load(str(GOLDEN / "model"))
    sites = [Site(3)] if edited else [Site(0), Site(1), Site(2)]
    if edited:
        factors = load_file(GOLDEN / "orig_memit" / "tensors.safetensors")
        for layer in (1, 2):
            name = f"s0/transformer.h.{layer}.mlp.c_proj.weight"
            change = (factors[f"{name}/U"] @ factors[f"{name}/V"]).T
            lm.write(Site(layer), lm.weight(Site(layer)) + change)
    texts = json.loads((GOLDEN / "cov" / "corpus.json").read_text(encoding="utf-8"))["train"]
    state = fit_moments(lm, sites, Corpus(texts, length=128, pack=False), keep=False)
    for site in sites:
        theirs = load_file(GOLDEN / "cov" / f"layer{site.layer}.safetensors")
        moment = state.moment(site)
        assert moment.count == int(theirs["count"])
        rows, columns = torch.triu_indices(moment.width, moment.width)
        ours, stored = moment.covariance()[rows, columns], theirs["cov_triu"].double()
        assert float((ours - stored).norm() / stored.norm()) < 1e-6
