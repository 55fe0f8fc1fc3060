"""Whether edit 500 costs what edit 1 costs: seconds to make, apply and undo, and memory, by edit.

    python perf/sequence.py --method memit|alphaedit|grace|melo|wise|t-patcher [--edits 500]
        [--model pocket] [--steps N] [--threads 1] [--profile FILE]

Edits one fact after the other, each on top of those before, which stay active. Processor seconds
are counted for each edit: to make the patch, to apply it, and to take off the patch that was
applied `--undo` places earlier and put it on again. The last fifth of the edits is compared with
the first fifth, and the growth of the resident memory between them with what the patches and the
state store. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import cProfile
import gc
import json
import pickle
import statistics
import sys
import time
import warnings
from contextlib import ExitStack
from pathlib import Path

import torch
from figures import publish
from scaling import make_facts

from corrigenda.almanac.corpus import texts
from corrigenda.editor import State
from corrigenda.lm.model import LanguageModel
from corrigenda.methods.presets import build_editor
from corrigenda.patch import Patch

METHODS = ("memit", "alphaedit", "grace", "melo", "wise", "t-patcher", "calinet", "ultraedit")
MOST = 1.15


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
    settings = {} if options.steps is None else {"steps": options.steps}
    if options.method == "memit":
        settings["sequential"] = True
    editor = build_editor(options.method, lm.name, **settings)
    state = editor.fit(lm, list(texts()))
    facts = make_facts(options.edits)
    facts *= -(-options.edits // len(facts))
    first, last = options.edits // 5, options.edits - options.edits // 5
    spent: dict[str, list[float]] = {"edit": [], "apply": [], "undo": []}
    stored, resident = [0], [0]
    profile = cProfile.Profile()
    with ExitStack() as stack:
        active = []
        for number, fact in enumerate(facts[: options.edits]):
            if options.profile and number == last:
                profile.enable()
            patch, state = timed(spent["edit"], lambda: editor.edit(lm, [fact], state))
            active.append(timed(spent["apply"], lambda: stack.enter_context(patch.apply(lm))))
            # The sixth part of the edits is enough to know what undoing costs.
            if number % 6 == 0:
                earlier = active[max(0, number - options.undo)]
                timed(spent["undo"], earlier.revert)
                place = active.index(earlier)
                active[place] = stack.enter_context(earlier.patch.apply(lm, force=True))
            stored.append(stored[-1] + stored_bytes(patch))
            if number in (first, options.edits - 1):
                resident.append(resident_bytes())
                marks = number, stored[-1] + state_bytes(state)
                show(f"{number + 1} edits: {resident[-1] / 2**20:.1f} MiB")
                stored_at = [*locals().get("stored_at", []), marks[1]]
            if (number + 1) % 50 == 0:
                show(f"edit {number + 1}: {statistics.median(spent['edit'][-50:]):.4f} s")
        profile.disable()
        begin = time.process_time()
    if options.profile:
        profile.dump_stats(options.profile)
    clearing = time.process_time() - begin
    found: dict[str, object] = {
        "method": editor.name,
        "model": lm.name,
        "edits": options.edits,
        "steps": getattr(editor, "steps", None),
        "patches active at the end": options.edits,
    }
    limits = {}
    for name, seconds in spent.items():
        fifth = max(1, len(seconds) // 5)
        early, late = (statistics.median(x) for x in (seconds[:fifth], seconds[-fifth:]))
        found[f"{name}: first ms"] = round(1000 * early, 3)
        found[f"{name}: last ms"] = round(1000 * late, 3)
        found[f"{name}: last over first"] = round(late / early, 3)
        limits[f"{name}: last over first"] = MOST
    found["taking all off, ms an edit"] = round(1000 * clearing / options.edits, 3)
    found["memory: growth MiB"] = round((resident[2] - resident[1]) / 2**20, 2)
    found["memory: stored MiB"] = round((stored_at[1] - stored_at[0]) / 2**20, 2)
    publish(found, limits=limits)


def timed(seconds: list[float], work):
    """Do some work and record its processor seconds."""
    begin = time.process_time()
    result = work()
    seconds.append(time.process_time() - begin)
    return result


def stored_bytes(patch: Patch) -> int:
    """Bytes of a patch in a process: of its tensors, and of the objects of its header."""
    return tensor_bytes(patch.tensors()) + object_bytes(patch.header.model_dump())


def state_bytes(state: State) -> int:
    """Bytes of a state in a process."""
    return tensor_bytes(state.tensors) + object_bytes(dict(state.meta))


def tensor_bytes(tensors) -> int:
    """Bytes of tensors."""
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())


def object_bytes(found: object) -> int:
    """Bytes of Python objects and of what they hold."""
    size = sys.getsizeof(found)
    if isinstance(found, dict):
        return size + sum(object_bytes(one) + object_bytes(other) for one, other in found.items())
    if isinstance(found, list | tuple):
        return size + sum(map(object_bytes, found))
    return size


def resident_bytes() -> int:
    """Bytes of the process that are in memory, after garbage is collected."""
    gc.collect()
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * 4096


def show(line: str) -> None:
    """Print a line as soon as it is known."""
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
