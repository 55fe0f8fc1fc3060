"""Arguments and options shared by several commands."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from pydantic import JsonValue

from corrigenda.cli.output import wants_json
from corrigenda.cli.progress import announce_loading, finish_loading
from corrigenda.errors import BadConfig
from corrigenda.text_files import UnreadableText, check_text, parse_value

if TYPE_CHECKING:
    from corrigenda.lm.model import LanguageModel
    from corrigenda.patch import Patch

# Arguments of `cg.edit` and `cg.fit`, which no option of a method may be called.
_ARGUMENTS = frozenset(
    ["lm", "facts", "editor", "method", "state", "corpus", "progress", "layer", "transforms"]
)
Setting = JsonValue

Model = Annotated[
    str,
    typer.Argument(
        metavar="MODEL",
        help="A name of `corrigenda models`, a folder, a .gguf file, or a name on the hub.",
        show_default=False,
    ),
]
Method = Annotated[
    str, typer.Option("--method", "-m", help="Editing method; see `corrigenda methods`.")
]
Settings = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="OPTION=VALUE",
        help="Set an option of the method; may be repeated.",
        show_default=False,
    ),
]
Preset = Annotated[
    str | None,
    typer.Option(
        metavar="FILE",
        help="Options of the method that `corrigenda tune` wrote, or the name of a preset.",
        show_default=False,
    ),
]
Transforms = Annotated[
    list[str] | None,
    typer.Option(
        "--transform",
        metavar="NAME[:OPTION=VALUE,...]",
        help="Change the patch afterwards: anchor-norm, clip-norm, compress, prune, rect; may be "
        "repeated.",
        show_default=False,
    ),
]
Dtype = Annotated[
    str | None,
    typer.Option(help="float32, bfloat16 or float16; the checkpoint's own if not given."),
]
Device = Annotated[str, typer.Option(help="cpu, cuda, cuda:1 ...; auto spreads over all.")]
Quantization = Annotated[
    str | None,
    typer.Option(
        metavar="NAME",
        help="4bit or 8bit (bitsandbytes), torchao-int8, quanto-int8, quanto-int4.",
        show_default=False,
    ),
]
Attention = Annotated[
    str | None,
    typer.Option(
        metavar="NAME", help="Attention: eager, sdpa, flash_attention_2 ...", show_default=False
    ),
]
AsJson = Annotated[
    bool,
    typer.Option(
        "--json", callback=wants_json, is_eager=True, help="Print one JSON object on stdout."
    ),
]
Force = Annotated[
    bool,
    typer.Option("--force", help="Use the patch on a model other than the one it was made on."),
]
Chat = Annotated[
    bool | None,
    typer.Option(
        "--chat/--no-chat",
        help="Ask in the model's chat template too; by default where it has one.",
        show_default=False,
    ),
]
Text = Annotated[
    list[Path] | None,
    typer.Option(
        "--text",
        metavar="FILE",
        help="Text for the statistics; may be repeated. Without it, the package's own.",
        show_default=False,
    ),
]

Guard = Annotated[
    bool,
    typer.Option(
        "--guard/--no-guard",
        help="Measure what must not change, and refuse the edit where the damage is too large.",
        show_default=False,
    ),
]
Limits = Annotated[
    list[str] | None,
    typer.Option(
        "--limit",
        metavar="MEASURE=FREE,REFUSED",
        help="Other limits of the guard, such as perplexity=0.05,0.2; may be repeated.",
        show_default=False,
    ),
]
Tasks = Annotated[
    list[str] | None,
    typer.Option(
        "--task",
        metavar="NAME",
        help="A task of lm-eval that the guard runs too; may be repeated.",
        show_default=False,
    ),
]


def parse_settings(settings: Sequence[str] | None) -> dict[str, Setting]:
    """Return the options in texts `option=value`; a value that is not JSON is text.

    Raises:
        BadConfig (CG502): an entry without `=` or without a name, or one that is no option.

    Example:
        >>> parse_settings(["learning_rate=0.1", "layers=[3,4]", "norm=l2"])
        {'learning_rate': 0.1, 'layers': [3, 4], 'norm': 'l2'}
    """
    options: dict[str, Setting] = {}
    for entry in settings or ():
        name, sign, value = entry.partition("=")
        if not (sign and name.strip()):
            raise BadConfig(f'"{entry}" is not OPTION=VALUE.', where="--set")
        option = name.strip().replace("-", "_")
        if option in _ARGUMENTS:
            raise BadConfig(f'"{option}" is no option of a method.', where="--set")
        try:
            options[option] = parse_value(value)
        except UnreadableText as error:
            raise BadConfig(f"{option}: {error}.", where="--set") from error
    return options


def add_preset(options: dict[str, Setting], preset: str | None) -> dict[str, Setting]:
    """Return options of a method with the preset that they are put on."""
    return options if preset is None else {"preset": preset, **options}


def check_arguments(arguments: Sequence[str]) -> None:
    """Refuse arguments that are not UTF-8: they could be neither asked nor printed.

    Raises:
        BadConfig (CG502): one is not.
    """
    for argument in arguments:
        try:
            check_text(argument)
        except UnreadableText as error:
            raise BadConfig(
                f"an argument is not UTF-8: {error}.",
                hint="Set the terminal to UTF-8, or rename the file.",
            ) from error


def open_model(
    name: str,
    *,
    dtype: str | None,
    device: str,
    quantization: str | None = None,
    attention: str | None = None,
) -> LanguageModel:
    """Return the model that a command was given, loaded.

    Raises:
        BadConfig (CG502): no such dtype, device or quantisation.
        UnknownModel (CG301): no such model.
    """
    announce_loading(name)
    import corrigenda

    lm = corrigenda.load(
        name,
        dtype=dtype,
        device=device,
        quantization_config=quantization,
        attn_implementation=attention,
    )
    finish_loading(name)
    return lm


def open_patch(path: str | Path) -> Patch:
    """Return the patch in a file, or the sum of the patches of the book in a folder.

    Raises:
        CorruptFile (CG402), PickleRefused (CG403), NewerFormat (CG404): as `load_patch`.
        DamagedBook (CG802): a file of the book is missing or damaged.
    """
    import corrigenda
    from corrigenda.books.folder import is_book

    return corrigenda.Book.open(path).patch() if is_book(path) else corrigenda.load_patch(path)


def check_folder(path: Path, *, folder: bool = False) -> None:
    """Refuse a place for a result that cannot be written; see `corrigenda.files.check_place`.

    Raises:
        WriteFailed (CG601): it cannot be written.
    """
    from corrigenda.files import check_place

    check_place(path, folder=folder)
