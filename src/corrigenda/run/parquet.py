"""Parquet files that carry a checksum of themselves; reading refuses a file that was changed.

The checksum is the value of the key `corrigenda_sha256` in the metadata of the file: the SHA-256 of
all its bytes, with sixty-four zeros in the place of the value. Other programs read such a file as
any other.
"""

from __future__ import annotations

import hashlib
import io
import re
from pathlib import Path
from typing import TYPE_CHECKING

from corrigenda.errors import CorruptFile
from corrigenda.files import write_atomically

if TYPE_CHECKING:
    import polars

_KEY = "corrigenda_sha256"
_BLANK = "0" * 64
# Between key and value are the type and the length of a string: a few bytes.
_SEAL = re.compile(_KEY.encode() + rb".{1,8}?([0-9a-f]{64})", re.DOTALL)


def write_frame(path: Path, frame: polars.DataFrame) -> None:
    """Write a table with its checksum, completely or not at all.

    Raises:
        WriteFailed (CG601): the disk is full, or the folder is not writable.
    """

    def write(part: Path) -> None:
        frame.write_parquet(part, metadata={_KEY: _BLANK})
        content = part.read_bytes()
        digest = hashlib.sha256(content).hexdigest().encode()
        place = _find_seal(content)
        with part.open("r+b") as file:
            file.seek(place)
            file.write(digest)

    write_atomically(path, write)


def read_frame(path: Path) -> polars.DataFrame:
    """Read a table that `write_frame` wrote.

    Raises:
        CorruptFile (CG402): the file is missing, damaged or was changed.
    """
    import polars

    try:
        content = path.read_bytes()
        place = _find_seal(content)
        blank = content[:place] + _BLANK.encode() + content[place + len(_BLANK) :]
        if hashlib.sha256(blank).hexdigest().encode() != content[place : place + len(_BLANK)]:
            raise ValueError("its checksum is another")
        return polars.read_parquet(io.BytesIO(content))
    except (OSError, ValueError, polars.exceptions.PolarsError) as error:
        raise CorruptFile(
            f"{path} is damaged or missing.",
            where=str(error).splitlines()[0],
            hint="Remove the folder of the run and run again.",
        ) from error


def _find_seal(content: bytes) -> int:
    """Return the place of the checksum, near the end of a file."""
    start = content.rfind(_KEY.encode())
    found = _SEAL.match(content, start) if start >= 0 else None
    if found is None:
        raise ValueError("it carries no checksum")
    return found.start(1)
