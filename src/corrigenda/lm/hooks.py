"""Hooks that read or replace tensors at points of the forward pass, removed when left."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from threading import get_ident
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.functional import linear
from torch.utils.hooks import RemovableHandle

from corrigenda.errors import UnknownSite
from corrigenda.lm.compiled import require_eager
from corrigenda.lm.model_hooks import ModelHook, place_hooks
from corrigenda.lm.passes import PassStop, WatchedMap, require_fired
from corrigenda.lm.placement import run_on
from corrigenda.lm.sites import Point, Site, key, value
from corrigenda.lm.storage import Place, Storage

if TYPE_CHECKING:
    from corrigenda.lm.families import Family

TensorMap = Callable[[Float[Tensor, "batch pos d"]], Float[Tensor, "batch pos d"]]
"""Gets a tensor of the pass; what it returns takes its place (the same object: nothing changes)."""

Term = Callable[
    [Float[Tensor, "batch pos d_in"], Float[Tensor, "batch pos d_out"]],
    Float[Tensor, "batch pos d_out"] | None,
]
"""From the input and the output of a weight, what is added to the output; None adds nothing."""

_HIDDEN = "hidden_states"


class Hooks:
    """Places hooks in one model."""

    def __init__(self, storage: Storage, family: Family) -> None:
        """Prepare for a model; nothing is attached yet."""
        self._storage, self._family = storage, family
        self._experts: dict[int, list[tuple[Site, str, TensorMap]]] = {}
        self._expert_handles: dict[int, RemovableHandle] = {}
        self._shapes: dict[int, torch.Size] = {}
        self._watched: list[WatchedMap] = []

    def check(self, point: Point) -> None:
        """Refuse points that the model does not have.

        Raises:
            UnknownSite (CG303): no such layer, part or expert, or a role the part does not have.
        """
        site, role = point
        if role == "state":
            self._storage.require_layer(site.layer, lowest=-1)
        elif role == "write":
            self._storage.require_layer(site.layer)
            if site.part not in ("mlp.down", "attn.out") or site.expert is not None:
                raise UnknownSite(
                    f"{site.part} does not write to the residual stream by itself.",
                    where=f"site {site}",
                    hint="The whole feed-forward block is mlp.down, the attention is attn.out.",
                )
        else:
            self._storage.find(site)

    @contextmanager
    def attached(
        self, transforms: Mapping[Point, TensorMap], *, home: torch.device | None = None
    ) -> Generator[None]:
        """Call the transforms during every pass, until left; inner contexts come after outer ones.

        Args:
            transforms: By point.
            home: Where transforms get their tensors; what they return goes back to the device of
                the block. By default they work on the latter.

        Raises:
            UnknownSite (CG303): see `check`; nothing is attached then.
            CompiledModel (CG308): the model, or a block at a point, runs as compiled code.
        """
        for point in transforms:
            self.check(point)
        layers = [point.site.layer for point in transforms]
        require_eager(self._storage.model, self._family.blocks, layers)
        watched = [
            WatchedMap(point, transform if home is None else run_on(home, transform))
            for point, transform in transforms.items()
        ]

        def place(stack: ExitStack) -> None:
            if self._family.flat_mlp or self._family.experts:
                inside = [point for point in transforms if point.role != "state"]
                for layer in {point.site.layer for point in inside}:
                    self._remember_shape(stack, layer)
            for one in watched:
                self._attach(stack, one.point, one)
            self._watched += watched
            stack.callback(self._forget, watched)

        with place_hooks(place):
            yield

    def _forget(self, watched: Sequence[WatchedMap]) -> None:
        self._watched = [one for one in self._watched if one not in watched]

    @contextmanager
    def require_fired(self) -> Generator[None]:
        """Refuse a pass in which a hook did not fire that was there before it began.

        Raises:
            CompiledModel (CG308): a hook was passed by.
        """
        silent = [one for one in self._watched if not one.fired and one.point.site.expert is None]
        yield
        require_fired([one.point for one in silent if not one.fired])

    def run_until(
        self,
        points: Sequence[Point],
        run: Callable[[], object],
        keep: TensorMap | None = None,
        home: torch.device | None = None,
    ) -> dict[Point, Tensor]:
        """Run a pass until all points are reached, and return their tensors.

        Passes that other threads run meanwhile are left alone.

        Args:
            points: At least one.
            run: Runs the pass.
            keep: What to keep of each tensor; by default all of it.
            home: Where the tensors go; by default each stays on the device of its block.

        Raises:
            UnknownSite (CG303): see `check`.
        """
        found: dict[Point, Tensor] = {}
        wanted = dict.fromkeys(points)
        stop, thread = PassStop(), get_ident()

        def recorder(point: Point) -> TensorMap:
            def record(tensor: Tensor) -> Tensor:
                if get_ident() == thread:
                    found[point] = tensor if keep is None else keep(tensor)
                    if len(found) == len(wanted):
                        stop()
                return tensor

            return record

        recorders = {point: recorder(point) for point in wanted}
        with self.attached(recorders, home=home), stop:
            run()
        require_fired([point for point in wanted if point not in found])
        return {point: found[point] for point in wanted}

    def _attach(self, stack: ExitStack, point: Point, transform: TensorMap) -> None:
        site, role = point
        if role == "state":
            if site.layer < 0:
                _hook_input(stack, self._storage.blocks[0], transform)
            else:
                _hook_output(stack, self._storage.blocks[site.layer], transform)
        elif role == "write":
            unflat = self._unflatten(site.layer, transform)
            _hook_output(stack, self._writer(site), unflat)
        elif site.expert is not None:
            self._hook_expert(stack, site, role, transform)
        else:
            place = self._storage.find(site)
            unflat = self._unflatten(site.layer, transform)
            if place.whole:
                (_hook_input if role == "key" else _hook_output)(stack, place.module, unflat)
            elif role == "key":
                self._hook_fused_input(stack, site, place, unflat)
            else:
                _hook_output(stack, place.module, _map_rows(unflat, place))

    def _writer(self, site: Site) -> nn.Module:
        """Return the last module of a sub-block before the residual stream."""
        block = self._storage.blocks[site.layer]
        is_mlp = site.part == "mlp.down"
        norm = self._family.mlp_norm if is_mlp else self._family.attn_norm
        if norm is not None:
            return block.get_submodule(norm)
        if is_mlp and self._storage.experts(site.layer) is not None:
            assert self._family.experts is not None
            return block.get_submodule(self._family.experts.rpartition(".")[0])
        return self._storage.find(site).module

    def _remember_shape(self, stack: ExitStack, layer: int) -> None:
        def remember(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            self._shapes[layer] = (args[0] if args else kwargs[_HIDDEN]).shape[:2]

        block = self._storage.blocks[layer]
        handle = block.register_forward_pre_hook(ModelHook(remember), with_kwargs=True)
        stack.callback(handle.remove)

    def _unflatten(self, layer: int, transform: TensorMap) -> TensorMap:
        """Give (batch pos d) to a transform where the block works on (batch*pos d)."""

        def apply(tensor: Tensor) -> Tensor:
            if tensor.dim() == 3:
                return transform(tensor)
            whole = tensor.unflatten(0, self._shapes[layer])
            new = transform(whole)
            return tensor if new is whole else new.flatten(0, 1)

        return apply

    def _hook_fused_input(
        self, stack: ExitStack, site: Site, place: Place, transform: TensorMap
    ) -> None:
        """Change the input of one of several parts that share it: its outputs are computed anew."""

        def hook(_: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor | None:
            new = transform(args[0])
            if new is args[0]:
                return None
            output = output.clone()
            output[..., place.rows] = linear(
                new, self._storage.values(site), self._storage.bias(site)
            )
            return output

        stack.callback(place.module.register_forward_hook(ModelHook(hook)).remove)

    def _hook_expert(self, stack: ExitStack, site: Site, role: str, transform: TensorMap) -> None:
        experts = self._storage.experts(site.layer)
        assert experts is not None
        entries = self._experts.setdefault(site.layer, [])
        entry = (site, role, transform)
        if not entries:
            hook = _ExpertHook(self._storage, entries, self._shapes, site.layer)
            self._expert_handles[site.layer] = experts.register_forward_hook(ModelHook(hook))
        entries.append(entry)
        stack.callback(self._release_expert, site.layer, entry)

    def _release_expert(self, layer: int, entry: tuple[Site, str, TensorMap]) -> None:
        """Remove a transform, and with the last one the hook: contexts are left in any order."""
        entries = self._experts[layer]
        entries.remove(entry)
        if not entries:
            self._expert_handles.pop(layer).remove()
            del self._experts[layer]


class _ExpertHook:
    """Recomputes single experts of a fused block for the tokens routed to them."""

    def __init__(
        self,
        storage: Storage,
        entries: list[tuple[Site, str, TensorMap]],
        shapes: Mapping[int, torch.Size],
        layer: int,
    ) -> None:
        self._storage, self._entries, self._shapes, self._layer = storage, entries, shapes, layer

    def __call__(self, module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
        hidden, chosen, weights = args
        added = output
        for expert in dict.fromkeys(site.expert for site, _, _ in self._entries):
            rows, choice = (chosen == expert).nonzero(as_tuple=True)
            x = hidden[rows]
            after = self._run(module, expert, x, rows, len(hidden))
            if after is not None:
                before = self._run(module, expert, x, None)
                assert before is not None
                change = (after - before) * weights[rows, choice, None]
                added = added.index_add(0, rows, change.to(added.dtype))
        return added

    def _run(
        self, module: nn.Module, expert: int | None, x: Tensor, rows: Tensor | None, total: int = 0
    ) -> Tensor | None:
        """Run one expert; with transforms (`rows` given), return None if they changed nothing."""
        changed = rows is None

        def through(part: str, role: str, tensor: Tensor) -> Tensor:
            nonlocal changed
            if rows is None:
                return tensor
            for site, its_role, transform in self._entries:
                if (site.part, site.expert, its_role) == (part, expert, role):
                    wide = tensor.new_full((total, tensor.shape[-1]), torch.nan)
                    wide = wide.index_copy(0, rows, tensor).unflatten(0, self._shapes[self._layer])
                    new = transform(wide)
                    if new is not wide:
                        changed = True
                        tensor = new.flatten(0, 1)[rows]
            return tensor

        def layer(part: str, tensor: Tensor) -> Tensor:
            weight = self._storage.weight(Site(self._layer, part, expert))
            return through(part, "value", linear(through(part, "key", tensor), weight))

        gate, up = layer("mlp.gate", x), layer("mlp.up", x)
        out = layer("mlp.down", module.get_submodule("act_fn")(gate) * up)
        return out if changed else None


def _map_rows(transform: TensorMap, place: Place) -> TensorMap:
    def apply(output: Tensor) -> Tensor:
        part = output[..., place.rows]
        new = transform(part)
        if new is part:
            return output
        output = output.clone()
        output[..., place.rows] = new
        return output

    return apply


def _hook_input(stack: ExitStack, module: nn.Module, transform: TensorMap) -> None:
    def hook(
        _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        old = args[0] if args else kwargs[_HIDDEN]
        new = transform(old)
        if new is old:
            return None
        if args:
            return (new, *args[1:]), kwargs
        return args, {**kwargs, _HIDDEN: new}

    stack.callback(module.register_forward_pre_hook(ModelHook(hook), with_kwargs=True).remove)


def _hook_output(stack: ExitStack, module: nn.Module, transform: TensorMap) -> None:
    def hook(_: nn.Module, __: tuple[Any, ...], output: Tensor | tuple[Tensor, ...]) -> object:
        old = output[0] if isinstance(output, tuple) else output
        new = transform(old)
        if new is old:
            return None
        return (new, *output[1:]) if isinstance(output, tuple) else new

    stack.callback(module.register_forward_hook(ModelHook(hook)).remove)


def additions(
    terms: Mapping[Site, Term], inputs: Mapping[Site, Point] | None = None
) -> dict[Point, TensorMap]:
    """Return transforms that remember a weight's input and add a term to its output.

    A term gets the input on the device of the output and at least in float32. The sum is taken in
    the wider dtype of output and term, and rounded to that of the output.

    Args:
        terms: By site.
        inputs: Points that terms read in place of the input of their own weight.
    """
    transforms: dict[Point, TensorMap] = {}
    for site, term in terms.items():
        remembered: dict[int, Tensor] = {}  # by thread: several may run the model
        read = (inputs or {}).get(site, key(site))
        assert read not in transforms, "each term reads a point of its own"
        transforms |= {read: _remember(remembered), value(site): _add(remembered, term)}
    return transforms


def _remember(remembered: dict[int, Tensor]) -> TensorMap:
    def remember(tensor: Tensor) -> Tensor:
        remembered[get_ident()] = tensor
        return tensor

    return remember


def _add(remembered: dict[int, Tensor], term: Term) -> TensorMap:
    def add(output: Tensor) -> Tensor:
        x = remembered.pop(get_ident())
        wide = torch.promote_types(output.dtype, torch.float32)
        added = term(x.to(output.device, wide), output)
        return output if added is None else (output + added).to(output.dtype)

    return add


class Copies:
    """Tensors of a term, copied once to each device and dtype at which they are needed.

    Tensors that are being trained are moved anew each time, so that gradients reach them.

    Example:
        >>> (half,) = Copies([torch.ones(2)]).like(torch.zeros(1, dtype=torch.bfloat16))
        >>> half.dtype
        torch.bfloat16
    """

    def __init__(self, tensors: Sequence[Tensor]) -> None:
        """Args: tensors: Those that are copied; integers keep their dtype."""
        self._tensors = tuple(tensors)
        self._trained = any(one.requires_grad for one in tensors)
        self._copies: dict[tuple[torch.device, torch.dtype], tuple[Tensor, ...]] = {}

    def like(self, x: Tensor) -> tuple[Tensor, ...]:
        """Return the tensors on the device and in the dtype of `x`."""
        place = x.device, x.dtype
        if self._trained:
            return self._move(*place)
        if place not in self._copies:
            # A copy outlives the pass that needs it first.
            with torch.inference_mode(False):
                self._copies[place] = self._move(*place)
        return self._copies[place]

    def _move(self, device: torch.device, dtype: torch.dtype) -> tuple[Tensor, ...]:
        return tuple(
            one.to(device, dtype if one.is_floating_point() else one.dtype) for one in self._tensors
        )


def scatter_rows(
    term: Float[Tensor, " *some"], rows: Int[Tensor, " rows"], size: int, dim: int = 0
) -> Float[Tensor, " *all"]:
    """Return a term that is added at some rows only; to the others it adds -0.0, which is exact.

    Unlike 0.0, -0.0 leaves every number as it is, to the sign of zero.

    Example:
        >>> scatter_rows(torch.ones(1, 2), torch.tensor([1]), 2).tolist()
        [[-0.0, -0.0], [1.0, 1.0]]
    """
    shape = list(term.shape)
    shape[dim] = size
    return term.new_full(shape, -0.0).index_copy(dim, rows.to(term.device), term)
