"""Virtual CUDA devices: CPU tensors that claim to lie on `cuda:0` or `cuda:1`.

Operations that mix devices raise, as on a GPU; copies to and from the host and waits of the host
for a device are counted by line. Nothing is said about kernels, memory, precision or speed.

A torch without CUDA accepts such tensors only where `tests/devices/guard.cpp` is loaded before it.
"""

from __future__ import annotations

import functools
import sys
from collections import defaultdict
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

CPU = torch.device("cpu")
FIRST, SECOND = torch.device("cuda", 0), torch.device("cuda", 1)
_FREE_BYTES = 8 << 30
_PACKAGE = str(Path(__file__).parents[1])


class DeviceMismatch(RuntimeError):
    """An operation that a GPU would refuse: its tensors, or its generator, are elsewhere."""


class _Traffic(NamedTuple):
    """One kind of traffic at one line of the package."""

    kind: str
    line: str


TRAFFIC: dict[_Traffic, list[int]] = defaultdict(lambda: [0, 0])
"""Number and bytes, by kind ("to host", "to device", "between devices", "wait") and line."""


def _count(kind: str, num_bytes: int = 0) -> None:
    frame = sys._getframe(1)
    while frame is not None:
        name = frame.f_code.co_filename
        if name.startswith(_PACKAGE) and name != __file__:
            line = f"{name.removeprefix(_PACKAGE).lstrip('/')}:{frame.f_lineno}"
            break
        frame = frame.f_back
    else:
        line = "elsewhere"
    entry = TRAFFIC[_Traffic(kind, line)]
    entry[0] += 1
    entry[1] += num_bytes


class VirtualTensor(Tensor):
    """A CPU tensor under the name of a device.

    Attributes:
        numbers: What it holds, on the CPU.
        place: The device it claims to lie on.
    """

    numbers: Tensor
    place: torch.device

    @staticmethod
    def __new__(cls: type[VirtualTensor], inner: Tensor, place: torch.device) -> VirtualTensor:
        """Make one of shape, dtype and strides of a plain tensor, which it shares."""
        assert not isinstance(inner, VirtualTensor)
        return torch.Tensor._make_wrapper_subclass(
            cls,
            inner.shape,
            dtype=inner.dtype,
            device=place,
            strides=inner.stride(),
            storage_offset=inner.storage_offset(),
        )

    def __init__(self, inner: Tensor, place: torch.device) -> None:
        """Keep the tensor."""
        self.numbers, self.place = inner, place

    __torch_function__ = torch._C._disabled_torch_function_impl  # pyright: ignore[reportAssignmentType]  # as subclasses that dispatch do

    def __repr__(self, *, tensor_contents: str | None = None) -> str:
        return f"VirtualTensor({tuple(self.shape)}, {self.dtype}, {self.place})"

    @classmethod
    def __torch_dispatch__(
        cls, operator: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        return _operate(operator, args, kwargs or {})


def _place(tensor: object) -> torch.device:
    return tensor.place if isinstance(tensor, VirtualTensor) else CPU


def _strip(found: object) -> Any:
    return found.numbers if isinstance(found, VirtualTensor) else found


def _wrap(found: object, place: torch.device) -> Any:
    """Put a plain tensor on a device."""
    if isinstance(found, VirtualTensor) or not isinstance(found, Tensor) or place.type == "cpu":
        return found
    return VirtualTensor(found, place)


def _resolve(device: Any) -> torch.device | None:
    """Return a device with its index, None where none is named."""
    if device is None:
        return None
    device = torch.device(device)
    return torch.device("cuda", device.index or 0) if device.type == "cuda" else device


def _count_copy(tensor: Tensor, source: torch.device, target: torch.device) -> None:
    if source != target:
        kinds = {"cpu": "to host", source.type: "between devices"}
        kind = kinds.get(target.type, "to device") if source != CPU else "to device"
        _count(kind, tensor.numel() * tensor.element_size())


_WAITING = ("_local_scalar_dense", "nonzero", "masked_select", "_unique2", "unique_dim", "equal")
_INDEXING = ("index", "_unsafe_index", "index_put", "index_put_", "_index_put_impl_")
_PACKING = "_pack_padded_sequence"


def _operate(operator: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """Run an operator on what the tensors hold, if a GPU would."""
    name = operator.overloadpacket.__name__
    if name in _WAITING:
        _count("wait")
    asked = _resolve(kwargs.get("device"))
    kwargs = {option: found for option, found in kwargs.items() if option != "device"}
    if name == "_to_copy":
        return _convert(operator, args[0], asked, kwargs)
    if name == "copy_":
        _count_copy(args[1], _place(args[1]), _place(args[0]))
        _strip(args[0]).copy_(_strip(args[1]))
        return args[0]
    if name == _PACKING:
        # Lengths are given, and sizes of batches returned, on the host.
        packed, sizes = operator(*map(_strip, args))
        return _wrap(packed, _place(args[0])), sizes
    _require_one_device(name, args, kwargs)
    found = operator(*tree_map(_strip, args), **tree_map(_strip, kwargs))
    for position, argument in enumerate(operator._schema.arguments):
        if argument.alias_info is not None and argument.alias_info.is_write:
            if not operator._schema.returns:
                return None
            return args[position] if position < len(args) else kwargs[argument.name]
    places = [one.place for one in tree_leaves((args, kwargs)) if isinstance(one, VirtualTensor)]
    place = asked or (places[0] if places else CPU)
    return tree_map(lambda one: _wrap(one, place), found)


def _convert(operator: Any, source: Tensor, asked: torch.device | None, options: Any) -> Tensor:
    target = asked or _place(source)
    kept = {name: one for name, one in options.items() if name not in ("layout", "pin_memory")}
    found = operator(_strip(source), **kept)
    _count_copy(found, _place(source), target)
    return _wrap(found, target)


def _require_one_device(name: str, args: Any, kwargs: Any) -> None:
    """Refuse tensors of several devices; numbers without dimensions may come from the host."""
    if name in _INDEXING:
        # The host's indices are copied to the device; the device's do not reach the host.
        indices = [one for one in args[1] if isinstance(one, VirtualTensor)]
        args = (args[0], indices, *args[2:])
    tensors = [one for one in tree_leaves((args, kwargs)) if isinstance(one, Tensor)]
    places = {_place(one) for one in tensors if isinstance(one, VirtualTensor) or one.dim() > 0}
    if len(places) > 1:
        where = ", ".join(f"{tuple(one.shape)} on {_place(one)}" for one in tensors)
        raise DeviceMismatch(f"{name}: {where}")


class _Move(torch.autograd.Function):
    """A copy to a device and dtype, which gradients cross in the other direction."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, place: torch.device, dtype: torch.dtype, counted: bool
    ) -> Tensor:
        ctx.source = _place(x), x.dtype
        found = _strip(x).to(dtype, copy=True)
        if counted:
            _count_copy(found, _place(x), place)
        return _wrap(found, place)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        place, dtype = ctx.source
        return _wrap(_strip(gradients[0]).to(dtype, copy=True), place), None, None, None


class _Destination(NamedTuple):
    """Where `Tensor.to` puts a tensor."""

    place: torch.device
    dtype: torch.dtype
    copy: bool

    @classmethod
    def of(cls, x: Tensor, args: tuple[Any, ...], options: dict[str, Any]) -> _Destination:
        place, dtype = _place(x), x.dtype
        for one in (*args, options.get("device"), options.get("dtype"), options.get("other")):
            if isinstance(one, torch.dtype):
                dtype = one
            elif isinstance(one, Tensor):
                place, dtype = _place(one), one.dtype
            elif one is not None and not isinstance(one, bool):
                place = _resolve(one) or place
        return cls(place, dtype, bool(options.get("copy", False)))


def _to(x: Tensor, *args: Any, **options: Any) -> Tensor:
    place, dtype, copy = _Destination.of(x, args, options)
    if place.type == "meta" or (place == CPU and not isinstance(x, VirtualTensor)):
        return Tensor.to(x, *args, **options)
    if (place, dtype) == (_place(x), x.dtype) and not copy:
        return x
    return _Move.apply(x, place, dtype, True)  # pyright: ignore[reportReturnType]  # untyped in torch


_FACTORIES = (
    torch.arange,
    torch.as_tensor,
    torch.empty,
    torch.empty_strided,
    torch.eye,
    torch.full,
    torch.linspace,
    torch.ones,
    torch.rand,
    torch.randint,
    torch.randn,
    torch.randperm,
    torch.scalar_tensor,
    torch.tensor,
    torch.tril_indices,
    torch.zeros,
)
_RANDOM = (
    Tensor.bernoulli_,
    Tensor.normal_,
    Tensor.uniform_,
    torch.multinomial,
    torch.rand_like,
    torch.randn_like,
)


def _create(function: Callable[..., Any], args: tuple[Any, ...], options: dict[str, Any]) -> Any:
    """Call a factory for a device."""
    options = dict(options)
    place = _resolve(options.pop("device"))
    assert place is not None
    _require_generator(function, place, options)
    needs_gradient = options.pop("requires_grad", False)
    found = _wrap(function(*map(_strip, args), **options), place)
    return found.requires_grad_() if needs_gradient else found


def _require_generator(function: object, place: torch.device, options: Mapping[str, Any]) -> None:
    generator = options.get("generator")
    if generator is not None and generator.device.type != place.type:
        name = getattr(function, "__name__", "random numbers")
        raise DeviceMismatch(f"{name} on {place} with a generator of {generator.device}")


class _Functions(TorchFunctionMode):
    """Takes the calls that never reach an operator, or that ask for CUDA itself."""

    def __torch_function__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        options = kwargs or {}
        asked = _resolve(options.get("device"))
        if function in _FACTORIES and asked is not None and asked.type == "cuda":
            return _create(function, args, options)
        if function is Tensor.to:
            return _to(*args, **options)
        if function is nn.functional.scaled_dot_product_attention:
            return torch.ops.aten._scaled_dot_product_attention_math(*args, **options)[0]
        if getattr(function, "__name__", "") == "lstm":
            return _unfuse(function, args)
        if args and isinstance(args[0], VirtualTensor):
            return _call(function, args, options)
        return function(*args, **options)


def _unfuse(function: Any, args: tuple[Any, ...]) -> Any:
    """Run on the host what is one kernel on a GPU, and has no operators to look at."""
    tensors = [one for one in tree_leaves(args) if isinstance(one, Tensor)]
    places = [one.place for one in tensors if isinstance(one, VirtualTensor)]
    if len(set(places)) > 1:
        raise DeviceMismatch(f"{function.__name__}: tensors on {sorted(set(map(str, places)))}")

    def move(found: object, place: torch.device) -> object:
        if not isinstance(found, Tensor) or _place(found) == place:
            return found
        return _Move.apply(found, place, found.dtype, False)

    found = function(*tree_map(lambda one: move(one, CPU), args))
    return tree_map(lambda one: move(one, places[0] if places else CPU), found)


def _call(function: Any, args: tuple[Any, ...], options: dict[str, Any]) -> Any:
    """Call a function on a tensor of a device."""
    x = args[0]
    if function is Tensor.tolist:
        _count("wait")
        return x.numbers.tolist()
    if function is Tensor.data_ptr:
        return x.numbers.data_ptr()
    if function is Tensor.numpy:
        raise DeviceMismatch(f"numpy() of a tensor on {x.place}")
    if function is Tensor.cpu:
        return _to(x, CPU)
    if function is Tensor.new_tensor:
        dtype = options.get("dtype") or x.dtype
        return _wrap(torch.tensor(args[1], dtype=dtype), _resolve(options.get("device")) or x.place)
    if function in (Tensor.__getitem__, Tensor.__setitem__):
        chosen = args[1]
        chosen = tuple(map(_index, chosen)) if isinstance(chosen, tuple) else _index(chosen)
        args = (x, chosen, *args[2:])
    if function in _RANDOM:
        _require_generator(function, x.place, options)
    return function(*args, **options)


def _index(found: object) -> object:
    return torch.tensor(found) if isinstance(found, list | range) else found


class _Operators(TorchDispatchMode):
    """Takes every operator that is given a tensor of a device, or asked for one."""

    def __torch_dispatch__(
        self, operator: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        options = kwargs or {}
        asked = _resolve(options.get("device"))
        on_device = any(isinstance(one, VirtualTensor) for one in tree_leaves((args, options)))
        if on_device or (asked is not None and asked.type == "cuda"):
            return _operate(operator, args, options)
        return operator(*args, **options)


@contextmanager
def virtual_devices() -> Generator[None]:
    """Have the devices, until left."""
    with _Operators(), _Functions():
        yield


def replace_cuda_calls() -> None:
    """Replace, in this process, functions of torch that ask a real GPU or refuse virtual tensors.

    To be called before modules are imported that use them as decorators.
    """
    inference_mode, fork_rng = torch.inference_mode, torch.random.fork_rng

    def no_inference(mode: Any = True) -> Any:
        if isinstance(mode, bool):
            return torch.no_grad() if mode else nullcontext()
        return torch.no_grad()(mode)

    def fork_host_only(devices: object = None, *args: Any, **options: Any) -> Any:
        return fork_rng([], *args, **options)

    functools.update_wrapper(no_inference, inference_mode, updated=())
    torch.inference_mode = no_inference  # pyright: ignore[reportAttributeAccessIssue]  # replaced
    torch.random.fork_rng = fork_host_only
    torch.cuda.mem_get_info = lambda device=None: (_FREE_BYTES, _FREE_BYTES)
    torch.cuda.synchronize = lambda device=None: _count("wait")
    torch.cuda.reset_peak_memory_stats = lambda device=None: None
    torch.cuda.memory_allocated = torch.cuda.max_memory_allocated = lambda device=None: 0
    torch.__future__.set_overwrite_module_params_on_conversion(True)


def place_weights(model: nn.Module, place_of: Callable[[str], torch.device]) -> None:
    """Put parameters and buffers on devices; what is shared stays shared.

    Args:
        model: A model on the CPU.
        place_of: From the name of a parameter or buffer to its device.
    """
    moved: dict[int, nn.Parameter] = {}
    for path, module in model.named_modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                if id(parameter) not in moved:
                    found = VirtualTensor(parameter.data, place_of(f"{path}.{name}"))
                    moved[id(parameter)] = nn.Parameter(found, requires_grad=False)
                module._parameters[name] = moved[id(parameter)]
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = VirtualTensor(buffer, place_of(f"{path}.{name}"))


def move_inputs(module: nn.Module, *, back: bool = False) -> None:
    """Have a module move its inputs to the device of its weights, as accelerate has it do.

    Args:
        module: A module with weights.
        back: Whether its outputs go to the device of its first input, as those of a whole model do.
    """
    place = next(module.parameters()).device
    forward = module.forward

    @functools.wraps(forward)
    def run(*args: Any, **options: Any) -> Any:
        source = next(one for one in tree_leaves((args, options)) if isinstance(one, Tensor))
        args, options = tree_map(lambda one: _send(one, place), (args, options))
        found = forward(*args, **options)
        if back:
            for name, one in found.items():
                found[name] = _send(one, source.device)
        return found

    module.forward = run


def _send(found: object, device: torch.device) -> Any:
    return found.to(device) if isinstance(found, Tensor) else found
