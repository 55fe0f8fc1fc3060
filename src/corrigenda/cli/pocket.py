"""`corrigenda pocket`: the model that comes with the package: its facts, its card, its training."""

from __future__ import annotations

from difflib import get_close_matches
from importlib.resources import files
from typing import Annotated

import typer
from rich.console import Console
from rich.markdown import Markdown

from corrigenda.cli import options, output
from corrigenda.errors import SubjectNotFound, UnknownModel

app = typer.Typer(no_args_is_help=True, help="The pocket model: its facts, its card, its training.")


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
    """Show what the pocket model is meant to know."""
    from corrigenda.pocket.world import load_world

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
def card(as_json: options.AsJson = False) -> None:
    """Print the model card: how the shipped models were made, and their measured figures."""
    path = files("corrigenda.pocket").joinpath("CARD.md")
    if not path.is_file():
        raise UnknownModel(
            "this installation holds no pocket model.", hint="corrigenda pocket train"
        )
    text = path.read_text(encoding="utf-8")
    output.show(
        {"card": text}, as_json=as_json, people=lambda console: console.print(Markdown(text))
    )
