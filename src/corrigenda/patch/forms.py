"""Forms of tensors and options that a kind of patch declares, and whether a patch has them.

A form is written as a dtype and the names of axes: "float facts d". Equal names are equal sizes; a
number is that size; "..." is any shape. A tensor's name may hold one "*" for a number, a site or
the like: axes that occur in such names only are equal within each match, and what one match has,
all have. A name that ends in "?" may be missing.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping

import torch
from torch import Tensor

Option = type | tuple[type, ...] | tuple[str, ...]
"""Types that an option may have, or texts that it may be."""

_DTYPES = {
    "float": (torch.float64, torch.float32, torch.bfloat16, torch.float16),
    "int": (torch.int64, torch.int32, torch.int16),
    "bytes": (torch.uint8,),
}


def require_forms(
    forms: Mapping[str, str], tensors: Mapping[str, Tensor], sizes: Mapping[str, int]
) -> None:
    """Refuse tensors that do not have the forms declared.

    Args:
        forms: By name of tensor.
        tensors: What there is.
        sizes: Axes whose size is known.

    Raises:
        ValueError: the message says which tensor, and what was expected.
    """
    found: dict[str, dict[str, str]] = defaultdict(dict)  # by match of "*", forms by their name
    for name in tensors:
        form, match = _find_form(forms, name)
        found[match][form] = name
    starred = {form.rstrip("?") for form in forms if "*" in form}
    for form in forms:
        if form.endswith("?"):
            continue
        matches = [match for match in found if match] if form in starred else [""]
        if missing := [match for match in matches if form not in found[match]]:
            raise ValueError(f"the tensor {form.replace('*', missing[0])} is missing")
    plain_axes = {
        axis for form, text in forms.items() if "*" not in form for axis in text.split()[1:]
    }
    common = dict(sizes)
    for match in sorted(found):
        own = {axis: size for axis, size in common.items() if axis in plain_axes or axis in sizes}
        for form, name in sorted(found[match].items()):
            _require_form(name, tensors[name], forms.get(form) or forms[f"{form}?"], own)
        if not match:
            common = own


def require_options(options: Mapping[str, Option], given: Mapping[str, object]) -> None:
    """Refuse options that are missing, of another type, or another text than allowed.

    Raises:
        ValueError: the message says which option, and what was expected.
    """
    for name, allowed in options.items():
        if name not in given:
            raise ValueError(f'the option "{name}" is missing')
        value = given[name]
        if isinstance(allowed, tuple) and allowed and isinstance(allowed[0], str):
            if value not in allowed:
                raise ValueError(f'the option "{name}" is {value!r}, not one of {allowed}')
            continue
        types = allowed if isinstance(allowed, tuple) else (allowed,)
        wide = (*types, int) if float in types else types
        if not isinstance(value, wide) or (isinstance(value, bool) and bool not in types):
            names = " or ".join(one.__name__ for one in types if isinstance(one, type))
            raise ValueError(f'the option "{name}" is {value!r}, not {names}')


def _find_form(forms: Mapping[str, str], name: str) -> tuple[str, str]:
    for form in forms:
        text = form.rstrip("?")
        before, star, after = text.partition("*")
        pattern = f"{re.escape(before)}(.+){re.escape(after)}" if star else re.escape(text)
        match = re.fullmatch(pattern, name)
        if match is not None:
            return text, match[1] if star else ""
    raise ValueError(f"there is no place for the tensor {name}")


def _require_form(name: str, tensor: Tensor, form: str, sizes: dict[str, int]) -> None:
    dtype, *axes = form.split()
    if tensor.dtype not in _DTYPES[dtype]:
        raise ValueError(f"the tensor {name} is {tensor.dtype}, not {dtype}")
    if axes == ["..."]:
        return
    expected = [int(axis) if axis.isdecimal() else sizes.get(axis) for axis in axes]
    shape = tuple(tensor.shape)
    if len(shape) != len(axes) or any(
        wanted not in (None, size) for wanted, size in zip(expected, shape, strict=True)
    ):
        known = ", ".join(f"{axis} = {sizes[axis]}" for axis in axes if axis in sizes)
        raise ValueError(f"the tensor {name} has shape {shape}, not ({' '.join(axes)}); {known}")
    sizes.update(
        {axis: size for axis, size in zip(axes, shape, strict=True) if axis.isidentifier()}
    )
