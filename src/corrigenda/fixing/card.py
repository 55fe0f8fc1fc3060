"""Files of a fix: the patch, a card for people, and the fate of every line for programs."""

from __future__ import annotations

import json
import math
import shlex
from pathlib import Path
from typing import TYPE_CHECKING

from corrigenda.files import make_folder, write_text
from corrigenda.fixing.understanding import Fate
from corrigenda.markdown import escape_markdown, format_code, write_markdown_table
from corrigenda.prompt_answers import Role
from corrigenda.version import VERSION

if TYPE_CHECKING:
    from corrigenda.fixing.fix import FixResult

PATCH, CARD, FATES = "patch.safetensors", "card.md", "fates.json"
"""Names of the files."""


def write_files(result: FixResult, folder: str | Path, *, model: str, source: str) -> Path:
    """Write the patch, where there is one, its card and the fates; return the folder.

    Args:
        result: The fix.
        folder: Where to; made where it is missing. A patch of an earlier fix that this one has none
            for is removed.
        model: Name of the model, for the commands on the card.
        source: Name of the file of corrections.

    Raises:
        WriteFailed (CG601): it cannot be written.
    """
    folder = make_folder(folder)
    if result.patch is not None:
        result.patch.save(folder / PATCH)
    else:
        (folder / PATCH).unlink(missing_ok=True)
    plain = {"model": model, "source": source, "version": VERSION, **result.to_json()}
    write_text(folder / FATES, json.dumps(plain, indent=2, ensure_ascii=False) + "\n")
    write_text(folder / CARD, render_card(result, model=model, source=source))
    return folder


def render_card(result: FixResult, *, model: str, source: str) -> str:
    """Return the card as Markdown."""
    counts = ", ".join(f"{count} {fate}" for fate, count in result.counts.items())
    parts = [
        f"# Corrections of {escape_markdown(model)}",
        f"Made by corrigenda {VERSION} from {format_code(source)}: {len(result.lines)} lines, "
        f"{counts}.",
        *_render_verdict(result),
        "## Lines",
        _render_lines(result),
        *_render_shares(result),
        *_render_search(result),
        "## Use and undo",
        _render_use(result, model),
    ]
    return "\n\n".join(parts) + "\n"


def _render_verdict(result: FixResult) -> list[str]:
    report = result.report
    if report is None:
        return ["Nothing was to be done: no weight was changed."]
    lines = [f"## Guard: {report.verdict}", escape_markdown(report.reason) + "."]
    if report.rows():
        heads = ("measure", "damage", "interval", "free up to", "n")
        lines.append(write_markdown_table(heads, report.rows()))
    causes = report.list_causes()
    if causes:
        named = [f"- {number:.3g} without {escape_markdown(text)}" for text, number in causes]
        lines.append("Damage without single facts:\n\n" + "\n".join(named))
    return lines


def _render_lines(result: FixResult) -> str:
    rows = [
        (
            str(one.number),
            one.fact.prompt if one.fact else "",
            one.before,
            one.fact.target if one.fact else "",
            one.after,
            f"{one.paraphrases[0]}/{one.paraphrases[1]}" if one.paraphrases[1] else "",
            f"{one.fate}: {one.reason}" if one.reason else str(one.fate),
        )
        for one in result.lines
    ]
    heads = ("line", "prompt", "before", "wanted", "after", "paraphrases", "fate")
    return write_markdown_table(heads, [tuple(map(escape_markdown, row)) for row in rows])


def _render_shares(result: FixResult) -> list[str]:
    found = result.assessment
    if found is None:
        return []
    names = {
        Role.PROMPT: "prompts with the new answer",
        Role.PARAPHRASE: "paraphrases with the new answer",
        Role.NEIGHBOUR: "neighbours kept",
        Role.SAME_SUBJECT: "other facts of the subject kept",
    }
    rows = [
        (name, *(_percent(found.share(role, chat=chat)) for chat in (False, True)))
        for role, name in names.items()
    ]
    return ["## Measured", write_markdown_table(("", "plain", "in chat"), rows)]


def _render_search(result: FixResult) -> list[str]:
    if result.approach is None:
        return []
    lines = ["## Method", f"{escape_markdown(result.approach.label)}."]
    tried = [one for one in result.trials if one.seconds]
    if tried:
        rows = [
            (
                one.approach.label,
                _percent(one.success) if not one.problem else one.problem,
                f"{one.damage:.3g}" if not one.problem else "",
                "yes" if one.on_front else "",
            )
            for one in tried
        ]
        heads = ("tried on a sample", "success", "damage", "on the front")
        lines.append(write_markdown_table(heads, [tuple(map(escape_markdown, r)) for r in rows]))
    kept = [one for one in result.attempts if one.kept]
    if kept:
        lines.append(
            "Retries that were kept: "
            + "; ".join(f"{one.name} ({one.method}), {len(one.facts)} facts" for one in kept)
            + "."
        )
    return lines


def _render_use(result: FixResult, model: str) -> str:
    if result.patch is None:
        return "There is no patch, so there is nothing to undo."
    under = ""
    if result.below:
        under = (
            " They were made on top of the book, which must be active too: `corrigenda book export`"
            " writes all of its corrections together."
        )
    ask = shlex.join(["corrigenda", "ask", model, "PROMPT", "--patch", PATCH])
    export = shlex.join(["corrigenda", "export", PATCH, model, "--to", "merged", "-o", "FOLDER"])
    serve = shlex.join(["corrigenda", "serve", model, "--patch", PATCH])
    return (
        f"```sh\n{ask}\n{serve}\n{export}\n```\n\n"
        "The corrections are in the patch alone; the model is unchanged. To undo them, stop using "
        f"the patch.{under}"
    )


def _percent(share: float | None) -> str:
    return "" if share is None or math.isnan(share) else f"{share:.0%}"


def list_left(result: FixResult) -> list[str]:
    """Return the lines that are left to be done, each with its reason."""
    return [
        f"line {one.number}: {one.fate}" + (f", {one.reason}" if one.reason else "")
        for one in result.lines
        if one.fate not in (Fate.CORRECTED, Fate.HELD)
    ]
