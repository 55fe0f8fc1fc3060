"""`corrigenda ask`: answers of a model, with and without patches."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from corrigenda.cli import options, output
from corrigenda.cli.progress import announce_loading


def ask(
    model: options.Model,
    prompts: Annotated[list[str], typer.Argument(metavar="PROMPT...", show_default=False)],
    patch: Annotated[
        list[Path] | None,
        typer.Option(
            *("--patch", "-p"),
            metavar="FILE",
            help="Answer with this patch, or with a book (a folder); may be repeated.",
        ),
    ] = None,
    tokens: Annotated[int, typer.Option(min=1, help="Longest continuation.")] = 16,
    top: Annotated[int, typer.Option(min=1, help="Candidates for the next token to show.")] = 5,
    chat: Annotated[
        bool, typer.Option("--chat/--no-chat", help="Use the model's chat template.")
    ] = False,
    force: options.Force = False,
    dtype: options.Dtype = None,
    device: options.Device = "cpu",
    quantization: options.Quantization = None,
    attention: options.Attention = None,
    as_json: options.AsJson = False,
) -> None:
    """Answer prompts by greedy continuation; with --patch, before and after it."""
    announce_loading(model)
    import corrigenda

    patches = [options.open_patch(file) for file in patch or ()]
    lm = options.open_model(
        model, dtype=dtype, device=device, quantization=quantization, attention=attention
    )
    before = corrigenda.ask(lm, prompts, max_new_tokens=tokens, top=top, chat=chat)
    after = before
    if patches:
        with ExitStack() as active:
            for one in patches:
                active.enter_context(one.apply(lm, force=force))
            after = corrigenda.ask(lm, prompts, max_new_tokens=tokens, top=top, chat=chat)
    replies = [
        {"prompt": prompt, **reply.to_json()} | ({"before": old.to_json()} if patches else {})
        for prompt, old, reply in zip(prompts, before, after, strict=True)
    ]

    def draw(console: Console) -> None:
        if patches:
            rows = [
                (prompt, old.answer, new.answer)
                for prompt, old, new in zip(prompts, before, after, strict=True)
            ]
            console.print(output.table(("prompt", "without the patch", "with it"), rows))
            return
        rows = [
            (reply.prompt, reply.answer, "  ".join(f"{word!r} {p:.2f}" for word, p in reply.top))
            for reply in before
        ]
        console.print(output.table(("prompt", "answer", "next token"), rows))

    output.show(
        {"model": lm.name, "patches": [str(file) for file in patch or ()], "replies": replies},
        as_json=as_json,
        people=draw,
    )
