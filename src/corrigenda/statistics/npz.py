"""Reads the statistics published by the authors of ROME and MEMIT."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch

from corrigenda.errors import CorruptFile, PickleRefused
from corrigenda.linalg.moments import SecondMoment
from corrigenda.lm.sites import Site
from corrigenda.state import State


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
    try:
        with np.load(path, allow_pickle=False) as arrays:
            total, count = arrays["mom2.mom2"], int(arrays["mom2.count"])
    except ValueError as error:
        if "pickle" in str(error).lower():
            raise PickleRefused(
                f"{path} holds pickled objects, which can run code when opened.",
                hint="Fit the statistics yourself: `corrigenda fit`.",
            ) from error
        raise _report_corrupt(path, str(error)) from error
    except (OSError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise _report_corrupt(path, str(error)) from error
    if total.ndim != 2 or total.shape[0] != total.shape[1] or count < 1:
        raise _report_corrupt(path, f"mom2.mom2 has shape {total.shape} and mom2.count is {count}")
    unknown = torch.full((len(total),), float("nan"), dtype=torch.float64)
    return SecondMoment.from_tensors(
        {
            "sum_of_products": torch.from_numpy(total).double().triu(),
            "sum": unknown,
            "largest": unknown,
            "count": torch.tensor(count),
        }
    )


def _report_corrupt(path: Path, reason: str) -> CorruptFile:
    return CorruptFile(f"{path} is no file of second moments: {reason}.", hint="Get it again.")
