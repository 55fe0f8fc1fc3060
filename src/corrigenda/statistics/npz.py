"""Reads the statistics published by the authors of ROME and MEMIT."""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from numpy.lib.npyio import NpzFile
from numpy.typing import NDArray

from corrigenda.errors import CorruptFile, PickleRefused
from corrigenda.linalg.moments import SecondMoment
from corrigenda.lm.sites import Site
from corrigenda.state import State

_MOST_KEYS = 1 << 53
_DAMAGED = (
    *(OSError, KeyError, EOFError, TypeError, RuntimeError, OverflowError, MemoryError),
    *(zipfile.BadZipFile, zlib.error),
)


def read_npz(files: Mapping[Site, str | Path]) -> State:
    """Read second moments in the NPZ format of the reference implementations.

    The files hold the sum of k k^T (`mom2.mom2`) and the number of keys (`mom2.count`); the mean
    key is not in them and reads as NaN here. They do not say which model they belong to, so the
    state fits any.

    Args:
        files: The file of each site.

    Raises:
        CorruptFile (CG402): a file is missing, damaged or holds something else.
        PickleRefused (CG403): its arrays are pickled objects.
    """
    return State.of_moments(
        {site: _read_moment(Path(path)) for site, path in files.items()},
        {"source": {str(site): Path(path).name for site, path in files.items()}},
    )


def _read_moment(path: Path) -> SecondMoment:
    total, count = _read_arrays(path)
    width = len(total)
    if total.shape != (width, width) or width == 0 or not 0 < count < _MOST_KEYS:
        raise _report_corrupt(path, f"mom2.mom2 has shape {total.shape}, mom2.count is {count}")
    if not np.isfinite(total).all():
        raise _report_corrupt(path, "mom2.mom2 holds infinities or NaN")
    unknown = torch.full((width,), float("nan"), dtype=torch.float64)
    return SecondMoment.from_tensors(
        {
            "sum_of_products": torch.from_numpy(total).triu(),
            "sum": unknown,
            "largest": unknown,
            "count": torch.tensor(count),
        }
    )


def _read_arrays(path: Path) -> tuple[NDArray[np.float64], int]:
    """Read the sum of products and the number of keys.

    What zipfile and numpy raise for damaged archives is not one class of errors: of an entry that
    is encrypted, compressed in another way, or of another version, it is a RuntimeError.
    """
    try:
        if not path.is_file():
            raise OSError("there is no such file")
        with path.open("rb") as file:
            loaded = np.load(file, allow_pickle=False)
            if not isinstance(loaded, NpzFile):
                raise TypeError("it is no archive of arrays")
            with loaded as arrays:
                total, count = arrays["mom2.mom2"], arrays["mom2.count"]
        if total.ndim != 2 or total.dtype.kind not in "fiu" or count.dtype.kind not in "fiu":
            raise TypeError(f"mom2.mom2 is {total.dtype} of shape {total.shape}")
        return total.astype(np.float64), int(count.item())
    except ValueError as error:
        if "pickle" in str(error).lower():
            raise PickleRefused(
                f"{path} holds pickled objects, which can run code when opened.",
                hint="Fit the statistics yourself: `corrigenda fit`.",
            ) from error
        raise _report_corrupt(path, str(error)) from error
    except _DAMAGED as error:
        raise _report_corrupt(path, str(error)) from error


def _report_corrupt(path: Path, reason: str) -> CorruptFile:
    return CorruptFile(f"{path} is no file of second moments: {reason}.", hint="Get it again.")
