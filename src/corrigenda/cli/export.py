"""`corrigenda export` and `restore`: patches in the forms of other programs, and the way back."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from corrigenda.cli import options, output
from corrigenda.exports.forms import Form

_UNDO = {
    Form.PEFT: "ask the model without the adapter",
    Form.GGUF_ADAPTER: "leave --lora out, or give the adapter the scale 0",
    Form.GGUF: "use the GGUF file of the unedited model",
    Form.MERGED: "corrigenda restore {out} -o FOLDER",
}


def export(
    patch: Annotated[Path, typer.Argument(metavar="PATCH", show_default=False)],
    model: options.Model,
    out: Annotated[
        Path,
        typer.Option(
            "--output", "-o", metavar="PLACE", help="A new folder; for GGUF also a .gguf file."
        ),
    ],
    to: Annotated[
        Form,
        typer.Option(
            help="A LoRA adapter (peft, gguf-adapter), or the model with the patch in its weights "
            "(gguf, merged)."
        ),
    ] = Form.PEFT,
    also: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="PATCH", help="Compose with this patch; may be repeated.", show_default=False
        ),
    ] = None,
    base: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE.gguf",
            help="GGUF file of the unedited model: checked (gguf-adapter), or copied but for what "
            "the patch changes (gguf).",
            show_default=False,
        ),
    ] = None,
    weights: Annotated[
        str | None,
        typer.Option(
            metavar="TYPE",
            help="For gguf: f16, q8_0, q4_0 ...; f16 if not given, the base's own with --base.",
            show_default=False,
        ),
    ] = None,
    unpadded: Annotated[
        bool,
        typer.Option("--unpadded", help="For peft: ranks as they are; vLLM and SGLang want one."),
    ] = False,
    force: options.Force = False,
    dtype: options.Dtype = None,
    device: options.Device = "cpu",
    as_json: options.AsJson = False,
) -> None:
    """Write a patch in a form that peft, vLLM, SGLang, llama.cpp or Ollama reads, with a card."""
    folder = out.suffix != ".gguf" or to in (Form.PEFT, Form.MERGED)
    options.check_folder(out, folder=folder)
    import corrigenda

    patches = [options.open_patch(file) for file in (patch, *(also or ()))]
    lm = options.open_model(model, dtype=dtype, device=device)
    corrigenda.export(
        patches,
        lm,
        out,
        to=to.value,
        base=base,
        weight_type=weights,
        padded=not unpadded,
        force=force,
    )
    files = sorted(item.name for item in out.iterdir()) if folder else [out.name]

    def draw(console: Console) -> None:
        console.print(f"{out}: {', '.join(files)}", soft_wrap=True)
        console.print(f"undo: {_UNDO[to].format(out=out)}", soft_wrap=True)

    place = {"folder": str(out)} if folder else {"file": str(out)}
    data = {**place, "to": to.value, "patch": str(patch), "model": lm.name, "files": files}
    output.show(data, as_json=as_json, people=draw)


def restore(
    folder: Annotated[
        Path, typer.Argument(metavar="FOLDER", help="A model exported with --to merged.")
    ],
    out: Annotated[Path, typer.Option("--output", "-o", metavar="FOLDER", help="A new folder.")],
    as_json: options.AsJson = False,
) -> None:
    """Write the original of a model with a merged patch, bit for bit, checked by its digest."""
    options.check_folder(out, folder=True)
    import corrigenda

    restored = corrigenda.restore_merged(folder, out)
    output.show(
        {"folder": str(out), **restored._asdict()},
        as_json=as_json,
        people=lambda console: console.print(
            f"{out}: {restored.base_name} as it was, restored from {restored.source};"
            f" digest {restored.digest} verified",
            soft_wrap=True,
        ),
    )
