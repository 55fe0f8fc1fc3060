"""Identity of a process, by which files that it leaves can be told from those of others."""

from __future__ import annotations

import hashlib
import os
import socket
from pathlib import Path
from typing import NamedTuple


class ProcessId(NamedTuple):
    """A process, also among those of other hosts, containers and times.

    Attributes:
        host: Name of its host.
        boot: Identifier of this start of the host; empty where unknown.
        space: Name space of its number, one for each container; empty where unknown.
        pid: Its number.
        begun: When it began, in ticks of its host; 0 where unknown.
    """

    host: str
    boot: str
    space: str
    pid: int
    begun: int

    @property
    def machine(self) -> str:
        """Return a hash of host, boot and name space, in which its number is unique."""
        text = "\0".join((self.host, self.boot, self.space))
        return hashlib.blake2b(text.encode(), digest_size=5).hexdigest()


def identify_process() -> ProcessId:
    """Return the identity of this process."""
    return ProcessId(
        host=socket.gethostname(),
        boot=_read_text(Path("/proc/sys/kernel/random/boot_id")),
        space=_read_link(Path("/proc/self/ns/pid")),
        pid=os.getpid(),
        begun=read_begun(os.getpid()),
    )


def read_begun(pid: int) -> int:
    """Return when a process of this machine began; 0 if it has ended, or is not visible."""
    fields = _read_text(Path(f"/proc/{pid}/stat")).rpartition(")")[2].split()
    # Fields 3 and 22 of the file: the state, Z of a process that has ended, and the start.
    return int(fields[19]) if len(fields) > 19 and fields[0] != "Z" else 0


def is_running(pid: int, begun: int) -> bool:
    """Return whether a process of this machine still runs.

    Args:
        pid: Its number, which another process may have by now.
        begun: When it began; 0 where unknown, and then its number alone is looked for.
    """
    if begun:
        return read_begun(pid) == begun
    if os.name != "posix":
        return True
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        return True
    return True


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return ""


def _read_link(path: Path) -> str:
    try:
        return os.readlink(path)
    except OSError:
        return ""
