"""Where the text for statistics comes from, and statistics published by others."""

from __future__ import annotations

import gzip
import json
import sys
import types
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from torch import Tensor

from corrigenda.errors import BadConfig, CorruptFile, MissingExtra, MissingState, PickleRefused
from corrigenda.lm.model import LanguageModel
from corrigenda.lm.sites import Site
from corrigenda.state import State
from corrigenda.statistics import Corpus, fit_moments, read_npz
from corrigenda.statistics.corpus import read_documents
from corrigenda.testing.tiny import tiny_model

SITES = (Site(0), Site(2))
TEXTS = [
    f"{place} is a town of {number} people, and its {thing} is old."
    for number, place in enumerate(("Arles", "Bergen", "Cork", "Delft"), start=7)
    for thing in ("bridge", "market")
]

pytestmark = pytest.mark.filterwarnings("ignore:Few keys")


@pytest.fixture(scope="module")
def lm() -> LanguageModel:
    return tiny_model("gpt2", seed=0)


def relative(ours: Tensor, theirs: Tensor) -> float:
    return float((ours - theirs).norm() / theirs.norm())


def test_endless_text_is_read_no_further_than_needed(lm: LanguageModel) -> None:
    def endless() -> Iterator[str]:
        while True:
            yield "Rome is a city. "

    state = fit_moments(lm, SITES, Corpus(endless(), num_tokens=500, length=32), keep=False)
    assert state.moment(SITES[0]).count == state.meta["corpus"]["num_tokens"] == 500


def test_sources_agree(lm: LanguageModel, tmp_path: Path) -> None:
    lines, records = tmp_path / "a.txt", tmp_path / "a.jsonl"
    lines.write_text("\n\n".join(TEXTS) + "\n", encoding="utf-8")
    both = [json.dumps({"text": text} if i % 2 else text) for i, text in enumerate(TEXTS)]
    records.write_text("\n".join(both), encoding="utf-8")
    states = [
        fit_moments(lm, SITES, source, keep=False)
        for source in (TEXTS, iter(TEXTS), lines, str(lines), records, [lines], Corpus(lines))
    ]
    assert all(state == states[0] for state in states)


def test_data_sets_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def load_dataset(path: str, config: str | None, *, split: str, streaming: bool) -> object:
        asked.append((path, config, split, streaming))
        if path == "absent":
            raise ValueError("no such data set")
        return [{"id": 1, "body" if path == "odd" else "text": text} for text in TEXTS]

    fake = types.ModuleType("datasets")
    fake.__spec__ = types.SimpleNamespace()  # type: ignore[assignment]  # only its presence counts
    fake.load_dataset = load_dataset  # type: ignore[attr-defined]  # stands in for the package
    monkeypatch.setitem(sys.modules, "datasets", fake)
    assert list(read_documents("datasets:Salesforce/wikitext:wikitext-2-v1:test")) == TEXTS
    assert list(read_documents([Path("datasets:odd")])) == TEXTS
    assert asked == [
        ("Salesforce/wikitext", "wikitext-2-v1", "test", True),
        ("odd", None, "train", True),
    ]
    with pytest.raises(BadConfig, match="absent"):
        list(read_documents("datasets:absent"))
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(MissingExtra, match=r"corrigenda\[corpus\]"):
        list(read_documents("datasets:odd"))


def test_unreadable_text_is_named(tmp_path: Path) -> None:
    with pytest.raises(BadConfig, match=r"absent\.txt"):
        list(read_documents(tmp_path / "absent.txt"))
    binary = tmp_path / "text.txt.gz"
    binary.write_bytes(gzip.compress(b"Rome"))
    with pytest.raises(BadConfig, match=r"text\.txt\.gz"):
        list(read_documents(binary))
    bad = tmp_path / "bad.jsonl"
    for line, reason in (('{"text": 1}', "JSON string"), ('{"text"', "not JSON")):
        bad.write_text('"Rome"\n' + line)
        with pytest.raises(BadConfig, match=rf"(?s){reason}.*bad\.jsonl:2"):
            list(read_documents(bad))


def write_npz(path: Path, total: np.ndarray, count: int) -> Path:
    np.savez(
        path, **{"mom2.mom2": total, "mom2.count": count, "mom2.constructor": "x.SecondMoment()"}
    )
    return path


def test_reference_files_are_read(lm: LanguageModel, tmp_path: Path) -> None:
    moment = fit_moments(lm, SITES, TEXTS, keep=False).moment(SITES[0])
    total = (moment.covariance() * moment.count).float().numpy()
    state = read_npz({Site(7): write_npz(tmp_path / "a.npz", total, moment.count)})
    theirs = state.moment(Site(7))
    assert theirs.count == moment.count
    assert relative(theirs.covariance(), moment.covariance()) < 1e-6
    assert bool(theirs.mean.isnan().all())
    assert State.load(state.save(tmp_path / "state.safetensors")) == state
    with pytest.raises(MissingState):
        state.moment(SITES[0])


def test_reference_files_never_run_code(tmp_path: Path) -> None:
    pickled = write_npz(tmp_path / "a.npz", np.array([{"a": 1}], dtype=object), 3)
    with pytest.raises(PickleRefused, match="CG403"):
        read_npz({Site(0): pickled})
    square = np.eye(3, dtype=np.float32)
    for name, content in (
        ("empty.npz", b""),
        ("text.npz", b"PK no archive"),
        ("half.npz", write_npz(tmp_path / "b.npz", square, 3).read_bytes()[:200]),
    ):
        (tmp_path / name).write_bytes(content)
        with pytest.raises((CorruptFile, PickleRefused)):
            read_npz({Site(0): tmp_path / name})
    np.savez(tmp_path / "other.npz", x=square)
    for bad in (
        tmp_path / "absent.npz",
        tmp_path / "other.npz",
        write_npz(tmp_path / "c.npz", square[:2], 3),
        write_npz(tmp_path / "d.npz", square, 0),
    ):
        with pytest.raises(CorruptFile, match=r"CG402.*second moments"):
            read_npz({Site(0): bad})
