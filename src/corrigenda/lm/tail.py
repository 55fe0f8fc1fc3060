"""The last blocks on the last positions: what a vector added at one place changes, and no more.

A vector that enters at one position of one block, or one at each position from there on, changes
nothing at earlier positions, nor in earlier blocks. So the blocks up to there run once, the keys
and values of earlier positions in the later blocks are constants, and each pass runs the model's
own later blocks on the positions from there on. Position embeddings and attention masks (sliding
windows included) are those that the model itself hands to its blocks; they are gathered once.

Results equal those of the whole model up to rounding. In float64 that is about 1e-12, except where
a family computes its attention in float32 whatever its dtype (GPT-J, eager attention as in Gemma
2), where it is about 1e-7.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from corrigenda.lm.footprint import room_of
from corrigenda.lm.hooks import TensorMap
from corrigenda.lm.model import LanguageModel
from corrigenda.lm.model_hooks import ModelHook, place_hooks
from corrigenda.lm.naming import gather
from corrigenda.lm.passes import PassStop
from corrigenda.lm.placement import SharedTensors, call_module
from corrigenda.lm.sites import Point, Site, Tokens, state, value, write

_CACHE_NAMES = ("past_key_values", "layer_past")
_OWN_NAMES = ("hidden_states", "attention_mask", *_CACHE_NAMES)
_MEMORY_BYTES = 2 << 30


class _Recorder:
    """Takes the place of a cache of keys and values while they are recorded."""

    def __init__(self, stop: PassStop | None) -> None:
        self._stop = stop
        self.recorded: tuple[Tensor, Tensor] | None = None

    def update(self, keys: Tensor, values: Tensor, *_: object, **__: object) -> object:
        self.recorded = keys, values
        if self._stop is not None:
            self._stop()
        return keys, values


class _Constants(NamedTuple):
    """Takes the place of a cache: keys and values of earlier positions, which never change."""

    keys: Float[Tensor, "batch head pos d_head"]
    values: Float[Tensor, "batch head pos d_head"]

    def update(self, keys: Tensor, values: Tensor, *_: object, **__: object) -> object:
        return torch.cat([self.keys, keys], dim=2), torch.cat([self.values, values], dim=2)


class _Step(NamedTuple):
    """One later block and the arguments of its call, hidden states apart."""

    block: nn.Module
    cache_name: str
    constants: _Constants
    mask: Float[Tensor, "batch head pos keys"]
    along: dict[str, Any]  # tensors, or tuples of them, with positions as their second axis
    fixed: dict[str, Any]


class _Live(NamedTuple):
    """Constants of the rows and positions that run now."""

    rows: Int[Tensor, " rows"] | None
    at: Int[Tensor, "rows k"]
    offsets: Int[Tensor, "rows k"]
    base: Float[Tensor, "rows pos d_model"]
    entry: Float[Tensor, "rows pos d_model"]
    hidden: Float[Tensor, "rows pos d_model"]
    steps: list[_Step]


@dataclass(eq=False)
class Tail:
    """The blocks after one, for a ragged batch, from each row's start position on.

    Attributes:
        starts: Where the delta enters.
    """

    starts: Int[Tensor, " batch"]
    _ends: Int[Tensor, " batch"]
    _norm: nn.Module | None
    _entry: Float[Tensor, "batch pos d_model"]
    _base: Float[Tensor, "batch pos d_model"]
    _hidden: Float[Tensor, "batch pos d_model"]
    _prefix: int
    _steps: list[_Step]
    _live: _Live | None = None

    @classmethod
    @torch.no_grad()
    def build(
        cls,
        lm: LanguageModel,
        tokens: Tokens,
        layer: int,
        starts: Int[Tensor, " batch"],
        *,
        role: Literal["state", "value"],
    ) -> Tail:
        """Run the model once and keep what does not depend on a delta.

        Args:
            lm: The model as it is now; later changes of it must not touch it while this is used.
            tokens: The batch. Rows sorted by length and start waste least.
            layer: The block at which a delta enters.
            starts: The position in each row at which it enters; counted in columns of the batch.
            role: "state" adds to the output of the block, "value" to that of its down projection.

        Raises:
            UnknownSite (CG303): no such layer, or "value" at a mixture of experts, which has no one
                down projection.
            ValueError: a start outside its row, or attention that takes no mask (use "sdpa" or
                "eager").
        """
        tokens = _add_padding(tokens).to(lm.device)
        starts = starts.to(lm.device)
        columns = torch.arange(tokens.ids.shape[1], device=lm.device)
        ends = (tokens.mask.long() * (columns + 1)).amax(1)
        if bool(((starts < 0) | (starts >= ends)).any()):
            raise ValueError("each start must be the position of a token in its row")
        prefix = max(1, int(starts.max()))
        width = int((ends - starts).max())
        window = starts[:, None] + torch.arange(width, device=lm.device)
        view = _View(window.clamp_max(len(columns) - 1), window < ends[:, None], starts, prefix)

        site = Site(layer)
        norm = lm.family.mlp_norm if role == "value" else None
        points = [state(layer)]
        points += [value(site)] if role == "value" else []
        points += [] if norm is None else [write(site)]
        later = list(lm.blocks[layer + 1 :])
        seen: dict[Point, Tensor] = {} if later else lm.run_until(tokens, points)
        stop = PassStop()
        calls = [_Call(block, prefix, stop if block is later[-1] else None) for block in later]
        if later:
            recorders = {point: _recorder(seen, point) for point in points}

            def place(stack: ExitStack) -> None:
                leave = ModelHook(lambda *_: lm.prompt_ends.leave_pass())
                stack.callback(later[0].register_forward_pre_hook(leave).remove)
                for call in calls:
                    hook = ModelHook(call)
                    handle = call.block.register_forward_pre_hook(hook, with_kwargs=True)
                    stack.callback(handle.remove)

            with lm.swap(recorders), place_hooks(place), stop:
                lm.logits(tokens)
        base = entry = hidden = gather(seen[state(layer)], view.columns)
        if role == "value":
            entry = gather(seen[value(site)], view.columns)
        if norm is not None:
            base = hidden - gather(seen[write(site)], view.columns)
        module = None if norm is None else lm.blocks[layer].get_submodule(norm)
        shared = SharedTensors()
        steps = [call.step(view, shared, hidden.dtype) for call in calls]
        return cls(starts, ends, module, entry, base, hidden, prefix, steps)

    @property
    def entry(self) -> Float[Tensor, "batch d_model"]:
        """The vector at each row's start to which a delta is added.

        It is the residual stream after the block ("state"), or the output of its down projection
        ("value").
        """
        return self._entry[:, 0]

    @property
    def width(self) -> int:
        """Most positions from a row's start to its last token."""
        return self._hidden.shape[1]

    def later(self, blocks: int, hidden: Float[Tensor, "batch pos d_model"]) -> Tail:
        """Return a tail that enters some blocks later, without a pass; see `tail_by_layer`."""
        states = {"_entry": hidden, "_base": hidden, "_hidden": hidden}
        return replace(self, **states, _norm=None, _steps=self._steps[blocks:], _live=None)

    def run(
        self,
        delta: Float[Tensor, "rows d_model"] | Float[Tensor, "rows width d_model"],
        at: Int[Tensor, "rows k"],
        rows: Int[Tensor, " rows"] | None = None,
    ) -> Float[Tensor, "rows k d_model"]:
        """Return hidden states, before the final norm, with a delta added from each row's start on.

        Only the positions up to the last of `at` run. Constants of the chosen rows are kept until
        other rows or positions are asked for.

        Args:
            delta: What to add, at each row's start or, with a third axis, at each of the positions
                from there on. Gradients flow to it and to nothing else. It may have more digits
                than the model: the sum is rounded to the model's dtype.
            at: Positions to read, columns of the batch, at or after each row's start.
            rows: Which rows of the batch `delta` and `at` are for; by default all, in order.

        Raises:
            ValueError: a position before its row's start or after its last token.
        """
        live = self._select(at, rows)
        if delta.dim() == 2:
            delta = delta[:, None]
        delta = delta[:, : live.hidden.shape[1]].to(live.hidden.device)
        width = delta.shape[1]
        entry, base = live.entry[:, :width], live.base[:, :width]
        entered = (entry + delta).to(entry.dtype)
        if self._norm is not None:
            entered = base + call_module(self._norm, entered)
        elif live.base is not live.entry:
            entered = (base + delta).to(base.dtype)
        hidden = torch.cat([entered, live.hidden[:, width:]], dim=1)
        for step in live.steps:
            output = step.block(
                hidden,
                attention_mask=step.mask,
                **{step.cache_name: step.constants},
                **step.along,
                **step.fixed,
            )
            hidden = output[0] if isinstance(output, tuple) else output
        return gather(hidden, live.offsets).to(self._hidden.device)

    @torch.no_grad()
    def _select(self, at: Int[Tensor, "rows k"], rows: Int[Tensor, " rows"] | None) -> _Live:
        live = self._live
        if live is not None and _same(live.rows, rows) and _same(live.at, at):
            return live
        starts, ends = (one if rows is None else one[rows] for one in (self.starts, self._ends))
        at = at.to(starts.device)
        offsets = at - starts[:, None]
        if bool(((offsets < 0) | (at >= ends[:, None])).any()):
            raise ValueError("positions must lie between a row's start and its last token")
        length = int(offsets.max()) + 1
        prefix = max(1, int(starts.max()))
        chosen: dict[int, Tensor] = {}

        def pick(tensor: Tensor) -> Tensor:
            """Pick rows and columns of a constant; one that several blocks share stays shared."""
            if id(tensor) not in chosen:
                part = tensor[:, :length]
                chosen[id(tensor)] = part if rows is None else part[rows.to(part.device)]
            return chosen[id(tensor)]

        def pick_mask(mask: Tensor) -> Tensor:
            if id(mask) not in chosen:
                part = mask if rows is None else mask[rows.to(mask.device)]
                part = part[:, :, :length]
                new = part[..., self._prefix : self._prefix + length]
                chosen[id(mask)] = torch.cat([part[..., :prefix], new], dim=-1)
            return chosen[id(mask)]

        steps = [
            step._replace(
                constants=_Constants(
                    *(
                        (tensor if rows is None else tensor[rows.to(tensor.device)])[:, :, :prefix]
                        for tensor in step.constants
                    )
                ),
                mask=pick_mask(step.mask),
                along={
                    name: tuple(map(pick, found)) if isinstance(found, tuple) else pick(found)
                    for name, found in step.along.items()
                },
            )
            for step in self._steps
        ]
        base, entry, hidden = map(pick, (self._base, self._entry, self._hidden))
        self._live = _Live(rows, at, offsets, base, entry, hidden, steps)
        return self._live


class _View(NamedTuple):
    """Which columns of the batch the tail runs on."""

    columns: Int[Tensor, "batch pos"]  # clamped to the batch
    valid: Tensor  # (batch, pos) bool: whether there is a token of the row
    starts: Int[Tensor, " batch"]
    prefix: int

    def along(self, tensor: Tensor) -> Tensor:
        """Pick positions, the second axis."""
        tensor = tensor.to(self.columns.device)
        return gather(tensor.expand(len(self.columns), *tensor.shape[1:]), self.columns)

    def mask(self, mask: Tensor, dtype: torch.dtype) -> Float[Tensor, "batch head pos keys"]:
        """Return an additive mask from each position of the tail to the prefix and to the tail.

        Every position sees itself, so that rows of padding stay finite.
        """
        lowest = torch.finfo(dtype).min
        mask = mask.to(self.columns.device)
        if mask.dtype == torch.bool:
            mask = torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill_(
                ~mask, lowest
            )
        batch, width = self.columns.shape
        mask = mask.to(dtype).expand(batch, *mask.shape[1:])
        heads, keys = mask.shape[1], mask.shape[3]
        queries = mask.gather(2, self.columns[:, None, :, None].expand(-1, heads, -1, keys))
        new = queries.gather(3, self.columns[:, None, None, :].expand(-1, heads, width, -1))
        new = new.masked_fill(~self.valid[:, None, None, :], lowest)
        old = queries[..., : self.prefix]
        later = torch.arange(self.prefix, device=mask.device) >= self.starts[:, None]
        old = old.masked_fill(later[:, None, None, :], lowest)
        new.diagonal(dim1=2, dim2=3).zero_()
        return torch.cat([old, new], dim=-1)


class _Call:
    """Records the arguments of a later block, and lets it run on the prefix only."""

    def __init__(self, block: nn.Module, prefix: int, stop: PassStop | None) -> None:
        self.block, self._prefix = block, prefix
        self._signature = inspect.signature(block.forward)
        self._recorder = _Recorder(stop)
        self._given: dict[str, Any] = {}
        self._columns = 0

    def __call__(
        self, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        bound = self._signature.bind(*args, **kwargs)
        given: dict[str, Any] = {}
        for name, found in bound.arguments.items():
            if self._signature.parameters[name].kind is inspect.Parameter.VAR_KEYWORD:
                given |= found
            else:
                given[name] = found
        hidden = given.pop("hidden_states")
        mask = given.get("attention_mask")
        if not isinstance(mask, Tensor) or mask.dim() != 4:
            raise ValueError(
                "the attention of this model takes no explicit mask; load it with "
                'attn_implementation "sdpa" or "eager"'
            )
        if not self._given:
            self._columns = mask.shape[-1]
            self._given = given
        short = {
            name: _map_tensors(found, self._is_along, lambda one: one[:, : self._prefix])
            for name, found in given.items()
        }
        short["attention_mask"] = mask[:, :, : self._prefix, : self._prefix]
        short[self._cache_name] = self._recorder
        return (hidden[:, : self._prefix],), short

    @property
    def _cache_name(self) -> str:
        names = [name for name in _CACHE_NAMES if name in self._signature.parameters]
        assert names, f"{type(self.block).__name__} takes no cache of keys and values"
        return names[0]

    def _is_along(self, found: object) -> bool:
        return (
            isinstance(found, Tensor) and found.dim() in (2, 3) and found.shape[1] == self._columns
        )

    def step(self, view: _View, shared: SharedTensors, dtype: torch.dtype) -> _Step:
        """Return the call of the block in the tail, its constants on the device of the block.

        Blocks of one device share what the model shares.
        """
        assert self._recorder.recorded is not None
        constants = _Constants(*self._recorder.recorded)
        device = constants.keys.device
        along: dict[str, Any] = {}
        fixed: dict[str, Any] = {}
        for name, found in self._given.items():
            if name in _OWN_NAMES:
                continue
            one = found[0] if isinstance(found, tuple) and found else found
            if not self._is_along(one):
                if isinstance(one, Tensor):
                    raise ValueError(
                        f"{type(self.block).__name__} is called with {name}, a tensor that cannot "
                        "be cut to positions; the cached tail pass does not work for this model"
                    )
                fixed[name] = found
                continue
            along[name] = _map_tensors(
                found, self._is_along, lambda one: shared.make(one, device, view.along)
            )
        mask = self._given["attention_mask"]
        mask = shared.make(mask, device, lambda mask: view.mask(mask, dtype))
        return _Step(self.block, self._cache_name, constants, mask, along, fixed)


def _recorder(seen: dict[Point, Tensor], point: Point) -> TensorMap:
    def record(tensor: Tensor) -> Tensor:
        seen[point] = tensor
        return tensor

    return record


def memory_budget(lm: LanguageModel) -> int:
    """Return how many bytes constants may take: 2 GiB, or a third of a GPU's free memory."""
    free = room_of(lm).free
    return _MEMORY_BYTES if free is None else max(_MEMORY_BYTES, free // 3)


def _map_tensors(
    found: object, fits: Callable[[object], bool], function: Callable[[Tensor], Tensor]
) -> object:
    """Apply a function to a tensor that fits, or to those in a tuple; leave the rest."""
    if isinstance(found, tuple):
        return tuple(_map_tensors(one, fits, function) for one in found)
    return function(found) if isinstance(found, Tensor) and fits(found) else found


def _add_padding(tokens: Tokens) -> Tokens:
    """Make sure there is padding: without any, models may leave the mask out."""
    if not bool(tokens.mask.all()):
        return tokens
    ids, mask = (torch.cat([part, torch.zeros_like(part[:, :1])], dim=1) for part in tokens)
    return Tokens(ids, mask)


def _same(first: Tensor | None, second: Tensor | None) -> bool:
    if first is None or second is None:
        return first is second
    return first is second or torch.equal(first, second)
