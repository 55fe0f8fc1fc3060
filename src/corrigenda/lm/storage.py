"""Weights by site, always (d_out, d_in), for transposed, fused and expert storage alike."""

from __future__ import annotations

from typing import NamedTuple, TypeGuard, cast

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.functional import one_hot
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.pytorch_utils import Conv1D

from corrigenda.errors import QuantisedWeights, UnknownSite, did_you_mean
from corrigenda.lm.families import Family, Slot
from corrigenda.lm.sites import PARTS, Site

OutputRows = slice | Int[Tensor, " d_out"]
"""Which outputs of a module belong to a site."""

ALL_ROWS = slice(None)

_NUMBERS = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
_UNITS_AT_ONCE = 1024


class Place(NamedTuple):
    """Module and parameter that hold a site's weight.

    Attributes:
        path: Path of the module in the model.
        module: The module.
        parameter: Name of the parameter in the module.
        rows: Which of the module's outputs are this part's.
    """

    path: str
    module: nn.Module
    parameter: str
    rows: OutputRows

    @property
    def whole(self) -> bool:
        """Whether the module holds this part alone."""
        return isinstance(self.rows, slice) and self.rows == ALL_ROWS


class Storage:
    """Finds and writes the weights of one model."""

    def __init__(self, model: PreTrainedModel, family: Family) -> None:
        """Read weights of a model as its family stores them."""
        self.model, self._family = model, family
        blocks = model.get_submodule(family.blocks)
        assert isinstance(blocks, nn.ModuleList), "the path of a family leads to its blocks"
        self.blocks = blocks
        self._config = model.config.get_text_config()

    def experts(self, layer: int) -> nn.Module | None:
        """Return the fused experts of a block, None where it is dense."""
        path = self._family.experts
        return None if path is None else submodule(self.blocks[layer], path)

    def num_experts(self, layer: int) -> int:
        """Return the number of experts in a block, 0 where it is dense."""
        experts = self.experts(layer)
        return 0 if experts is None else experts.get_parameter("down_proj").shape[0]

    def require_layer(self, layer: int, lowest: int = 0) -> None:
        """Refuse layers the model does not have."""
        if not lowest <= layer < len(self.blocks):
            raise UnknownSite(
                f"there is no layer {layer}; the model has layers 0 to {len(self.blocks) - 1}."
            )

    def find(self, site: Site) -> Place:
        """Return where a site's weight is.

        Raises:
            UnknownSite (CG303): no such layer, part or expert.
        """
        self.require_layer(site.layer)
        slots = self._family.slots
        if site.part not in slots:
            lacks = f"{self._family.name} models have no {site.part}."
            unknown = f'"{site.part}" is no part of a block.'
            raise UnknownSite(
                lacks if site.part in PARTS else unknown,
                where=f"site {site}",
                hint=did_you_mean(site.part, list(slots)),
            )
        block = f"{self._family.blocks}.{site.layer}"
        count = self.num_experts(site.layer) if site.part.startswith("mlp.") else 0
        if (site.expert is None) != (count == 0) or not 0 <= (site.expert or 0) < max(count, 1):
            have = f"experts 0 to {count - 1}" if count else "no experts"
            raise UnknownSite(
                f"{site.part} of layer {site.layer} has {have}.",
                where=f"site {site}",
                hint='Name one: "3.mlp.down#7" is expert 7 of layer 3.' if count else "",
            )
        if site.expert is not None:
            module = self.experts(site.layer)
            assert module is not None
            half = module.get_parameter("gate_up_proj").shape[1] // 2
            rows = {"mlp.gate": slice(0, half), "mlp.up": slice(half, None)}
            name = "down_proj" if site.part == "mlp.down" else "gate_up_proj"
            path = f"{block}.{self._family.experts}"
            return Place(path, module, name, rows.get(site.part, ALL_ROWS))
        slot = slots[site.part]
        module = self.blocks[site.layer].get_submodule(slot.path)
        return Place(f"{block}.{slot.path}", module, "weight", self._rows(site.part, slot))

    def weight(self, site: Site) -> Float[Tensor, "d_out d_in"]:
        """Return a site's weight, a view where the storage allows."""
        place = self.find(site)
        return self._orient(site, place)[place.rows]

    def values(self, site: Site) -> Float[Tensor, "d_out d_in"]:
        """Return the numbers of a site's weight: `weight`, or a copy of one stored quantised."""
        place = self.find(site)
        if site.expert is not None or is_matrix(getattr(place.module, place.parameter, None)):
            return self.weight(site)
        return dequantise(place.module, self.shape(site)[1], self.model.dtype)[place.rows]

    def shape(self, site: Site) -> tuple[int, int]:
        """Return (d_out, d_in) of a site's weight, however it is stored.

        Raises:
            QuantisedWeights (CG304): it is packed by a module that does not tell its sizes.
        """
        place = self.find(site)
        d_out, d_in = self._module_shape(site)
        if isinstance(place.rows, slice):
            return len(range(*place.rows.indices(d_out))), d_in
        return len(place.rows), d_in

    def _module_shape(self, site: Site) -> tuple[int, int]:
        """Return (d_out, d_in) of the whole module, or expert, that holds a site's weight."""
        place = self.find(site)
        if site.expert is not None or is_matrix(getattr(place.module, place.parameter, None)):
            d_out, d_in = self._orient(site, place).shape
            return d_out, d_in
        return _module_sizes(place)

    def device(self, site: Site) -> torch.device:
        """Return where a site's weight is."""
        return device_of(self.find(site).module, self.model.device)

    def is_quantised(self) -> bool:
        """Whether a weight of a block is stored as something else than a matrix of numbers."""
        paths = {slot.path for slot in self._family.slots.values()}
        modules = [submodule(block, path) for block in self.blocks for path in paths]
        return any(
            not is_matrix(getattr(one, "weight", None)) for one in modules if one is not None
        )

    def bias(self, site: Site) -> Float[Tensor, " d_out"] | None:
        """Return a site's bias, None where there is none."""
        place = self.find(site)
        bias = getattr(place.module, "bias", None)
        return None if bias is None else bias.detach()[place.rows]

    @torch.no_grad()
    def write(self, site: Site, weight: Float[Tensor, "d_out d_in"]) -> None:
        """Copy a weight into the storage."""
        place = self.find(site)
        oriented = self._orient(site, place)
        if oriented[place.rows].shape != weight.shape:
            shape = tuple(oriented[place.rows].shape)
            raise ValueError(f"site {site} has shape {shape}, not {tuple(weight.shape)}")
        oriented[place.rows] = weight.to(oriented.device, oriented.dtype)

    def _orient(self, site: Site, place: Place) -> Float[Tensor, "d_out d_in"]:
        """Return all of the parameter, as (d_out, d_in)."""
        stored = getattr(place.module, place.parameter, None)
        parameter = stored[site.expert] if site.expert is not None else stored
        if not is_matrix(parameter):
            how = type(place.module).__name__ if stored is None else str(stored.dtype)
            raise QuantisedWeights(
                f"the weight of this site is stored quantised ({how}).",
                where=f"site {site}, module {place.path}",
                hint="Load the model in float32, bfloat16 or float16.",
            )
        parameter = parameter.detach()
        return parameter.T if isinstance(place.module, Conv1D) else parameter

    def _rows(self, part: str, slot: Slot) -> OutputRows:
        config = self._config
        match slot.fused:
            case "":
                return ALL_ROWS
            case "gate_up":
                half = config.intermediate_size
                return slice(0, half) if part == "mlp.gate" else slice(half, 2 * half)
            case "qkv":
                width = head_width(config)
                queries = config.num_attention_heads * width
                keys = (getattr(config, "num_key_value_heads", None) or 0) * width or queries
                ends = [0, queries, queries + keys, queries + 2 * keys]
                third = "qkv".index(part[-1])
                return slice(ends[third], ends[third + 1])
            case "qkv by head":
                heads, width = config.num_attention_heads, head_width(config)
                rows = torch.arange(3 * heads * width).view(heads, 3, width)
                return rows[:, "qkv".index(part[-1])].reshape(-1)


def is_matrix(stored: object) -> TypeGuard[Tensor]:
    """Whether a weight is a matrix of numbers that can be read and written as it is.

    Packed weights are of other shapes and dtypes, of 8-bit floating point with scales apart, or of
    classes that bring a `dequantize` of their own.
    """
    return (
        isinstance(stored, Tensor)
        and stored.dtype in _NUMBERS
        and stored.dim() == 2
        and type(stored).dequantize is Tensor.dequantize
    )


@torch.no_grad()
def dequantise(module: nn.Module, width: int, dtype: torch.dtype) -> Float[Tensor, "d_out d_in"]:
    """Return the weight of a linear module from what it makes of unit vectors; a copy.

    Hooks of the module do not run, so that patches active at run time do not count.
    """
    device = device_of(module, torch.device("cpu"))
    bias = getattr(module, "bias", None)
    columns: list[Tensor] = []
    for units in torch.arange(width, device=device).split(_UNITS_AT_ONCE):
        made = module.forward(one_hot(units, width).to(dtype))
        columns.append((made if bias is None else made - bias).to(dtype))
    return torch.cat(columns).T.contiguous()


def device_of(module: nn.Module, default: torch.device) -> torch.device:
    """Return where the tensors of a module are."""
    held = (one for group in (module.parameters(), module.buffers()) for one in group)
    return next((one.device for one in held), default)


def _module_sizes(place: Place) -> tuple[int, int]:
    """Return (d_out, d_in) of a module that packs its weight."""
    for names in (("out_features", "in_features"), ("outfeatures", "infeatures")):
        sizes = [getattr(place.module, name, None) for name in names]
        if all(isinstance(size, int) for size in sizes):
            return cast("int", sizes[0]), cast("int", sizes[1])
    raise QuantisedWeights(
        f"a {type(place.module).__name__} does not tell the shape of its weight.",
        where=f"module {place.path}",
        hint="Load the model in float32, bfloat16 or float16, or quantised by bitsandbytes, GPTQ, "
        "AWQ, torchao or optimum-quanto.",
    )


def head_width(config: PreTrainedConfig) -> int:
    """Return the width of one attention head."""
    width = getattr(config, "head_dim", None)
    return width or config.hidden_size // config.num_attention_heads


def submodule(parent: nn.Module, path: str) -> nn.Module | None:
    """Return a module by path, None if there is none."""
    try:
        return parent.get_submodule(path)
    except AttributeError:
        return None


def is_transposed(module: nn.Module) -> bool:
    """Whether a module stores its weight as (d_in, d_out), as GPT-2's do."""
    return isinstance(module, Conv1D)
