"""Checks of a family of models, also of one that a user declares.

```python
from corrigenda.testing.family import check_family

def test_family(my_model, my_tokenizer):
    check_family(LanguageModel(my_model, my_tokenizer, family=MY_FAMILY))
```
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import linear

from corrigenda.errors import CorrigendaError
from corrigenda.lm.model import LanguageModel
from corrigenda.lm.naming import gather
from corrigenda.lm.sites import PARTS, Point, Site, Tokens, key, state, value, write
from corrigenda.lm.tail import Tail

_TOLERANCE = {torch.float64: 1e-6, torch.float32: 2e-5, torch.float16: 1e-2, torch.bfloat16: 5e-2}
_LENGTHS = (9, 6, 11)
_STARTS = (2, 5, 0)


def check_family(lm: LanguageModel) -> None:
    """Run every check of a family on one model, small enough to be run a few hundred times.

    - Weights: `write` puts back what `weight` gives, in the right orientation and nothing else.
    - Identities: W k + b is the value; each block adds its two writes; the head gives the logits.
    - Swapping in what was tapped changes nothing, and something else changes the logits.
    - Padding changes nothing, on either side.
    - The cached tail equals the whole model, in values and gradients.

    Raises:
        AssertionError: with everything that does not hold.
    """
    failures = [failure for check in _CHECKS for failure in check(lm)]
    assert not failures, f"{lm!r} does not hold:\n" + "\n".join(f"  {one}" for one in failures)


def sites_of(lm: LanguageModel) -> list[Site]:
    """Return every site of a model."""
    found: list[Site] = []
    for layer in range(lm.num_layers):
        for part in PARTS:
            count = lm.num_experts(layer) if part.startswith("mlp.") else 0
            for expert in range(count) if count else (None,):
                site = Site(layer, part, expert)
                try:
                    lm.weight(site)
                except CorrigendaError:
                    continue
                found.append(site)
    return found


def _weights(lm: LanguageModel) -> Iterator[str]:
    before = lm.digest()
    for site in sites_of(lm):
        old = lm.weight(site).clone()
        new = old + torch.arange(old.numel(), device=old.device).view_as(old).to(old.dtype) % 7 + 1
        others = {other: lm.weight(other).clone() for other in _neighbours(lm, site)}
        lm.write(site, new)
        if not torch.equal(lm.weight(site), new):
            yield f"{site}: what was written is not what is read"
        for other, weight in others.items():
            if not torch.equal(lm.weight(other), weight):
                yield f"{site}: writing it changes {other}"
        lm.write(site, old)
        if lm.digest() != before:
            yield f"{site}: writing back what was read is not bitwise identity"
            return


def _neighbours(lm: LanguageModel, site: Site) -> list[Site]:
    """Return other sites in the same module."""
    path = lm.module_path(site)
    return [one for one in sites_of(lm) if one != site and lm.module_path(one) == path]


def _identities(lm: LanguageModel) -> Iterator[str]:
    tokens, mask = _tokens(lm)
    layers = range(lm.num_layers)
    sites = sites_of(lm)
    points = [point for site in sites for point in (key(site), value(site))]
    points += [write(Site(layer, part)) for layer in layers for part in ("mlp.down", "attn.out")]
    points += [state(layer) for layer in range(-1, lm.num_layers)]
    seen = lm.tap(tokens, points)
    for site in sites:
        k, v = seen[key(site)][mask], seen[value(site)][mask]
        routed = ~v.isnan().any(1)
        if site.expert is None and not bool(routed.all()):
            yield f"{site}: values are NaN"
        expected = linear(k[routed], lm.weight(site), lm.bias(site))
        if not _close(expected, v[routed]):
            yield f"{site}: W k + b is not the value"
    for layer in layers:
        parts = [seen[write(Site(layer, part))][mask] for part in ("mlp.down", "attn.out")]
        if not _close(seen[state(layer - 1)][mask] + sum(parts), seen[state(layer)][mask]):
            yield f"block {layer}: the state after it is not the one before it plus its writes"
    top = seen[state(lm.num_layers - 1)][mask]
    if not _close(lm.head(top), lm.logits(tokens)[mask]):
        yield "the head on the last state does not give the logits"


def _swaps(lm: LanguageModel) -> Iterator[str]:
    tokens, mask = _tokens(lm)
    logits = lm.logits(tokens)[mask]
    points: list[Point] = [state(-1), state(0), write(Site(0)), write(Site(0, "attn.out"))]
    points += [role(site) for site in sites_of(lm) if site.layer == 0 for role in (key, value)]
    for point in points:
        found = lm.tap(tokens, [point])[point]
        with lm.swap({point: lambda _, found=found: found}):
            same = lm.logits(tokens)[mask]
        with lm.swap({point: lambda tensor: tensor + 1.0}):
            other = lm.logits(tokens)[mask]
        name = f"{point.site} {point.role}"
        if not _close(same, logits):
            yield f"{name}: swapping in what was tapped changes the logits"
        # A bias that is common to all keys cancels in the softmax.
        inert = point.site.part == "attn.k" and point.role == "value"
        if not inert and bool((~found[mask].isnan()).any()) and torch.equal(other, logits):
            yield f"{name}: swapping in something else changes nothing"


def _padding(lm: LanguageModel) -> Iterator[str]:
    rows = _rows(lm)
    alone = [lm.logits(Tokens.pad([row], 0))[0] for row in rows]
    for side in ("right", "left"):
        tokens = Tokens.pad(rows, 0, side=side)
        logits = lm.logits(tokens)
        for row, one, mask in zip(logits, alone, tokens.mask.bool(), strict=True):
            if not _close(row[mask.to(row.device)], one):
                yield f"padding on the {side} changes the logits"
                break


def _tails(lm: LanguageModel) -> Iterator[str]:
    tokens, _ = _tokens(lm)
    starts = torch.tensor(_STARTS, device=lm.device)
    ends = tokens.lengths.to(lm.device) - 1
    at = torch.stack([starts, ends], dim=1)
    rows = torch.arange(len(starts), device=lm.device)
    last = state(lm.num_layers - 1)
    for layer in sorted({0, lm.num_layers // 2, lm.num_layers - 1}):
        points: dict[Literal["state", "value"], Point] = {"state": state(layer)}
        if not lm.num_experts(layer):
            points["value"] = value(Site(layer))
        for role, point in points.items():
            tail = Tail.build(lm, tokens, layer, starts, role=role)
            delta = _noise(tail.entry).requires_grad_()
            hidden = tail.run(delta, at)
            weights = _noise(hidden)
            (back,) = torch.autograd.grad((hidden * weights).sum(), delta)
            seen: dict[str, Tensor] = {}
            with lm.swap({point: _adding(delta, rows, starts)}), lm.swap({last: _keeping(seen)}):
                lm.logits(tokens)
            whole = gather(seen["kept"], at)
            (expected,) = torch.autograd.grad((whole * weights).sum(), delta)
            if not _close(hidden, whole):
                yield f"tail after layer {layer} ({role}): not what the whole model gives"
            if not _close(back, expected):
                yield f"tail after layer {layer} ({role}): not the whole model's gradient"


def _adding(delta: Tensor, rows: Tensor, starts: Tensor) -> Callable[[Tensor], Tensor]:
    def add(tensor: Tensor) -> Tensor:
        return tensor.index_put((rows, starts), delta, accumulate=True)

    return add


def _keeping(seen: dict[str, Tensor]) -> Callable[[Tensor], Tensor]:
    def keep(tensor: Tensor) -> Tensor:
        seen["kept"] = tensor
        return tensor

    return keep


def _rows(lm: LanguageModel) -> list[list[int]]:
    size = int(lm.model.config.get_text_config().vocab_size)
    draw = torch.Generator().manual_seed(0)
    return [torch.randint(size, (length,), generator=draw).tolist() for length in _LENGTHS]


def _tokens(lm: LanguageModel) -> tuple[Tokens, Tensor]:
    tokens = Tokens.pad(_rows(lm), 0).to(lm.device)
    return tokens, tokens.mask.bool()


def _noise(like: Tensor) -> Tensor:
    draw = torch.Generator().manual_seed(1)
    return torch.randn(like.shape, generator=draw, dtype=torch.float64).to(like)


def _close(found: Tensor, expected: Tensor) -> bool:
    difference = (found - expected).double().norm()
    return bool(difference <= _TOLERANCE[expected.dtype] * expected.double().norm())


_CHECKS = (_weights, _identities, _swaps, _padding, _tails)
