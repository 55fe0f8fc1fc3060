"""The loader of text, JSON and TOML: limits, encodings, and files that are none."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from corrigenda import text_files
from corrigenda.errors import CorruptFile, WriteFailed
from corrigenda.files import write_text
from corrigenda.patch import load_patch
from corrigenda.state import State
from corrigenda.text_files import (
    MOST_LEVELS,
    NotJson,
    UnreadableText,
    check_text,
    decode,
    parse_json,
    parse_json_lines,
    parse_toml,
    parse_value,
    read_bytes,
    read_json,
    read_text,
    read_toml,
)

JSON = [
    ("NaN", "NaN is no finite number"),
    ('{"a": [-Infinity]}', "-Infinity is no finite number"),
    ("1e999", "1e999 is no finite number"),
    ("9" * 101, "an integer of 101 digits"),
    ("[" + "9" * 5000 + "]", "an integer of 5000 digits"),
    ("[" * 2000 + "]" * 2000, f"nested deeper than {MOST_LEVELS} levels"),
    ("[" * 70 + "]" * 70, f"nested deeper than {MOST_LEVELS} levels"),
    ('{"a":' * 70 + "1" + "}" * 70, f"nested deeper than {MOST_LEVELS} levels"),
    ("[" * 200_000, "nested deeper|not JSON"),
    ('"\\ud800"', "lone surrogate"),
    ('{"\\uDC00x": 1}', "lone surrogate"),
    ('["a", {"b": "\\u0000"}]', "NUL"),
]


@pytest.mark.parametrize(("text", "why"), JSON, ids=range(len(JSON)))
def test_json_beyond_the_limits_is_refused(text: str, why: str) -> None:
    with pytest.raises(UnreadableText, match=why):
        parse_json(text)
    with pytest.raises(UnreadableText, match=why):
        parse_value(text)
    (line,) = parse_json_lines(text)
    assert line[0] == 1
    assert isinstance(line[1], UnreadableText)


@pytest.mark.parametrize("text", ["", "{", "{'a': 1}", "[1,]", "nul", "\x01", '"\t"'])
def test_what_is_no_json_is_told_apart(text: str) -> None:
    with pytest.raises(NotJson, match=r"not JSON \(.* at (line \d+, )?column \d+\)"):
        parse_json(text)
    assert parse_value(text) == text


def test_json_within_the_limits_is_read() -> None:
    assert parse_json('{"a": [1, 2.5, null, true, "\\ud83d\\ude00 \\u2028"]}') == {
        "a": [1, 2.5, None, True, "\U0001f600 \u2028"]
    }
    assert parse_json("9" * 100) == int("9" * 100)
    deep = "[" * 60 + "]" * 60
    assert parse_json(deep) is not None
    assert str(parse_json("[NaN]", strict=False)) == "[nan]"
    assert parse_json('"\\u0000"', strict=False) == "\0"
    lines = list(parse_json_lines('1\n\n"a\u2028b"\r\n{'))
    assert [number for number, _ in lines] == [1, 3, 4]
    assert lines[1][1] == "a\u2028b"
    assert isinstance(lines[2][1], NotJson)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("a = nan", "no finite number"),
        ("a = [-inf]", "no finite number"),
        ("a = 1e999", "no finite number"),
        ("a = " + "9" * 5000, "digits"),
        ("a = " + "9" * 200, "digits"),
        ("a = " + "[" * 2000 + "]" * 2000, "nested deeper"),
        ("a = " + "[" * 80 + "]" * 80, "nested deeper"),
        ('a = "\\u0000"', "NUL"),
        ("a = ", "not TOML"),
        ("a = 1\na = 2", "not TOML"),
    ],
)
def test_toml_beyond_the_limits_is_refused(text: str, why: str) -> None:
    with pytest.raises(UnreadableText, match=why):
        parse_toml(text)


@pytest.mark.parametrize(
    ("content", "why"),
    [
        ("{}".encode("utf-16"), "UTF-16, not UTF-8"),
        ("{}".encode("utf-16-be").join([b"\xfe\xff", b""]), "UTF-16, not UTF-8"),
        ("{}".encode("utf-32"), "UTF-32, not UTF-8"),
        (b'{"a": "caf\xe9"}', "not UTF-8: byte 0xe9 at 10"),
        (b"{}\0", "NUL at character 2"),
    ],
)
def test_other_encodings_are_named(tmp_path: Path, content: bytes, why: str) -> None:
    path = tmp_path / "a.json"
    path.write_bytes(content)
    with pytest.raises(UnreadableText, match=why):
        read_text(path)
    with pytest.raises(UnreadableText, match=why):
        decode(content)


def test_a_byte_order_mark_is_dropped(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_bytes(b'\xef\xbb\xbf{"a": 1}')
    assert read_json(path) == {"a": 1}
    path.write_bytes(b"\xef\xbb\xbfa = 1")
    assert read_toml(path) == {"a": 1}


def test_files_have_a_largest_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(b"x" * 100)
    assert len(read_bytes(path, most=100)) == 100
    with pytest.raises(UnreadableText, match="larger than"):
        read_bytes(path, most=99)
    monkeypatch.setattr(text_files, "_AT_ONCE", 7)
    assert len(read_bytes(path, most=1000)) == 100
    sparse = tmp_path / "sparse.json"
    with sparse.open("wb") as file:
        file.truncate(1 << 36)
    with pytest.raises(UnreadableText, match="larger than 256 MiB"):
        read_json(sparse)


def test_what_is_no_file_is_refused(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    for path, why in [
        (tmp_path, "it is a folder"),
        (tmp_path / "absent", "No such file"),
        (tmp_path / "absent" / "a", "No such file"),
        (Path("/dev/zero"), "it is no plain file"),
        (Path("/dev/full"), "it is no plain file"),
        (pipe, "it is no plain file"),
        ("a\0b", "null"),
        (tmp_path / ("x" * 300), "too long"),
    ]:
        with pytest.raises(UnreadableText, match=why):
            read_bytes(path)
        with pytest.raises(UnreadableText, match=why):
            text_files.check_plain_file(path)


def test_texts_hold_characters_only() -> None:
    assert check_text("caf\u00e9 \U0001f600") == "caf\u00e9 \U0001f600"
    for text, why in [("a\0", "NUL"), ("caf\udce9", "lone surrogate")]:
        with pytest.raises(UnreadableText, match=why) as info:
            check_text(text)
        str(info.value).encode()


def test_devices_are_not_replaced(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    link = tmp_path / "link"
    link.symlink_to(pipe)
    for path in (pipe, link):
        with pytest.raises(WriteFailed, match=r"CG601 .*no plain file and is not replaced"):
            write_text(path, "x")
    assert pipe.is_fifo()
    for path in (tmp_path / "a\0b", Path("/")):
        with pytest.raises(WriteFailed, match=r"CG601 "):
            write_text(path, "x")


@pytest.mark.parametrize("read", [State.load, load_patch])
def test_a_pipe_is_refused_and_not_waited_for(
    tmp_path: Path, read: Callable[[Path], object]
) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with pytest.raises(CorruptFile, match=r"CG402 .*no plain file"):
        read(pipe)
