"""`corrigenda doctor`: check this installation, with advice for every fault."""

from __future__ import annotations

import hashlib
import os
import shutil
import sys
from importlib import metadata, util
from importlib.resources import files
from pathlib import Path
from typing import NamedTuple

import typer
from rich.console import Console
from rich.text import Text

from corrigenda.cli import options, output

_LEAST_FREE = 2**30
_EXTRAS = {
    "peft": "peft",
    "retrieval": "sentence_transformers",
    "corpus": "datasets",
    "large": "accelerate",
    "harm": "lm_eval",
    "gguf": "gguf",
    "metrics": "nltk",
}


class Finding(NamedTuple):
    """Result of one check: its `value`, whether it is `ok`, and `advice` where it is not."""

    name: str
    value: str
    ok: bool = True
    advice: str = ""


def doctor(as_json: options.AsJson = False) -> None:
    """Check versions, devices, threads, cache, disk, pocket models and optional packages.

    Exit status 1 means that a check failed.
    """
    findings = [
        *_check_versions(),
        *_check_hardware(),
        *_check_disk(),
        *_check_pocket_models(),
        *_check_extras(),
    ]
    healthy = all(finding.ok for finding in findings)

    def draw(console: Console) -> None:
        for finding in findings:
            mark, style = ("ok", "green") if finding.ok else ("!!", "red")
            line = Text.assemble((mark, style), f"  {finding.name}: {finding.value}")
            console.print(line, soft_wrap=True)
            if not finding.ok:
                console.print(Text(f"      {finding.advice}"), soft_wrap=True)

    data = {"ok": healthy, "findings": [finding._asdict() for finding in findings]}
    output.show(data, as_json=as_json, people=draw)
    if not healthy:
        raise typer.Exit(output.FINDING)


def _check_versions() -> list[Finding]:
    import corrigenda

    found = [
        Finding("corrigenda", corrigenda.__version__),
        Finding("python", sys.version.split()[0]),
    ]
    for name in ("torch", "transformers", "safetensors"):
        try:
            version = metadata.version(name)
        except metadata.PackageNotFoundError:
            found.append(Finding(name, "missing", False, f"pip install {name}"))
            continue
        fits = name != "transformers" or version.startswith("5.")
        found.append(Finding(name, version, fits, "pip install 'transformers>=5,<6'"))
    return found


def _check_hardware() -> list[Finding]:
    import torch

    devices = ["cpu"]
    devices += [
        f"cuda:{i} {torch.cuda.get_device_name(i)}" for i in range(torch.cuda.device_count())
    ]
    devices += ["mps"] if torch.backends.mps.is_available() else []
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    threads = torch.get_num_threads()
    return [
        Finding("devices", ", ".join(devices)),
        Finding(
            "threads",
            f"{threads} of {cores} cores",
            threads <= (cores or threads),
            "More threads than cores slow each other down: set OMP_NUM_THREADS.",
        ),
    ]


def _check_disk() -> list[Finding]:
    from corrigenda.files import cache_folder, format_bytes

    folder = cache_folder()
    existing = next(parent for parent in (folder, *folder.parents) if parent.is_dir())
    size = sum(item.stat().st_size for item in folder.rglob("*") if item.is_file())
    free = shutil.disk_usage(existing).free
    return [
        Finding(
            "cache",
            f"{folder} ({format_bytes(size)})",
            os.access(existing, os.W_OK) and (folder == existing or not folder.exists()),
            "The folder cannot be written to; fitted statistics are computed again each time. Set "
            "CORRIGENDA_CACHE to another one.",
        ),
        Finding(
            "free disk space",
            format_bytes(free),
            free >= _LEAST_FREE,
            "Less than 1 GiB: statistics and merged models may not fit.",
        ),
    ]


def _check_pocket_models() -> list[Finding]:
    """Look for the shipped models, and verify those whose folder has a list of checksums."""
    from corrigenda.files import format_bytes
    from corrigenda.lm.model_names import SHIPPED

    found: list[Finding] = []
    for name in SHIPPED:
        folder = Path(str(files("corrigenda.pocket"))) / name
        weights = folder / "model.safetensors"
        if not weights.is_file():
            found.append(
                Finding(name, "not in this installation", False, "corrigenda pocket train")
            )
            continue
        digest = hashlib.sha256(weights.read_bytes()).hexdigest()
        sums = folder / "SHA256SUMS"
        recorded = sums.read_text().split() if sums.is_file() else []
        intact = not recorded or digest in recorded
        found.append(
            Finding(
                name,
                f"sha256 {digest[:16]} ({format_bytes(weights.stat().st_size)})",
                intact,
                "The weights are not those that were shipped: install the package again.",
            )
        )
    return found


def _check_extras() -> list[Finding]:
    """List the optional packages; a missing one is no fault."""
    return [
        Finding(
            f"extra {extra}",
            "installed" if util.find_spec(module) else f"not installed ({_install_command(extra)})",
        )
        for extra, module in _EXTRAS.items()
    ]


def _install_command(extra: str) -> str:
    return f"pip install 'corrigenda[{extra}]'"
