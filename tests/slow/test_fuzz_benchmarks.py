"""Benchmark files damaged at random are read, or refused with a code, without hanging.

`CORRIGENDA_FUZZ` sets the number of damaged files (default 1,500).
"""

from __future__ import annotations

import copy
import json
import os
import random
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from corrigenda import benchmarks
from corrigenda.errors import CorrigendaError
from tests.support.records import (
    COMPOSITE,
    CONFLICT_PROMPTS,
    CONVSENT,
    COUNTERFACT,
    COUNTERFACT_WIKI,
    COVERAGE,
    FLAT,
    KLOB,
    MQUAKE,
    RECENT,
    REVERSE,
    RIPPLE,
    ROUND,
    ROUND_PROMPTS,
    SANITATION,
    TRIVIA_TEST,
    TRIVIA_TRAIN,
    WIKIBIO,
    ZSRE,
    ZSRE_WIKI,
)

pytestmark = pytest.mark.slow

TRIES = int(os.environ.get("CORRIGENDA_FUZZ", "1500"))
SEED = 20260101
LONGEST_SECONDS = 20.0

# Benchmark, its part, and its files with their content.
SOURCES: list[tuple[str, str, dict[str, object]]] = [
    ("knowedit-recent", "", {"a.json": [RECENT]}),
    ("knowedit-counterfact", "", {"a.json": [COUNTERFACT_WIKI]}),
    ("knowedit-zsre", "", {"a.json": [ZSRE_WIKI]}),
    ("knowedit-wikibio", "", {"a.json": [WIKIBIO]}),
    ("knowedit-convsent", "", {"a.json": CONVSENT}),
    (
        "knowedit-sanitation",
        "",
        {"trivia_qa_train.json": TRIVIA_TRAIN, "trivia_qa_test.json": TRIVIA_TEST},
    ),
    ("sanitation", "", dict(SANITATION)),
    ("counterfact", "", {"a.json": [COUNTERFACT]}),
    ("counterfact-plus", "", {"a.json": [COUNTERFACT]}),
    ("counterfact-flat", "", {"a.json": [FLAT]}),
    ("zsre", "", {"a.json": [ZSRE]}),
    ("mquake", "", {"a.json": [MQUAKE], "rel-prompts.json": {"P36": "Q: a A: b"}}),
    ("rippleedits", "", {"a.json": [RIPPLE]}),
    (
        "conflictedit",
        "",
        {"a.json": [REVERSE, COMPOSITE, COVERAGE], "conflict_prompts.json": CONFLICT_PROMPTS},
    ),
    ("roundedit", "", {"a.json": [ROUND], "round_prompts.json": ROUND_PROMPTS}),
    *(("klob", part, {"a.json": records}) for part, records in KLOB.items()),
]

VALUES: tuple[object, ...] = (
    *(None, True, 0, -1, 10**30, 1.5, "", " ", "{}", "{} {}", "{0}", "\x00", "\n", "\u2028"),
    *("Ada " * 2000, "e\u0301\u200d", [], [[]], [""], {}, {"a": 1}, [[[]]], ["a", ["b"]]),
)

RAW: tuple[bytes, ...] = (
    *(b"", b"\xff\xfe\x00", b"\xef\xbb\xbf[]", b"NaN", b"[NaN]", b'["\\ud800"]', b"[1e999]"),
    *(b"[" * 3000 + b"]" * 3000, b"[" + b"9" * 5000 + b"]", b"\x00" * 100, b"{}", b"[{}]"),
    *("[]".encode("utf-16"), b'{"a":' * 2000 + b"1" + b"}" * 2000),
)


def list_places(value: object) -> list[tuple[object, object]]:
    """Return every container of a document with each of its keys or indices."""
    keys = (
        list(value)
        if isinstance(value, dict)
        else range(len(value))
        if isinstance(value, list)
        else []
    )
    found: list[tuple[object, object]] = [(value, key) for key in keys]
    return found + [place for key in keys for place in list_places(value[key])]  # type: ignore[index]


def replace_value(document: object, draw: random.Random) -> object:
    container, key = draw.choice(list_places(document))
    container[key] = copy.deepcopy(draw.choice(VALUES))  # type: ignore[index]
    return document


def remove_value(document: object, draw: random.Random) -> object:
    container, key = draw.choice(list_places(document))
    del container[key]  # type: ignore[attr-defined]
    return document


def repeat_value(document: object, draw: random.Random) -> object:
    container, key = draw.choice(list_places(document))
    container[key] = [container[key]] * draw.randrange(4)  # type: ignore[index]
    return document


def rename_field(document: object, draw: random.Random) -> object:
    places = [place for place in list_places(document) if isinstance(place[0], dict)]
    if places:
        container, key = draw.choice(places)
        container[f"{key}_new"] = container.pop(key)  # type: ignore[attr-defined,index]
    return document


DAMAGES: tuple[Callable[[object, random.Random], object], ...] = (
    replace_value,
    remove_value,
    repeat_value,
    rename_field,
)


def damage(content: object, name: str, draw: random.Random) -> bytes:
    """Return a damaged file: other values, other bytes, cut off, or something else."""
    document = copy.deepcopy(content)
    for _ in range(draw.randint(0, 3)):
        if list_places(document):
            document = draw.choice(DAMAGES)(document, draw)
    if name.endswith(".jsonl") and isinstance(document, list):
        data = "\n".join(map(json.dumps, document)).encode()
    else:
        data = json.dumps(document, ensure_ascii=draw.random() < 0.5).encode()
    form = draw.random()
    if form < 0.05:
        return draw.choice(RAW)
    if form < 0.1:
        return data[: draw.randrange(len(data) + 1)]
    if form < 0.15 and data:
        at = draw.randrange(len(data))
        return data[:at] + bytes([draw.randrange(256)]) + data[at + 1 :]
    return data


def test_damaged_files_are_read_or_refused_with_a_code(tmp_path: Path) -> None:
    draw = random.Random(SEED)
    read = refused = 0
    for number in range(TRIES):
        name, part, contents = draw.choice(SOURCES)
        folder = tmp_path / str(number)
        folder.mkdir()
        chosen = draw.choice(list(contents))
        for file, content in contents.items():
            intact = "\n".join(map(json.dumps, content)) if file.endswith("l") else None
            data = (intact or json.dumps(content)).encode()
            (folder / file).write_bytes(damage(content, file, draw) if file == chosen else data)
        source = folder / "a.json" if "a.json" in contents else folder
        options = {"part": part} if part else {}
        start = time.perf_counter()
        try:
            loaded = benchmarks.load(name, source, limit=draw.choice([None, 1]), **options)
        except CorrigendaError as error:
            refused += 1
            message = str(error)
        except Exception as error:
            pytest.fail(f"try {number}, {name}, {chosen}: {type(error).__name__}: {error}")
        else:
            read += 1
            message = ""
            texts = [probe.prompt for case in loaded for probe in case.probes]
            "".join(texts).encode()
        assert len(message) < 20_000
        assert time.perf_counter() - start < LONGEST_SECONDS
    assert read
    assert refused
