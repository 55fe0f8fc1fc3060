"""`corrigenda benchmarks`: list the benchmarks, or read one and show what it holds."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.text import Text

from corrigenda.cli import options, output
from corrigenda.errors import BadConfig, did_you_mean

_SHOWN = 3
_LONGEST = 100


def benchmarks(
    name: Annotated[
        str | None,
        typer.Argument(
            metavar="[NAME]",
            help="Benchmark to read; all are listed if not given.",
            show_default=False,
        ),
    ] = None,
    path: Annotated[
        Path | None,
        typer.Argument(
            metavar="[PATH]",
            help="Its file or folder; the public download if not given.",
            show_default=False,
        ),
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="OPTION=VALUE",
            help="Set an option of the benchmark, such as part=train; may be repeated.",
            show_default=False,
        ),
    ] = None,
    limit: Annotated[
        int | None, typer.Option("--limit", min=1, help="Read this many cases at most.")
    ] = None,
    case: Annotated[str | None, typer.Option("--case", help="Id of the case to show.")] = None,
    as_json: options.AsJson = False,
) -> None:
    """List the benchmarks; with NAME, read one: count its cases and probes, and show a case."""
    if name is None:
        if settings or limit is not None or case is not None:
            raise BadConfig(
                "options of a benchmark need its name.",
                hint="Write `corrigenda benchmarks NAME --limit 10`; without NAME all are listed.",
            )
        _list(as_json)
    else:
        _read(name, path, options.parse_settings(settings), limit, case, as_json)


def _list(as_json: bool) -> None:
    """Print what is edited, the parts, and the download of every benchmark."""
    from corrigenda.benchmarks.benchmark import BENCHMARKS

    rows = []
    for name in BENCHMARKS.names():
        card = BENCHMARKS.card(name)
        files = [entry for entry in card.get("files", []) if not entry.get("extra")]  # type: ignore[attr-defined]  # a list of tables
        rows.append(
            {
                "name": name,
                "title": card["title"],
                "edit": card["edit"],
                "parts": [entry["part"] for entry in files if "part" in entry],
                "download": [entry["name"] for entry in files if "url" in entry],
                "licence": card["licence"],
            }
        )

    def draw(console: Console) -> None:
        cells = [
            (row["name"], row["edit"], row["parts"], bool(row["download"]), row["licence"])
            for row in rows
        ]
        columns = ("benchmark", "edit", "parts", "download", "licence")
        table = output.table(columns, cells)
        # A name is typed back, so it is not broken over lines.
        table.columns[0].no_wrap = True
        console.print(table)

    output.show({"benchmarks": rows}, as_json=as_json, people=draw)


def _read(
    name: str,
    path: Path | None,
    settings: dict[str, options.Setting],
    limit: int | None,
    case: str | None,
    as_json: bool,
) -> None:
    """Read a benchmark, print its counts and one case."""
    from corrigenda.benchmarks.benchmark import BENCHMARKS

    loaded = BENCHMARKS.get(name)(**settings).load(path, limit=limit)
    ids = {one.id: one for one in loaded}
    if case is not None and case not in ids:
        raise BadConfig(
            f'no case "{case}".',
            where=f"benchmark {name}",
            hint=did_you_mean(case, list(ids)[:100]),
        )
    shown = ids[case] if case is not None else next(iter(loaded), None)

    def draw(console: Console) -> None:
        for file in loaded.files:
            console.print(f"{file.name}  sha256 {file.sha256[:16]}...")
        console.print(output.table(("what", "number"), list(loaded.counts.items())))
        for title, counts in (
            ("dropped", loaded.dropped),
            ("skipped", loaded.skipped),
            ("flagged", loaded.flagged),
        ):
            if counts:
                console.print()
                console.print(output.table((title, "number"), list(counts.items())))
        if shown is None:
            return
        console.print(f"\ncase {shown.id}")
        for fact in shown.facts[:_SHOWN]:
            line = f"  edit: {_last_part(fact.prompt)} -> {fact.target}"
            console.print(Text(line), soft_wrap=True)
        for probe in shown.probes:
            answers = " + ".join(group[0] for group in probe.expected)
            question = f"{probe.role}@{probe.protocol}: {_last_part(probe.prompt)}"
            console.print(Text(f"  {question} -> {answers or '(text)'}"), soft_wrap=True)

    output.show(
        {
            "benchmark": loaded.benchmark,
            "options": dict(loaded.options),
            "files": [file._asdict() for file in loaded.files],
            "counts": dict(loaded.counts),
            "dropped": dict(loaded.dropped),
            "skipped": dict(loaded.skipped),
            "flagged": dict(loaded.flagged),
            "case": None if shown is None else _case_as_data(shown),
        },
        as_json=as_json,
        people=draw,
    )


def _last_part(prompt: str) -> str:
    """Return a prompt on one line, without its beginning where it is long."""
    text = " ".join(prompt.split())
    return text if len(text) <= _LONGEST else f"...{text[-_LONGEST:]}"


def _case_as_data(shown: object) -> dict[str, object]:
    import dataclasses

    assert dataclasses.is_dataclass(shown)
    assert not isinstance(shown, type)
    return dataclasses.asdict(shown)
