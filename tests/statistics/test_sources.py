"""Where the text for statistics comes from, and statistics published by others."""

from __future__ import annotations

import gzip
import io
import json
import random
import sys
import types
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from torch import Tensor

from corrigenda.almanac.corpus import texts
from corrigenda.errors import BadConfig, CorruptFile, MissingExtra, MissingState, PickleRefused
from corrigenda.lm.model import LanguageModel
from corrigenda.lm.sites import Site
from corrigenda.state import State
from corrigenda.statistics import Corpus, fit_moments, read_npz
from corrigenda.statistics.corpus import OWN_TEXT, complete_corpus, read_documents
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


def archive(**arrays: object) -> bytes:
    """An NPZ file with these arrays."""
    content = io.BytesIO()
    np.savez(content, **arrays)  # type: ignore[arg-type]  # names of arrays
    return content.getvalue()


EYE = np.eye(3)


@pytest.mark.parametrize(
    "content",
    [
        archive(**{"mom2.mom2": EYE.astype(str), "mom2.count": np.array(5)}),
        archive(**{"mom2.mom2": EYE * np.nan, "mom2.count": np.array(5)}),
        archive(**{"mom2.mom2": EYE, "mom2.count": np.array([5, 6])}),
        archive(**{"mom2.mom2": EYE, "mom2.count": np.array("a")}),
        archive(**{"mom2.mom2": EYE, "mom2.count": np.array(np.inf)}),
        archive(**{"mom2.mom2": EYE, "mom2.count": np.array(2**63, dtype=np.uint64)}),
        archive(**{"mom2.mom2": EYE + 1j, "mom2.count": np.array(5)}),
        archive(**{"mom2.mom2": np.zeros((0, 0)), "mom2.count": np.array(5)}),
        b"\x93NUMPY" + bytes(20),
    ],
    ids=["text", "nan", "counts", "word", "infinite", "huge", "complex", "empty", "header"],
)
def test_archives_with_other_arrays_are_corrupt(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "a.npz"
    path.write_bytes(content)
    with pytest.raises(CorruptFile, match="CG402"):
        read_npz({Site(0): path})


def test_one_array_is_no_archive(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", EYE)
    with pytest.raises(CorruptFile, match=r"CG402(.|\n)*no archive of arrays"):
        read_npz({Site(0): tmp_path / "a.npy"})


def test_archives_damaged_at_random_are_read_or_refused(tmp_path: Path) -> None:
    whole = archive(**{"mom2.mom2": EYE.astype(np.float32), "mom2.count": np.array(5)})
    draw = random.Random(1)
    path = tmp_path / "a.npz"
    refused = 0
    for _ in range(400):
        content = bytearray(whole)
        for _ in range(draw.randint(1, 4)):
            content[draw.randrange(len(content))] = draw.randrange(256)
        path.write_bytes(bytes(content[: draw.randrange(len(content), len(content) * 2)]))
        try:
            read_npz({Site(0): path})
        except (CorruptFile, PickleRefused):
            refused += 1
    assert 0 < refused <= 400


def test_a_text_with_half_a_character_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('"\\ud800 hello"\n', encoding="utf-8")
    for source in (path, ["\ud800 hello"]):
        with pytest.raises(BadConfig, match=r"CG502(.|\n)*lone surrogate"):
            list(read_documents(source))


def test_the_default_text_is_that_of_the_package_in_rows_of_one_document() -> None:
    shipped = LanguageModel.load("pocket")
    lm = LanguageModel(shipped.model, shipped.tokenizer, name="mine")
    for one, chosen in ((lm, True), (shipped, False)):
        found = complete_corpus(one, None)
        assert (found.pack, found.chosen) == (False, chosen)
        assert next(iter(found.source)) == next(texts())
    assert complete_corpus(lm, Corpus(OWN_TEXT)).source == OWN_TEXT
    given = complete_corpus(lm, ["Rome is a city."])
    assert (given.source, given.pack, given.chosen) == (["Rome is a city."], True, False)


def test_a_tokenizer_that_is_not_made_for_english_gets_text_of_the_model() -> None:
    lm = tiny_model("gpt2")
    ids = lm.tokenizer(next(texts())).input_ids
    assert len(next(texts())) < 2 * len(ids)
    assert complete_corpus(lm, None).source == OWN_TEXT


def test_the_shrinkage_of_a_fit_can_be_given() -> None:
    lm = tiny_model("gpt2")
    text = ["Rome is a city of many people."] * 60
    state = fit_moments(lm, SITES, Corpus(text, shrinkage=0.0), keep=False)
    assert state.shrinkage(SITES[0]) == 0.0
    assert state.meta["moments"][str(SITES[0])]["shrinkage"] == 0.0
    with pytest.raises(BadConfig, match="shrinkage"):
        Corpus(text, shrinkage=1.5)
