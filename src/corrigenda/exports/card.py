"""Card of an exported form: for people as Markdown, for programs as JSON."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from corrigenda.exports.forms import Form
from corrigenda.exports.usage import FormCommands, list_commands
from corrigenda.files import write_text
from corrigenda.markdown import escape_markdown, format_code, write_markdown_table
from corrigenda.prompt_answers import Role
from corrigenda.version import VERSION

if TYPE_CHECKING:
    from corrigenda.assessment import Assessment, PromptAnswers
    from corrigenda.lm.model import LanguageModel
    from corrigenda.patch.weights import WeightPatch

_LICENCE = (
    "The file holds weights derived from the base model, so the terms of the base model apply to "
    "it; read them before you pass it on."
)
_TITLES: Mapping[Form, str] = {
    Form.PEFT: "A LoRA adapter that corrects facts",
    Form.GGUF_ADAPTER: "A LoRA adapter in GGUF that corrects facts",
    Form.GGUF: "A model in GGUF with corrected facts",
    Form.MERGED: "A model with corrected facts",
}
_SHARES = {
    "efficacy": Role.PROMPT,
    "paraphrases_changed": Role.PARAPHRASE,
    "neighbours_kept": Role.NEIGHBOUR,
}


@dataclass(frozen=True)
class FormCard:
    """Content of a card.

    Attributes:
        form: Its form.
        patch: The patch in it.
        lm: The unedited model.
        file: The file or folder written.
        base: The GGUF file that it was checked against or made from, if any.
        assessment: What was measured in this process, if anything.
        notices: What was lost or changed on the way.
    """

    form: Form
    patch: WeightPatch
    lm: LanguageModel
    file: Path
    base: Path | None = None
    assessment: Assessment | None = None
    notices: tuple[str, ...] = field(default=())

    @property
    def places(self) -> tuple[Path, Path]:
        """Places of the two files: in the folder, or next to the file and named after it."""
        folder = self.file if self.file.is_dir() else self.file.parent
        if self.file.is_dir() or self.file.stem in ("adapter", "model"):
            return folder / "README.md", folder / "card.json"
        return folder / f"{self.file.stem}.md", folder / f"{self.file.stem}.card.json"


def write_card(card: FormCard) -> None:
    """Write both forms of a card.

    Raises:
        WriteFailed (CG601): the place cannot be written.
    """
    readable, machine = card.places
    data = describe(card)
    write_text(machine, json.dumps(data, indent=2, ensure_ascii=False) + "\n")
    write_text(readable, render(card, data))


def describe(card: FormCard) -> dict[str, object]:
    """Return a card as plain dictionaries and lists."""
    header, commands = card.patch.header, _list_commands(card)
    return {
        "format_version": 1,
        "form": str(card.form),
        "files": [
            {"name": one.name, "bytes": one.stat().st_size, "sha256": _hash(one)}
            for one in _list_files(card)
        ],
        "patch": {
            "digest": card.patch.digest(),
            "method": header.method,
            "config": header.config,
            "facts": len(header.facts),
        },
        "base": {
            "name": header.base_name or card.lm.name,
            "digest": header.base_digest,
            "gguf": card.base.name if card.base else None,
        },
        "measured": _list_measured(card.assessment),
        "facts": _list_facts(card),
        "notices": list(card.notices),
        "load": dict(commands.load),
        "undo": commands.undo,
        "licence": _LICENCE,
        "versions": {**header.versions, "corrigenda": VERSION},
    }


def render(card: FormCard, data: Mapping[str, object]) -> str:
    """Return a card as Markdown."""
    header, commands = card.patch.header, _list_commands(card)
    base = escape_markdown(header.base_name or card.lm.name)
    parts = [
        f"# {_TITLES[card.form]}",
        f"Made by corrigenda {VERSION} with the method {escape_markdown(header.method)} for "
        f"**{base}** and no other model (digest {format_code(header.base_digest or 'unknown')}). "
        f"Facts corrected: {len(header.facts)}.",
        "## Facts",
        _render_facts(card),
        "## Measured",
        _render_measured(card),
    ]
    if card.notices:
        parts += ["## Notices", "\n".join(f"- {escape_markdown(one)}" for one in card.notices)]
    parts += ["## Load"]
    for engine, text in commands.load.items():
        language = "python" if text.startswith("from ") else "sh"
        parts += [f"{engine}:", f"```{language}\n{text}\n```"]
    parts += ["## Undo", commands.undo, "## Method"]
    parts += [format_code(json.dumps(header.config, sort_keys=True)), "## Licence", _LICENCE]
    return "\n\n".join(parts) + "\n"


def _list_commands(card: FormCard) -> FormCommands:
    base = card.base.name if card.base else "MODEL.gguf"
    return list_commands(card.form, card.file, card.lm.name, base=base)


def _list_files(card: FormCard) -> list[Path]:
    if not card.file.is_dir():
        return [card.file]
    own = {place.name for place in card.places}
    return sorted(one for one in card.file.iterdir() if one.is_file() and one.name not in own)


def _hash(file: Path) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def _list_facts(card: FormCard) -> list[dict[str, object]]:
    found = card.assessment
    if found is None:
        return [
            {name: fact.get(name) for name in ("prompt", "subject", "target")}
            for fact in card.patch.header.facts
        ]
    answers = [
        [one for one in found.answers if one.fact == number] for number in range(len(found.facts))
    ]
    return [
        {
            "prompt": fact.prompt,
            "subject": fact.subject,
            "target": fact.target,
            "status": str(outcome),
            "answers": [
                {"role": str(one.role), "prompt": one.prompt, "before": one.before}
                | {"after": one.after}
                for one in asked
            ],
        }
        for fact, outcome, asked in zip(found.facts, found.outcomes, answers, strict=True)
    ]


def _list_measured(found: Assessment | None) -> dict[str, object] | None:
    if found is None:
        return None
    return {
        "facts_asked": len(found.facts),
        **{name: found.share(role) for name, role in _SHARES.items()},
        "changes": [
            {"site": one.site, "relative_norm": one.relative_norm, "rank": one.rank}
            for one in found.changes
        ],
    }


def _render_facts(card: FormCard) -> str:
    found = card.assessment
    if found is None:
        rows = [
            [escape_markdown(str(fact.get(name) or "")) for name in ("prompt", "target")]
            for fact in card.patch.header.facts
        ]
        return write_markdown_table(("prompt", "target"), rows)
    rows = [
        [
            *map(escape_markdown, (str(one.role), one.prompt, _name_wanted(found, one))),
            *map(escape_markdown, (one.before, one.after)),
        ]
        for one in found.answers
    ]
    return write_markdown_table(("", "prompt", "wanted", "before", "after"), rows)


def _name_wanted(found: Assessment, one: PromptAnswers) -> str:
    """Return the answer that a prompt should get."""
    return "as before" if one.role is Role.NEIGHBOUR else found.facts[one.fact].target


def _render_measured(card: FormCard) -> str:
    found = card.assessment
    if found is None:
        return "Nothing was asked when this was written."
    asked, total = len(found.facts), len(card.patch.header.facts)
    rows = [
        [name.replace("_", " "), f"{share:.2f}"]
        for name, role in _SHARES.items()
        if (share := found.share(role)) is not None
    ]
    rows += [
        [f"size of the change at {one.site}", f"{one.relative_norm:.3g} of the weight's norm"]
        for one in found.changes
    ]
    note = f"Asked in the process that made it, of {asked} of {total} facts; greedy answers."
    return f"{note}\n\n{write_markdown_table(('', ''), rows)}"
