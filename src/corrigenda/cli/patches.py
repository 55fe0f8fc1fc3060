"""Commands on patch files: `diff`, `compose`, `transform`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from corrigenda.cli import options, output
from corrigenda.errors import BadConfig

if TYPE_CHECKING:
    from corrigenda.patch.protocols import Patch

PatchFile = Annotated[Path, typer.Argument(metavar="PATCH", show_default=False)]


def diff(
    first: Annotated[Path, typer.Argument(metavar="A", show_default=False)],
    second: Annotated[Path | None, typer.Argument(metavar="[B]", show_default=False)] = None,
    as_json: options.AsJson = False,
) -> None:
    """Show what a patch changes, or how two patches differ (cosine of their changes, by site).

    With two patches, exit status 1 means that they differ.
    """
    from corrigenda.patch.compare import compare, describe

    a = options.open_patch(first)
    if second is None:
        description = describe(a)
        data = {"a": _header(first, a), "sites": [item._asdict() for item in description]}

        def draw(console: Console) -> None:
            _draw_header(console, first, a)
            rows = [
                (item.site, item.kind, item.norm, item.rank, item.stored) for item in description
            ]
            console.print(output.table(("site", "kind", "norm", "rank", "stored numbers"), rows))

        output.show(data, as_json=as_json, people=draw)
        return
    b = options.open_patch(second)
    comparison = compare(a, b)
    equal = a == b
    data = {
        "a": _header(first, a),
        "b": _header(second, b),
        "equal": equal,
        "sites": [item._asdict() for item in comparison],
    }

    def draw_both(console: Console) -> None:
        for file, patch in ((first, a), (second, b)):
            _draw_header(console, file, patch)
        rows = [
            (item.site, item.norm_a, item.norm_b, item.norm_difference, item.cosine)
            for item in comparison
        ]
        columns = ("site", "norm A", "norm B", "norm of A - B", "cosine")
        console.print(output.table(columns, rows))
        console.print("The patches are equal." if equal else "The patches differ.")

    output.show(data, as_json=as_json, people=draw_both)
    if not equal:
        raise typer.Exit(output.FINDING)


def compose(
    patches: Annotated[list[Path], typer.Argument(metavar="A B...", show_default=False)],
    out: Annotated[Path, typer.Option("--output", "-o", metavar="FILE", help="The new patch.")],
    as_json: options.AsJson = False,
) -> None:
    """Compose patches of one model into a single file; changes of the same weight add up."""
    options.check_folder(out)
    from corrigenda.patch.compare import add_up

    loaded = [options.open_patch(file) for file in patches]
    total = add_up(loaded)
    total.save(out)
    num_facts = len(total.header.facts)
    output.show(
        {"file": str(out), "patches": [str(file) for file in patches], "facts": num_facts},
        as_json=as_json,
        people=lambda console: console.print(
            f"{out}: {len(loaded)} patches, {num_facts} facts", soft_wrap=True
        ),
    )


def transform(
    patch: PatchFile,
    model: options.Model,
    out: Annotated[Path, typer.Option("--output", "-o", metavar="FILE", help="The new patch.")],
    transforms: options.Transforms = None,
    dtype: options.Dtype = None,
    device: options.Device = "cpu",
    as_json: options.AsJson = False,
) -> None:
    """Make a patch smaller, sparser or better conditioned; its header records how."""
    options.check_folder(out)
    import corrigenda
    from corrigenda.patch.compare import compare
    from corrigenda.transforms.registry import parse_transforms

    steps = parse_transforms(transforms or ())
    if not steps:
        raise BadConfig("no transform was given.", hint="Give --transform, as rect:keep=0.4.")
    loaded = options.open_patch(patch)
    lm = options.open_model(model, dtype=dtype, device=device)
    new = corrigenda.transform(loaded, lm, *steps)
    for line in _new_notices(loaded, new):
        output.notice(line)
    new.save(out)
    comparison = compare(loaded, new)
    data = {
        "file": str(out),
        "method": new.header.method,
        "sites": [item._asdict() for item in comparison],
        "transforms": new.header.notes.get("transforms", []),
    }

    def draw(console: Console) -> None:
        _draw_header(console, out, new)
        rows = [
            (item.site, item.norm_a, item.norm_b, item.norm_difference, item.cosine)
            for item in comparison
        ]
        columns = ("site", "norm before", "norm after", "norm of the difference", "cosine")
        console.print(output.table(columns, rows))

    output.show(data, as_json=as_json, people=draw)


def _new_notices(before: Patch, after: Patch) -> list[str]:
    """Return the notices of a transformed patch that the original does not have."""
    old, new = (patch.header.notes.get("notices") or [] for patch in (before, after))
    assert isinstance(old, list), "a list of sentences"
    assert isinstance(new, list), "a list of sentences"
    return [str(line) for line in new[len(old) :]]


def _header(file: Path, patch: Patch) -> dict[str, object]:
    return {"file": str(file), **patch.header.model_dump(mode="json")}


def _draw_header(console: Console, file: Path, patch: Patch) -> None:
    header = patch.header
    console.print(
        f"{file}: {header.method}, {len(header.facts)} facts, made on {header.base_name}",
        soft_wrap=True,
    )
    for fact in header.facts[:10]:
        console.print(f"  {fact.get('prompt')} -> {fact.get('target')}", markup=False)
    if len(header.facts) > 10:
        console.print(f"  and {len(header.facts) - 10} more")
