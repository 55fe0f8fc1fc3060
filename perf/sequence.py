"""Whether edit 500 costs what edit 1 costs: seconds to make, apply and undo, and memory, by edit.

    python perf/sequence.py --method memit|alphaedit|grace|melo|wise|t-patcher [--edits 500]
        [--model pocket] [--steps N] [--undo 50] [--threads 1] [--profile FILE]

Edits one fact after the other, each on top of those before, which stay active. Processor seconds
are counted for each edit: to make the patch, to apply it, and every fifth time to take off the
patch that was applied `--undo` places earlier, which is then put on again. The last fifth of the
edits is compared with the first one, and the growth of resident memory between their ends with the
bytes of the patches, as they lie in a process, and of the state. Beside each fifth edit the
same fixed work is timed, and ratios are over its own: a machine that is busier towards the end is
no growth. The last line is one JSON object. `--steps` shortens searches and trainings; the object
says how many steps were taken.
"""

from __future__ import annotations

import argparse
import cProfile
import gc
import statistics
import sys
import time
import warnings
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import NamedTuple, TypeVar

import torch
from figures import publish
from scaling import make_facts
from torch import Tensor

from corrigenda.almanac.corpus import texts
from corrigenda.editor import Editor, State
from corrigenda.facts import Fact
from corrigenda.lm.model import LanguageModel
from corrigenda.methods.presets import build_editor
from corrigenda.patch import Patch
from corrigenda.patch.applied import Applied

METHODS = ("memit", "alphaedit", "grace", "melo", "wise", "t-patcher", "calinet", "ultraedit")
MOST = 1.15
UNDO_EVERY = 5
REFERENCE = "fixed work"
PAGE = 4096

Result = TypeVar("Result")


class MemoryMark(NamedTuple):
    """Bytes after some edits: `resident` in the process, `stored` by patches and state."""

    edits: int
    resident: int
    stored: int


class EditSequence:
    """A sequence of edits, with what each of them took."""

    def __init__(self, lm: LanguageModel, editor: Editor, undo: int) -> None:
        """Fit the editor."""
        self.lm, self.editor, self.undo = lm, editor, undo
        self.state: State | None = editor.fit(lm, list(texts()))
        self.active: list[Applied] = []
        self.stored = 0
        self.seconds: dict[str, list[float]] = {"edit": [], "apply": [], "undo": [], REFERENCE: []}
        self.matrix = torch.randn(256, 256, generator=torch.Generator().manual_seed(0))

    def run(self, facts: list[Fact]) -> None:
        """Edit facts one after the other."""
        for fact in facts:
            self._edit(fact)
            if len(self.active) % UNDO_EVERY == 0:
                self._undo()
                self._timed(REFERENCE, self._work)
            if len(self.active) % 50 == 0:
                show(f"edit {len(self.active)}: {median(self.seconds['edit'][-50:]):.2f} ms")

    def mark(self) -> MemoryMark:
        """Measure the memory."""
        assert self.state is not None, "the editor was fitted"
        gc.collect()
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
        stored = self.stored + tensor_bytes(self.state.tensors) + object_bytes(self.state.meta)
        return MemoryMark(len(self.active), PAGE * pages, stored)

    def _edit(self, fact: Fact) -> None:
        def make() -> Patch:
            patch, self.state = self.editor.edit(self.lm, [fact], self.state)
            return patch

        patch = self._timed("edit", make)
        self.active.append(self._timed("apply", lambda: patch.apply(self.lm)))
        self.stored += tensor_bytes(patch.tensors()) + object_bytes(patch.header.model_dump())

    def _undo(self) -> None:
        place = max(0, len(self.active) - 1 - self.undo)
        earlier = self.active[place]
        self._timed("undo", earlier.revert)
        assert isinstance(earlier.patch, Patch), "what was applied"
        # Later patches were made on top of this one, and it is not the last one now.
        self.active[place] = earlier.patch.apply(self.lm, force=True)

    def _work(self) -> None:
        """Some products, and as many small steps of the interpreter."""
        for number in range(40):
            torch.linalg.matrix_norm(self.matrix @ self.matrix)
            sum(range(20 * number))

    def _timed(self, name: str, work: Callable[[], Result]) -> Result:
        begin = time.process_time()
        result = work()
        self.seconds[name].append(time.process_time() - begin)
        return result


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--method", required=True, choices=METHODS)
    parser.add_argument("--edits", type=int, default=500)
    parser.add_argument("--model", default="pocket", help="a name or a folder")
    parser.add_argument("--steps", type=int, help="of a search or training; the preset's if absent")
    parser.add_argument("--undo", type=int, default=50, help="how many edits back is undone")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--profile", type=Path, help="where to write a profile of the last fifth")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    warnings.filterwarnings("ignore", message="Few keys")
    lm = LanguageModel.load(options.model, dtype=torch.float32)
    settings: dict[str, object] = {} if options.steps is None else {"steps": options.steps}
    if options.method == "memit":
        settings["sequential"] = True
    editor = build_editor(options.method, lm.name, **settings)
    sequence = EditSequence(lm, editor, options.undo)
    facts = make_facts(options.edits)
    fifth = len(facts) // 5
    sequence.run(facts[:fifth])
    early = sequence.mark()
    sequence.run(facts[fifth : len(facts) - fifth])
    profile = cProfile.Profile()
    with profile if options.profile else nullcontext():
        sequence.run(facts[len(facts) - fifth :])
    late = sequence.mark()
    if options.profile:
        profile.dump_stats(options.profile)
    begin = time.process_time()
    lm.patches.clear()
    clearing = time.process_time() - begin
    found: dict[str, object] = {
        "method": editor.name,
        "model": lm.name,
        "edits": len(facts),
        "steps": getattr(editor, "steps", None),
    }
    limits = {}
    reference = 1.0
    for name, seconds in reversed(sequence.seconds.items()):
        count = max(1, len(seconds) // 5)
        first, last = median(seconds[:count]), median(seconds[-count:])
        found[f"{name}: first ms"], found[f"{name}: last ms"] = round(first, 3), round(last, 3)
        found[f"{name}: last over first"] = round(last / first / reference, 3)
        if name == REFERENCE:
            reference = last / first
        else:
            limits[f"{name}: last over first"] = MOST
    found["taking all off, ms an edit"] = round(1000 * clearing / len(facts), 3)
    found["memory grows by, MiB"] = round((late.resident - early.resident) / 2**20, 2)
    found["of it stored, MiB"] = round((late.stored - early.stored) / 2**20, 2)
    publish(found, limits=limits)


def median(seconds: list[float]) -> float:
    """Median in milliseconds."""
    return 1000 * statistics.median(seconds)


def tensor_bytes(tensors: Mapping[str, Tensor]) -> int:
    """Bytes of tensors."""
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())


def object_bytes(found: object) -> int:
    """Bytes of Python objects and of what they hold."""
    size = sys.getsizeof(found)
    if isinstance(found, Mapping):
        return size + sum(object_bytes(one) + object_bytes(other) for one, other in found.items())
    if isinstance(found, list | tuple):
        return size + sum(map(object_bytes, found))
    return size


def show(line: str) -> None:
    """Print a line as soon as it is known."""
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
