"""Names, cards, files, downloads, errors: what all benchmarks share."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from pathlib import Path

import pytest

from corrigenda import benchmarks
from corrigenda.benchmarks import files
from corrigenda.benchmarks.aliases import group_answers
from corrigenda.benchmarks.benchmark import BENCHMARKS
from corrigenda.benchmarks.files import BenchmarkFiles
from corrigenda.cases import Against, Case, Probe, Protocol
from corrigenda.errors import (
    BadConfig,
    MalformedRecords,
    MissingData,
    UnknownBenchmark,
    WriteFailed,
    WrongChecksum,
)
from tests.support.records import COUNTERFACT, FLAT, KLOB, MQUAKE, ZSRE, changed, only, write

PUBLISHED = {
    *("knowedit-recent", "knowedit-zsre", "knowedit-wikibio", "knowedit-counterfact"),
    *("knowedit-convsent", "knowedit-sanitation", "sanitation"),
    *("counterfact", "counterfact-flat", "counterfact-plus", "zsre", "mquake", "rippleedits"),
    *("conflictedit", "roundedit", "klob", "pocketedit"),
    *("qaedit", "unke", "akew", "hallueditbench", "taxi", "peak", "wise"),
    *("wikibigedit", "mquake-remastered", "cases"),
}


def test_names_are_those_with_a_card() -> None:
    assert set(BENCHMARKS.names()) == PUBLISHED


@pytest.mark.parametrize("name", sorted(PUBLISHED))
def test_card_and_class_agree(name: str) -> None:
    card, kind = BENCHMARKS.card(name), BENCHMARKS.get(name)
    assert card["name"] == name == kind.name
    assert {"title", "paper", "url", "licence", "edit"} <= set(card)
    text = BENCHMARKS.card_text(name)
    assert text.startswith("# ")
    assert "**Use it**" in text
    assert "## What is left out, and counted" in text
    built = BENCHMARKS.get(name)()
    assert built == BENCHMARKS.get(name)()
    for entry in card.get("files", []):  # type: ignore[attr-defined]
        assert len(entry.get("sha256", "0" * 64)) == 64
        if "part" in entry:
            assert BENCHMARKS.get(name)(part=entry["part"]).part == entry["part"]


def test_unknown_name_and_option_name_the_closest() -> None:
    with pytest.raises(UnknownBenchmark, match=r'CG508(.|\n)*Did you mean "counterfact"'):
        benchmarks.load("counterfac")
    with pytest.raises(BadConfig, match=r'CG502(.|\n)*Did you mean "direction"'):
        BENCHMARKS.get("zsre")(directoin="truth")
    with pytest.raises(BadConfig, match="part"):
        BENCHMARKS.get("zsre")(part="exam")


def test_reading_needs_no_torch(tmp_path: Path) -> None:
    path = write(tmp_path / "zsre.json", [ZSRE])
    code = (
        "import sys; from corrigenda import benchmarks;"
        "from corrigenda.benchmarks.benchmark import BENCHMARKS;"
        "[BENCHMARKS.get(n) for n in BENCHMARKS.names()];"
        "benchmarks.load('zsre', sys.argv[1]); benchmarks.load('pocketedit', size=2);"
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code, path], check=False).returncode == 0


def test_loaded_counts_everything(tmp_path: Path) -> None:
    records = [
        ZSRE,
        changed(ZSRE, subject="Nothing"),
        changed(ZSRE, subject="tower", src="Which tower is the tower?"),
        changed(ZSRE, alt=" "),
        changed(ZSRE, loc_ans=""),
    ]
    path = write(tmp_path / "any-name.json", records)
    loaded = benchmarks.load("zsre", path)
    assert loaded.counts["records"] == 5
    assert loaded.counts["cases"] == len(loaded) == 2
    assert loaded.counts["probes"] == sum(len(case.probes) for case in loaded)
    assert loaded.dropped == {
        "the subject is not in the prompt": 1,
        "the subject occurs in the prompt more than once": 1,
        "the prompt or the target is empty": 1,
    }
    assert loaded.skipped == {"locality/unrelated_question: no answer": 1}
    assert loaded.flagged == {"another record has the same prompt": 2}
    assert [case.id for case in loaded] == ["0", "4"]
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    assert loaded.files == (files.SourceFile("any-name.json", digest),)
    assert len(benchmarks.load("zsre", path, limit=1)) == 1


def test_a_folder_is_searched_for_the_public_name(tmp_path: Path) -> None:
    write(tmp_path / "deep" / "down" / "zsre_mend_eval.json", [ZSRE])
    assert len(benchmarks.load("zsre", tmp_path)) == 1
    with pytest.raises(MissingData, match=r"CG604(.|\n)*part \"train\"(.|\n)*zsre_mend_train.json"):
        benchmarks.load("zsre", tmp_path, part="train")
    with pytest.raises(MissingData, match=r"at .*nowhere"):
        benchmarks.load("zsre", tmp_path / "nowhere")


def test_a_record_with_the_id_of_another_is_dropped(tmp_path: Path) -> None:
    path = write(tmp_path / "counterfact.json", [COUNTERFACT, COUNTERFACT])
    loaded = benchmarks.load("counterfact", path)
    assert loaded.dropped == {"another record has the same id": 1}
    assert only(loaded).id == "7"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[{", "not JSON"),
        ('{"a": 1}', "no list of records"),
        ('[{"subject": 3}]', r"record 0: subject: (.|\n)*record 0: src: Field required"),
    ],
)
def test_a_file_of_another_schema_is_an_error(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "zsre.json"
    path.write_text(content)
    with pytest.raises(MalformedRecords, match=rf"CG603(.|\n)*{message}"):
        benchmarks.load("zsre", path)


def test_a_file_that_is_no_text_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "zsre.json"
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(MalformedRecords, match="cannot be read"):
        benchmarks.load("zsre", path)


def test_many_problems_are_cut_short(tmp_path: Path) -> None:
    path = write(tmp_path / "zsre.json", [{}] * 50)
    with pytest.raises(MalformedRecords, match=r"50 record\(s\)") as caught:
        benchmarks.load("zsre", path)
    assert len(str(caught.value).splitlines()) < 20


def published(path: Path, **fields: object) -> dict[str, object]:
    """A card whose only file is offered at the address of a local one."""
    return {"name": "made-up", "files": [{"name": "file.json", "url": path.as_uri(), **fields}]}


def test_a_download_is_checked_and_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CORRIGENDA_CACHE", str(tmp_path / "cache"))
    source = write(tmp_path / "source.json", [1, 2])
    digest = hashlib.sha256(source.read_bytes()).hexdigest()
    card = published(source, sha256=digest)
    kept = BenchmarkFiles(card, "", None).find_main()
    assert kept == tmp_path / "cache" / "benchmarks" / "made-up" / "file.json"
    assert kept.read_bytes() == source.read_bytes()
    source.unlink()
    assert BenchmarkFiles(card, "", None).find_main() == kept


def test_another_file_than_the_published_one_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CORRIGENDA_CACHE", str(tmp_path / "cache"))
    source = write(tmp_path / "source.json", [1, 2])
    with pytest.raises(WrongChecksum, match=r"CG605(.|\n)*expected 000000000000"):
        BenchmarkFiles(published(source, sha256="0" * 64), "", None).find_main()
    assert [path for path in (tmp_path / "cache").rglob("*") if path.is_file()] == []


def test_a_failed_download_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CORRIGENDA_CACHE", str(tmp_path / "cache"))
    with pytest.raises(MissingData, match=r"cannot be downloaded(.|\n)*give its path"):
        BenchmarkFiles(published(tmp_path / "gone.json"), "", None).find_main()
    with pytest.raises(MissingData, match="no public address"):
        benchmarks.load("knowedit-convsent")


def test_addresses_are_relative_to_the_home_of_the_card(tmp_path: Path) -> None:
    card = {
        "name": "made-up",
        "home": f"{tmp_path.as_uri()}/",
        "files": [{"name": "a.json", "url": "deep/a.json"}],
    }
    write(tmp_path / "deep" / "a.json", [])
    assert (
        BenchmarkFiles(card, "", None)._public[0]["url"] == (tmp_path / "deep" / "a.json").as_uri()
    )


@pytest.mark.parametrize(
    ("answers", "found"),
    [
        ("a", (("a",),)),
        (" ", ()),
        (None, ()),
        ([], ()),
        (["a", "", "b"], (("a", "b"),)),
        ([["a", "b"], [], ["c"]], (("a", "b"), ("c",))),
        ([[]], ()),
    ],
)
def test_answers_come_in_three_forms(answers: object, found: object) -> None:
    assert group_answers(answers) == found  # type: ignore[arg-type]


def test_a_case_can_be_asked_under_other_protocols() -> None:
    probes = (
        Probe(prompt="a", expected=(("b",),), role="reliability", protocol=Protocol.RANK),
        Probe(prompt="a", role="fluency", protocol=Protocol.GREEDY),
        Probe(prompt="c", expected=(("d",),), role="condition", protocol=Protocol.GREEDY),
        Probe(
            prompt="c",
            expected=(("d",),),
            role="locality/x",
            protocol=Protocol.TEACHER_FORCED,
            against=Against.UNEDITED,
            divergence=True,
        ),
    )
    case = Case(id="1", facts=(), probes=probes).under(Protocol.GREEDY, Protocol.TEACHER_FORCED)
    assert [probe.protocol for probe in case.probes[:2]] == ["greedy", "teacher_forced"]
    assert case.probes[2:] == probes[1:]
    assert probes[0].answer == "b"
    assert probes[1].answer is None
    assert case.edits == ((),)


# Records of two other public sets: an edit with one locality prompt, and the same flattened.
WISE = {
    "subject": "Ada Quill",
    "prompt": "Ada Quill was born in",
    "target_new": "Oslo",
    "rephrase_prompt": "The birthplace of Ada Quill is",
    "locality_prompt": "Cheese is made of",
    "locality_ground_truth": "milk",
}


@pytest.mark.parametrize("name", ["knowedit-counterfact", "knowedit-recent", "knowedit-zsre"])
@pytest.mark.parametrize("record", [WISE, FLAT], ids=["wise", "flat"])
def test_a_file_without_the_probes_of_its_schema_is_refused(
    tmp_path: Path, name: str, record: dict
) -> None:
    path = write(tmp_path / "a.json", [record, record])
    with pytest.raises(MalformedRecords) as caught:
        benchmarks.load(name, path)
    assert "CG603" in str(caught.value)
    assert "no record gives a probe of portability or locality" in str(caught.value)
    assert "another benchmark than" in str(caught.value)
    assert "locality_prompt (2)" in str(caught.value)
    with pytest.raises(MalformedRecords, match="no record gives a probe"):
        benchmarks.load(name, path, limit=1)


def test_unknown_fields_are_counted(tmp_path: Path) -> None:
    records = [ZSRE, changed(ZSRE, subject="Vero", note="", src="Vero?"), changed(ZSRE, note=1)]
    loaded = benchmarks.load("zsre", write(tmp_path / "z.json", records))
    assert loaded.unknown_fields == {"cond": 3, "note": 2}
    klob = benchmarks.load("klob", write(tmp_path / "k.json", KLOB["r"]), part="r")
    assert klob.unknown_fields == {}


def test_with_a_limit_the_expected_probes_may_be_in_a_case_that_is_not_drawn(
    tmp_path: Path,
) -> None:
    records = [changed(ZSRE, loc=""), changed(ZSRE, src="When was Vero tower made?")]
    path = write(tmp_path / "z.json", records)
    drawn = {only(BENCHMARKS.get("zsre")().load(path, limit=1, seed=s)).id for s in range(9)}
    assert drawn == {"0", "1"}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"[" * 3000 + b"]" * 3000, "nested deeper than"),
        (b"[" + b"9" * 5000 + b"]", "an integer of 5000 digits"),
        (b'[{"answer": NaN}]', "NaN is no finite number"),
        (b'[{"answer": -Infinity}]', "-Infinity is no finite number"),
        (b'[{"src": "\\ud800"}]', "lone surrogate"),
        (b'[{"src": "\\ud83d\\ude00"}]', "record 0: subject: Field required"),
        ("[]".encode("utf-16"), "cannot be read"),
        (b"", "not JSON"),
    ],
    ids=["deep", "digits", "nan", "infinity", "surrogate", "pair", "utf-16", "empty"],
)
@pytest.mark.parametrize("suffix", [".json", ".jsonl"])
def test_limits_of_json_are_errors_with_a_code(
    tmp_path: Path, content: bytes, message: str, suffix: str
) -> None:
    path = tmp_path / f"zsre{suffix}"
    if suffix == ".jsonl":
        if not content:
            return
        if content.startswith(b"[{"):
            content = b"\n" + content[1:-1]
    path.write_bytes(content)
    with pytest.raises(MalformedRecords, match=rf"CG603(.|\n)*{message}"):
        benchmarks.load("zsre", path)


def test_a_byte_order_mark_is_no_error(tmp_path: Path) -> None:
    path = write(tmp_path / "zsre.json", [ZSRE])
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert len(benchmarks.load("zsre", path)) == 1


def test_a_file_too_large_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "_MOST_BYTES", 10)
    with pytest.raises(MalformedRecords, match=r"CG603(.|\n)*larger than"):
        benchmarks.load("zsre", write(tmp_path / "zsre.json", [ZSRE]))


def test_an_accompanying_file_that_is_no_text_is_an_error(tmp_path: Path) -> None:
    path = write(tmp_path / "m.json", [MQUAKE])
    (tmp_path / "multihop-prompts.txt").write_bytes(b"\xff\xfe")
    with pytest.raises(MalformedRecords, match=r"CG603(.|\n)*multihop-prompts.txt"):
        benchmarks.load("mquake", path)


def test_a_cache_that_cannot_be_made_is_an_error_with_a_code(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("CORRIGENDA_CACHE", str(tmp_path / "file"))
    with pytest.raises(WriteFailed, match="CG601"):
        benchmarks.load("counterfact")
