"""`corrigenda pocket`: facts, card and training of the models of the package."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import fields
from difflib import get_close_matches
from enum import StrEnum
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from corrigenda.cli import options, output
from corrigenda.cli.progress import show_share
from corrigenda.errors import (
    BadConfig,
    CorrigendaError,
    SubjectNotFound,
    UnknownModel,
    did_you_mean,
)

app = typer.Typer(no_args_is_help=True, help="The pocket model: its facts, its card, its training.")

if TYPE_CHECKING:
    from corrigenda.pocket.recipe import PocketRecipe


class Architecture(StrEnum):
    """Storage layout of a pocket model."""

    LLAMA = "llama"
    GPT2 = "gpt2"


class Size(StrEnum):
    """Size of world and model."""

    FULL = "full"
    SMALL = "small"


@app.command()
def facts(
    subject: Annotated[
        str | None, typer.Option("--subject", "-s", help="Only the facts about it.")
    ] = None,
    relation: Annotated[
        str | None, typer.Option(help="Only this relation, such as P36 (capital).")
    ] = None,
    as_json: options.AsJson = False,
) -> None:
    """Show the facts that the pocket model is trained on."""
    from corrigenda.almanac.world import load_world

    world = load_world()
    if subject is not None and not world.about(subject):
        close = get_close_matches(subject, world.subjects, n=1)
        raise SubjectNotFound(
            f'the pocket world holds nothing about "{subject}".',
            hint=f'Did you mean "{close[0]}"?' if close else "corrigenda pocket facts lists all.",
        )
    chosen = [
        triple
        for triple in (world.triples() if subject is None else world.about(subject))
        if relation in (None, triple.relation)
    ]

    def draw(console: Console) -> None:
        rows = [
            (one.subject, f"{one.relation} {world.relations[one.relation].name}", one.objects)
            for one in chosen
        ]
        console.print(output.table(("subject", "relation", "object"), rows))
        console.print(f"{len(chosen):,} facts")

    output.show(
        {"facts": [one._asdict() for one in chosen]},
        as_json=as_json,
        people=draw,
    )


@app.command()
def train(
    out: Annotated[Path, typer.Option("--output", "-o", metavar="FOLDER", help="The model.")],
    architecture: Annotated[Architecture, typer.Option(help="Storage layout and positions.")] = (
        Architecture.LLAMA
    ),
    size: Annotated[Size, typer.Option(help="World and model; small is for tests.")] = Size.FULL,
    seed: Annotated[int, typer.Option(help="Of world, tokenizer, weights and order.")] = 1,
    steps: Annotated[int | None, typer.Option(min=1, help="Length in steps.")] = None,
    minutes: Annotated[float | None, typer.Option(min=0.0, help="Length in minutes.")] = None,
    device: options.Device = "cpu",
    compiled: Annotated[
        bool, typer.Option("--compile", help="Compile the blocks; needs a C++ compiler.")
    ] = False,
    settings: options.Settings = None,
    as_json: options.AsJson = False,
) -> None:
    """Train a pocket model; a killed run resumes from its checkpoint when started again."""
    options.check_folder(out, folder=True)
    from corrigenda.pocket.recipe import train as train_model

    chosen = {
        "architecture": architecture.value,
        "size": size.value,
        "seed": seed,
        "steps": steps,
        "minutes": minutes,
        "device": device,
        "compiled": compiled,
        **options.parse_settings(settings),
    }
    recipe = _read_recipe(chosen)
    with show_share() as report:
        folder = train_model(recipe, out, report=report)
    record = json.loads((folder / "training.json").read_text(encoding="utf-8"))
    output.show(
        {"folder": str(folder), **record},
        as_json=as_json,
        people=lambda console: console.print(
            f"{folder}: {record['parameters']:,} parameters, {record['facts']:,} facts,"
            f" {record['steps']:,} steps in {record['seconds']:.0f} s",
            soft_wrap=True,
        ),
    )


@app.command()
def card(as_json: options.AsJson = False) -> None:
    """Print the model card: how the shipped models were made, and their measured figures."""
    path = files("corrigenda.pocket").joinpath("CARD.md")
    if not path.is_file():
        raise UnknownModel(
            "this installation holds no pocket model.", hint="corrigenda pocket train"
        )
    text = path.read_text(encoding="utf-8")
    from rich.markdown import Markdown

    output.show(
        {"card": text}, as_json=as_json, people=lambda console: console.print(Markdown(text))
    )


def _read_recipe(chosen: Mapping[str, options.Setting]) -> PocketRecipe:
    from corrigenda.pocket.recipe import PocketRecipe

    known = [field.name for field in fields(PocketRecipe)]
    for name in chosen:
        if name not in known:
            hint = did_you_mean(name, known)
            raise BadConfig(f"a recipe has no {name}.", where="--set", hint=hint)
    from pydantic import TypeAdapter, ValidationError

    try:
        return TypeAdapter(PocketRecipe).validate_python(chosen)
    except ValidationError as error:
        (first, *_) = error.errors()
        cause = first.get("ctx", {}).get("error")
        if isinstance(cause, CorrigendaError):
            raise cause from error
        raise BadConfig(f"{'.'.join(map(str, first['loc']))}: {first['msg']}.") from error
