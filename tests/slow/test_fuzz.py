"""Malformed inputs of every kind give a coded error or a result: nothing raw, nothing that hangs.

`CORRIGENDA_TRIES` sets the number of tries (default 5000), shared by the kinds in `KINDS`. To add a
kind, write a function that makes one input and uses it, and give it a row there.
"""

from __future__ import annotations

import json
import os
import random
import signal
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import pytest

import corrigenda as cg
from corrigenda.cli.options import parse_settings
from corrigenda.engines.locate.contexts import Contexts
from corrigenda.errors import CorrigendaError
from corrigenda.facts import as_facts
from corrigenda.methods.presets import build_editor
from corrigenda.methods.registry import METHODS
from corrigenda.run.spec import read_recipe
from corrigenda.state import State
from corrigenda.testing.tiny import tiny_model
from corrigenda.transforms.registry import TRANSFORMS, parse_transform
from tests.support.tiny_on_disk import nearest_fact

pytestmark = pytest.mark.slow

TRIES = int(os.environ.get("CORRIGENDA_TRIES", "5000"))
SEED = 20260101
SECONDS = 30
"""Longest time of one try."""


class Place(NamedTuple):
    """Where a try works: a folder, a model, and sound files to damage."""

    folder: Path
    lm: cg.LanguageModel
    sound: dict[str, bytes]


NASTY = [
    "NaN",
    "-Infinity",
    "1e999",
    "9" * 5000,
    "-" + "9" * 150,
    "[" * 2000,
    '{"a":' * 300,
    '"\\ud800"',
    '"\\u0000"',
    "\0",
    "\ufeff",
    "null",
    "true",
    "[]",
    "{}",
    '""',
    "0",
    "-1",
    "1.5",
    " ",
    "\u2028",
    "\u202e",
    "{}{}",
    '"' + "x" * 10_000 + '"',
    "'",
    "\\",
    ",",
    "}",
    "\r",
    "caf\u00e9",
    "Rene\u0301",
    "\U0001f469\u200d\U0001f52c",
]
VALUES: list[object] = [
    *(None, True, 0, -1, 3.5, float("nan"), float("inf"), 10**400, "", " ", "\0", "\ud800"),
    *(b"bytes", [], {}, (), [None], ["a"], {"str": "a"}, {"str": None}, object(), "x" * 5000),
    *("Rome", "The Space Needle is in", "Space Needle", "{} is in", " Rome ", "Rome\u200b"),
]
NAMES = [
    *("prompt", "target", "subject", "subject_start", "before", "aliases", "paraphrases"),
    *("neighbours", "separator", "name", "target_new", "requested_rewrite", "case_id", "alt"),
    *("src", "rephrase", "loc", "objekt", "", "locality", "ground_truth"),
]
RECORD = {"prompt": "The Space Needle is in", "target": "Rome", "subject": "Space Needle"}
RECIPE = """
title = "one"
model = "pocket"
methods = ["rome", {name = "memit", options = {steps = 3}}]
[benchmark]
name = "pocketedit"
limit = 2
[regime]
kind = "single"
"""


def damage(content: bytes, chance: random.Random) -> bytes:
    """Return bytes with one to three injuries."""
    for _ in range(chance.randint(1, 3)):
        at = chance.randrange(len(content) + 1)
        match chance.randrange(7):
            case 0:
                content = content[:at]
            case 1:
                content = content[:at] + chance.choice(NASTY).encode() + content[at:]
            case 2:
                end = chance.randrange(at, len(content) + 1)
                content = content[:at] + chance.choice(NASTY).encode() + content[end:]
            case 3:
                content = content[:at] + chance.randbytes(chance.randint(1, 8)) + content[at + 1 :]
            case 4:
                content = content.decode("utf-8", "replace").encode(
                    chance.choice(["utf-16", "utf-32", "utf-8-sig", "latin-1"]), "replace"
                )
            case 5:
                content = content + content[at:]
            case _:
                content = content.replace(b'"', chance.choice([b"'", b"", b'""']), 1)
    return content


def damaged_file(place: Place, name: str, chance: random.Random) -> Path:
    path = place.folder / name
    path.write_bytes(damage(place.sound[name], chance))
    return path


def try_facts_file(place: Place, chance: random.Random) -> None:
    name = chance.choice(["facts.jsonl", "facts.json", "facts.csv", "facts.tsv"])
    cg.read_facts(damaged_file(place, name, chance))


def try_facts(place: Place, chance: random.Random) -> None:
    del place
    record = dict(RECORD) if chance.random() < 0.5 else {}
    for _ in range(chance.randint(1, 4)):
        record[chance.choice(NAMES)] = chance.choice(VALUES)
    match chance.randrange(4):
        case 0:
            as_facts(record)
        case 1:
            as_facts([record, chance.choice(VALUES)])
        case 2:
            as_facts(chance.choice(VALUES))
        case _:
            fields = {**RECORD, **record}
            cg.Fact(**{name: value for name, value in fields.items() if name in NAMES[:10]})


def try_edit(place: Place, chance: random.Random) -> None:
    text = chance.choice([*NASTY[9:], "Space Needle", " The "])
    texts = [f"The Space Needle {text} is in", f"{text}Space Needle is", "Space Needle" + text]
    fact = {
        "prompt": chance.choice(texts),
        "subject": chance.choice(["Space Needle", "Needle", None, text]),
        "target": chance.choice(["Rome", text, f" {text}x", "R\u00f3ma"]),
        "neighbours": [chance.choice(texts)],
    }
    editor = cg.Rome(layer=chance.randint(0, 6), use_moment=False, contexts=Contexts(), steps=1)
    patch = cg.edit(place.lm, chance.choice([fact, [fact, fact], []]), editor)
    with patch.apply(place.lm):
        cg.answer(place.lm, "The Space Needle is in", max_new_tokens=1)


def try_prompt(place: Place, chance: random.Random) -> None:
    prompt = chance.choice([*NASTY, "", *VALUES])
    match chance.randrange(4):
        case 0:
            cg.ask(place.lm, prompt, max_new_tokens=chance.choice([1, 2]), top=1)
        case 1:
            cg.answer(place.lm, [prompt, "The river is"], max_new_tokens=1)
        case 2:
            cg.trace(place.lm, prompt, chance.choice(["is", None, ""]), samples=1)
        case _:
            cg.neurons(place.lm, prompt, paraphrases=[], steps=1)


def try_options(place: Place, chance: random.Random) -> None:
    del place
    method = chance.choice(METHODS.names())
    fields = [*METHODS.get(method).model_fields, "objekt", "lr", ""]
    values = [*NASTY, "3", "[1,2]", '{"prefixes": [""]}', "word"]
    chosen = [f"{chance.choice(fields)}={chance.choice(values)}" for _ in range(3)]
    if chance.random() < 0.1:
        chosen.append(chance.choice(NASTY))
    build_editor(chance.choice([method, method.upper(), method + "x"]), **parse_settings(chosen))


def try_transform(place: Place, chance: random.Random) -> None:
    del place
    name = chance.choice([*TRANSFORMS.names(), "none"])
    options = ",".join(
        f"{chance.choice(['keep', 'relative', 'rank', 'x'])}={chance.choice(NASTY)}"
        for _ in range(chance.randint(0, 2))
    )
    parse_transform(chance.choice([f"{name}:{options}", name, options]))


def try_recipe(place: Place, chance: random.Random) -> None:
    read_recipe(damaged_file(place, "recipe.toml", chance)).runs()


def try_state(place: Place, chance: random.Random) -> None:
    State.load(damaged_file(place, "state.safetensors", chance))


def try_patch(place: Place, chance: random.Random) -> None:
    patch = cg.load_patch(damaged_file(place, "patch.safetensors", chance))
    with patch.apply(place.lm):
        pass


def try_path(place: Place, chance: random.Random) -> None:
    """Places that hold no file, for everything that reads or writes one."""
    folder = place.folder
    path = chance.choice(
        [
            *(folder, folder / "absent", folder / "absent" / "x", folder / ("x" * 300)),
            *(folder / "pipe", folder / "loop", Path("/dev/full"), Path("/dev/zero"), Path("/")),
            *(Path("a\0b"), Path(), Path("\udcff"), folder / "empty", Path("/proc/self/mem")),
        ]
    )
    uses: list[Callable[[], object]] = [
        lambda: cg.read_facts(path),
        lambda: cg.load_patch(path),
        lambda: State.load(path),
        lambda: read_recipe(path),
        lambda: cg.load(path),
        lambda: State().save(path / "x"),
        lambda: cg.restore_merged(path, folder / "out"),
        lambda: cg.fit(place.lm, "memit", corpus=path),
        lambda: cg.report(path),
        lambda: cg.evaluate(path),
    ]
    chance.choice(uses)()


KINDS: dict[str, tuple[int, Callable[[Place, random.Random], None]]] = {
    "facts files": (15, try_facts_file),
    "facts": (20, try_facts),
    "edits": (5, try_edit),
    "prompts": (5, try_prompt),
    "options": (15, try_options),
    "transforms": (10, try_transform),
    "recipes": (10, try_recipe),
    "states": (7, try_state),
    "patches": (7, try_patch),
    "paths": (6, try_path),
}
"""Kinds of inputs: their share of the tries in percent, and the function of one try."""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    folder = tmp_path_factory.mktemp("fuzz")
    lm = tiny_model("llama")
    sound = {
        "facts.jsonl": "\n".join(json.dumps(RECORD) for _ in range(3)).encode(),
        "facts.json": json.dumps([RECORD] * 2, indent=1).encode(),
        "facts.csv": b"prompt,target_new,subject\nThe Space Needle is in,Rome,Space Needle\n",
        "facts.tsv": b"prompt\ttarget\nThe Space Needle is in\tRome\n",
        "recipe.toml": RECIPE.encode(),
    }
    editor = cg.Rome(layer=1, use_moment=False, contexts=Contexts(), steps=1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        made = cg.edit(lm, nearest_fact(lm), editor)
        state = cg.fit(lm, "memit", layer=1, corpus=["The river is long. " * 50], progress=False)
    sound["patch.safetensors"] = made.save(folder / "sound.safetensors").read_bytes()
    sound["state.safetensors"] = state.save(folder / "sound.safetensors").read_bytes()
    os.mkfifo(folder / "pipe")
    (folder / "loop").symlink_to(folder / "loop")
    (folder / "empty").touch()
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("CORRIGENDA_CACHE", str(folder / "cache"))
        patched.chdir(folder)
        yield Place(folder, lm, sound)


@contextmanager
def at_most(seconds: int) -> Iterator[None]:
    """Raise `TimeoutError` after some seconds."""

    def stop(*_: object) -> None:
        raise TimeoutError(f"hangs for {seconds} s")

    former = signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, former)


def test_the_shares_make_up_the_whole() -> None:
    assert sum(share for share, _ in KINDS.values()) == 100


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.filterwarnings("ignore")
def test_malformed_inputs_have_codes(kind: str, place: Place) -> None:
    share, attempt = KINDS[kind]
    digest = place.lm.digest()
    raw: dict[str, str] = {}
    for number in range(TRIES * share // 100):
        try:
            with at_most(SECONDS):
                attempt(place, random.Random(f"{SEED} {kind} {number}"))
        except CorrigendaError as error:
            str(error).encode("utf-8", "backslashreplace")
        except Exception as error:
            frames = traceback.extract_tb(error.__traceback__)
            own = [frame for frame in frames if "corrigenda" in frame.filename] or frames
            place_of = f"{Path(own[-1].filename).name}:{own[-1].lineno}"
            raw.setdefault(place_of, f"try {number}: {type(error).__name__}: {str(error)[:200]}")
        assert not place.lm.patches
    assert place.lm.digest() == digest
    assert raw == {}
