"""SimIE: of each edit of a sequence keep its effect on the edited sentences, and fit all together.

The ideal editor has one shift of a weight that does to the keys of every edited sentence what each
edit did to its own. Its ridge solution, brought up to date edit by edit, is recursive least
squares:

    P_t = P_{t-1} + K_t K_t^T,   W_t = W_{t-1} + (W^_t - W_{t-1}) K_t K_t^T P_t^-1,   P_0 = lambda I

with K_t the keys of all tokens of the edited sentences, and W^_t what the host made of W_{t-1}.

Reference: Guo et al. 2025, "Towards Lifelong Model Editing via Simulating Ideal Editor".
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from corrigenda.facts import Fact
from corrigenda.linalg.lowrank import LowRank
from corrigenda.linalg.protected import Protected
from corrigenda.lm.kv_cache import batches, pad_id
from corrigenda.lm.model import LanguageModel
from corrigenda.lm.sites import Site, Tokens, key
from corrigenda.lm.spans import encode_fact
from corrigenda.state import State


def sentence_keys(
    lm: LanguageModel, facts: Sequence[Fact], sites: Sequence[Site]
) -> dict[Site, Float[Tensor, "d_in tokens"]]:
    """Return the keys of all tokens of "<prompt> <target>" of each fact, on the model as it is."""
    rows = [encode_fact(lm, fact).ids for fact in facts]
    parts: dict[int, dict[Site, Tensor]] = {}
    for batch in batches(lm, [len(ids) for ids in rows], None):
        tokens = Tokens.pad([rows[index] for index in batch], pad_id(lm)).to(lm.device)
        found = lm.tap(tokens, [key(site) for site in sites])
        for place, index in enumerate(batch):
            length = len(rows[index])
            parts[index] = {site: found[key(site)][place, :length].double() for site in sites}
    return {site: torch.cat([parts[index][site] for index in range(len(rows))]).T for site in sites}


def simulate_ideal(
    changes: Mapping[Site, LowRank],
    keys: Mapping[Site, Float[Tensor, "d_in tokens"]],
    state: State,
    *,
    weight: float,
    prefix: str,
) -> tuple[dict[Site, LowRank], State]:
    """Return the changes that SimIE makes of a host's, and the state with the new keys.

    Args:
        changes: What the host adds to the weights as they are.
        keys: Of the edited sentences, at the same sites.
        state: Holds the keys of earlier edits of the sequence.
        weight: lambda, in squared units of keys; 0 is not possible.
        prefix: Where the state keeps them, such as "memit/ideal/".

    Raises:
        IllConditioned (CG203): the weight is lost to rounding against the keys.
    """
    corrected, tensors = {}, {}
    for site, change in changes.items():
        own = keys[site].to(change.right)
        earlier = _recall(state, f"{prefix}{site}/")
        if earlier is None:
            earlier = Protected.empty(len(own), weight, own.device)
        directions = earlier.with_weight(weight).solve(own)
        corrected[site] = LowRank(change.left, directions @ (own.T @ change.right))
        for name, tensor in earlier.with_weight(weight).with_keys(own).tensors().items():
            tensors[f"{prefix}{site}/{name}"] = tensor
    return corrected, state.updated(tensors)


def _recall(state: State, prefix: str) -> Protected | None:
    tensors = {
        name.removeprefix(prefix): tensor
        for name, tensor in state.tensors.items()
        if name.startswith(prefix)
    }
    return Protected.from_tensors(tensors) if tensors else None
