"""`corrigenda book`: the corrections of a model as a folder under version control."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from corrigenda.cli import book_output, options, output
from corrigenda.errors import BadConfig
from corrigenda.exports.forms import Form

if TYPE_CHECKING:
    from corrigenda.books import Book
    from corrigenda.lm.model import LanguageModel

app = typer.Typer(
    no_args_is_help=True,
    help="Keep the corrections of a model in a folder under git: add, ask again, undo, move.",
)

Folder = Annotated[
    Path, typer.Option("--book", "-b", metavar="FOLDER", help="The book; this folder by default.")
]
OtherModel = Annotated[
    str | None,
    typer.Option(
        "--model", metavar="MODEL", help="Where the model of the book is, if not where it was."
    ),
]
Which = Annotated[
    str, typer.Argument(metavar="ID", help="Number or id; see `corrigenda book log`.")
]


@app.command()
def new(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", show_default=False)],
    model: options.Model,
    dtype: options.Dtype = None,
    device: options.Device = "cpu",
    as_json: options.AsJson = False,
) -> None:
    """Make a book for a model, without corrections; the folder may exist, as one under git."""
    options.check_folder(folder, folder=True)
    from corrigenda.books import Book

    lm = options.open_model(model, dtype=dtype, device=device)
    base = Book.new(folder, lm).base
    output.show(
        {"folder": str(folder), "base": base.model_dump()},
        as_json=as_json,
        people=lambda console: console.print(
            f"{folder}: a book for {base.name} ({base.digest[:12]}). "
            f"Corrections come in with: corrigenda book add FILE --book {folder}",
            soft_wrap=True,
        ),
    )


@app.command()
def add(
    facts: Annotated[
        Path | None,
        typer.Argument(metavar="[FILE]", help="Facts, as for `edit --facts`.", show_default=False),
    ] = None,
    patch: Annotated[
        list[Path] | None,
        typer.Option(
            "--patch",
            metavar="FILE",
            help="Add this patch for the facts it was made for; may be repeated.",
            show_default=False,
        ),
    ] = None,
    method: options.Method = "rome",
    layer: Annotated[int | None, typer.Option(help="Block to edit; the preset's if none.")] = None,
    preset: options.Preset = None,
    settings: options.Settings = None,
    text: options.Text = None,
    together: Annotated[
        bool, typer.Option("--together", help="One correction for all facts, undone as one.")
    ] = False,
    book: Folder = Path(),
    model: OtherModel = None,
    chat: options.Chat = None,
    dtype: options.Dtype = None,
    device: options.Device = "cpu",
    as_json: options.AsJson = False,
) -> None:
    """Make facts true on top of the book, each as a correction of its own; or add patches.

    Facts that hold already, or are in the book, are left out. Exit status 1 means that a fact did
    not become true, or contradicts the book; those are not added.
    """
    if (facts is None) == (not patch):
        raise BadConfig("give a file of facts, or patches with --patch.", hint="One of the two.")
    import corrigenda
    from corrigenda.assessment import list_facts
    from corrigenda.books.making import Additions

    opened = _open(book)
    config = options.add_preset(options.parse_settings(settings), preset)
    wanted = [] if facts is None else corrigenda.read_facts(facts)
    patches = [corrigenda.load_patch(file) for file in patch or ()]
    lm = _open_model(opened, model, dtype, device)
    if patches:
        added = [opened.add(lm, list_facts(one), one) for one in patches]
        done = Additions(added=tuple(added))
    else:
        done = opened.make(
            *(lm, wanted, method),
            together=together,
            corpus=text,
            chat=chat,
            layer=layer,
            **config,
        )
    for line in done.notices:
        output.notice(line)
    output.show(
        {"folder": str(book), **book_output.list_additions(done)},
        as_json=as_json,
        people=lambda console: book_output.draw_additions(console, done),
    )
    if not done.succeeded:
        raise typer.Exit(output.FINDING)


@app.command()
def log(book: Folder = Path(), as_json: options.AsJson = False) -> None:
    """List all corrections, those undone too, with author and date from git."""
    from corrigenda.books.folder import BookFolder
    from corrigenda.books.history import read_log

    entries = read_log(BookFolder(book))
    output.show(
        {"folder": str(book), "corrections": [entry.to_json() for entry in entries]},
        as_json=as_json,
        people=lambda console: book_output.draw_log(console, entries),
    )


@app.command()
def show(name: Which, book: Folder = Path(), as_json: options.AsJson = False) -> None:
    """Show one correction: its facts, method, settings, patch and verdict; also an undone one."""
    from corrigenda.books.folder import BookFolder
    from corrigenda.books.history import read_log

    folder = BookFolder(book)
    found = folder.find(name, [*folder.corrections, *folder.undone])
    (entry,) = (one for one in read_log(folder) if one.correction.id == found.id)
    output.show(
        {**entry.to_json(), **found.to_json()},
        as_json=as_json,
        people=lambda console: book_output.draw_entry(console, entry),
    )


@app.command()
def undo(name: Which, book: Folder = Path(), as_json: options.AsJson = False) -> None:
    """Take one correction out; what is left is the book that never had it, bit for bit."""
    from corrigenda.books.folder import BookFolder

    gone = BookFolder(book).undo(name)
    output.show(
        {"folder": str(book), "id": gone.id, "number": gone.number, "label": gone.label},
        as_json=as_json,
        people=lambda console: console.print(
            f"{gone.name} is out: {gone.label}", markup=False, soft_wrap=True
        ),
    )


@app.command()
def check(
    book: Folder = Path(),
    model: OtherModel = None,
    chat: options.Chat = None,
    force: options.Force = False,
    dtype: options.Dtype = None,
    device: options.Device = "cpu",
    as_json: options.AsJson = False,
) -> None:
    """Ask all corrections again, with all of them applied, and note what was answered.

    Exit status 1 means that one does not hold, or that two contradict each other. With --force and
    --model another model is asked, such as a quantised one, and nothing is noted.
    """
    opened = _open(book)
    lm = _open_model(opened, model, dtype, device)
    found = opened.check(lm, chat=chat, force=force)
    output.show(
        {"folder": str(book), "model": lm.name, **found.to_json()},
        as_json=as_json,
        people=lambda console: book_output.draw_check(console, found),
    )
    if not found.holds:
        raise typer.Exit(output.FINDING)


@app.command()
def status(
    book: Folder = Path(),
    model: OtherModel = None,
    dtype: options.Dtype = None,
    device: options.Device = "cpu",
    as_json: options.AsJson = False,
) -> None:
    """Say what can be said without asking: files, contradictions, what changed since the check.

    With --model, whether that is the model of the book. Exit status 1 means that a file is damaged,
    that corrections contradict each other, or that the model is another.
    """
    opened = _open(book)
    lm = None if model is None else options.open_model(model, dtype=dtype, device=device)
    found = opened.status(lm)
    output.show(
        {"folder": str(book), **found.to_json()},
        as_json=as_json,
        people=lambda console: book_output.draw_status(console, found),
    )
    if not found.is_sound:
        raise typer.Exit(output.FINDING)


@app.command()
def merge(
    other: Annotated[Path, typer.Argument(metavar="OTHER", show_default=False)],
    book: Folder = Path(),
    keep: Annotated[
        str | None,
        typer.Option(help="Which of two that contradict each other stays: ours or theirs."),
    ] = None,
    as_json: options.AsJson = False,
) -> None:
    """Take the corrections of another book of the same model; contradictions are named."""
    from corrigenda.books.folder import BookFolder
    from corrigenda.books.merging import Keep, merge_books
    from corrigenda.settings import parse_choice

    chosen = None if keep is None else parse_choice(Keep, keep)
    done = merge_books(BookFolder(book), BookFolder(other), chosen)
    output.show(
        {"folder": str(book), **done.to_json()},
        as_json=as_json,
        people=lambda console: book_output.draw_merge(console, done),
    )


@app.command()
def move(
    to: Annotated[str, typer.Option("--to", metavar="MODEL", help="The other base model.")],
    out: Annotated[
        Path, typer.Option("--output", "-o", metavar="FOLDER", help="The folder of the new book.")
    ],
    method: Annotated[
        str | None,
        typer.Option("--method", "-m", help="Method for all; that of each correction if not given"),
    ] = None,
    layer: Annotated[int | None, typer.Option(help="Block to edit; with --method.")] = None,
    settings: options.Settings = None,
    book: Folder = Path(),
    chat: options.Chat = None,
    dtype: options.Dtype = None,
    device: options.Device = "cpu",
    as_json: options.AsJson = False,
) -> None:
    """Make all corrections again on another base model, into a new book; again, it continues.

    Those that the new base states already, and those that no patch made true, are in the new book
    without a patch. Exit status 1 means that there are some of the latter.
    """
    if method is None and (settings or layer is not None):
        raise BadConfig("--set and --layer are for --method.", hint="Give the method too.")
    options.check_folder(out, folder=True)
    opened = _open(book)
    config = options.parse_settings(settings)
    lm = options.open_model(to, dtype=dtype, device=device)
    _, moved = opened.move(lm, out, method, chat=chat, layer=layer, **config)
    output.show(
        {"folder": str(out), "model": lm.name, **moved.to_json()},
        as_json=as_json,
        people=lambda console: book_output.draw_move(console, moved, out),
    )
    if moved.failed:
        raise typer.Exit(output.FINDING)


@app.command()
def export(
    out: Annotated[
        Path,
        typer.Option(
            "--output", "-o", metavar="PLACE", help="A new folder; for GGUF also a .gguf file."
        ),
    ],
    to: Annotated[Form, typer.Option(help="As for `corrigenda export`.")] = Form.PEFT,
    base: Annotated[
        Path | None,
        typer.Option(metavar="FILE.gguf", help="As for `corrigenda export`.", show_default=False),
    ] = None,
    weights: Annotated[
        str | None,
        typer.Option(metavar="TYPE", help="For gguf: f16, q8_0, q4_0 ...", show_default=False),
    ] = None,
    book: Folder = Path(),
    model: OtherModel = None,
    dtype: options.Dtype = None,
    device: options.Device = "cpu",
    as_json: options.AsJson = False,
) -> None:
    """Write the sum of all corrections in a form that other programs read, with a card."""
    folder = out.suffix != ".gguf" or to in (Form.PEFT, Form.MERGED)
    options.check_folder(out, folder=folder)
    opened = _open(book)
    lm = _open_model(opened, model, dtype, device)
    opened.export(lm, out, to=to.value, base=base, weight_type=weights)
    files = sorted(item.name for item in out.iterdir()) if folder else [out.name]
    output.show(
        {"place": str(out), "to": to.value, "corrections": len(opened), "files": files},
        as_json=as_json,
        people=lambda console: console.print(
            f"{out}: {len(opened)} corrections; {', '.join(files)}", soft_wrap=True
        ),
    )


@app.command("open")
def open_book(
    prompts: Annotated[
        list[str] | None,
        typer.Argument(metavar="[PROMPT...]", help="Read from stdin, line by line, if not given."),
    ] = None,
    tokens: Annotated[int, typer.Option(min=1, help="Longest continuation.")] = 16,
    book: Folder = Path(),
    model: OtherModel = None,
    chat: Annotated[
        bool, typer.Option("--chat/--no-chat", help="Use the model's chat template.")
    ] = False,
    dtype: options.Dtype = None,
    device: options.Device = "cpu",
    as_json: options.AsJson = False,
) -> None:
    """Ask the model of a book, without and with it; an empty line ends."""
    opened = _open(book)
    lm = _open_model(opened, model, dtype, device)
    if prompts:
        book_output.show_answers(opened, lm, prompts, tokens, chat=chat, as_json=as_json)
        return
    while True:
        if sys.stdin.isatty():
            output.stderr().print("prompt> ", end="")
        line = sys.stdin.readline().strip()
        if not line:
            return
        book_output.show_answers(opened, lm, [line], tokens, chat=chat, as_json=as_json)


def _open(folder: Path) -> Book:
    from corrigenda.books import Book

    return Book.open(folder)


def _open_model(book: Book, name: str | None, dtype: str | None, device: str) -> LanguageModel:
    return options.open_model(name or book.base.name, dtype=dtype, device=device)
