"""`Book`: the corrections of a model in a folder, on a model, and on the next one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from corrigenda.books.checking import BookCheck, BookStatus, check_corrections, describe_status
from corrigenda.books.folder import BookFolder, is_book
from corrigenda.books.history import LogEntry, read_log
from corrigenda.books.making import Additions, BookEditor, add_patch, make_corrections
from corrigenda.books.merging import Keep, Merge, merge_books
from corrigenda.books.moving import EditorsAgain, Moved, move_corrections
from corrigenda.books.patches import describe_base, require_base_of, sum_patches
from corrigenda.books.records import BookBase, Correction, Verdict
from corrigenda.catalogue import resolve_editor
from corrigenda.exports.export import export
from corrigenda.facts import FactLike, as_facts
from corrigenda.lm.wrapping import require_lm
from corrigenda.progress import show_progress
from corrigenda.settings import parse_choice

if TYPE_CHECKING:
    from corrigenda.assessment import Assessment
    from corrigenda.editor import Editor
    from corrigenda.lm.model import LanguageModel
    from corrigenda.patch import Applied, Patch, PatchValue
    from corrigenda.progress import Progress
    from corrigenda.training.dataset import TrainingSet


class Book:
    """The corrections of one model, as a folder under version control.

    A book is the sum of its patches: `apply` puts on exactly `first + second + ...`, in the order
    of the corrections. Each correction is made on top of those before it, because that is the model
    in which it has to hold; its patch is what it adds to the weights, whatever else is added. So
    `undo` takes one out exactly, wherever it is in the order: what is left is bit for bit the book
    that never had it. A correction that was made on top of one that has gone keeps its patch;
    `status` names it, and `check` asks whether it still holds.

    Example:
        ```python
        lm = cg.load("pocket")
        book = cg.Book.new("corrections", lm)
        book.make(lm, cg.Fact(prompt="The capital of France is", target="Rome"))
        with book.apply(lm):
            print(cg.ask(lm, "The capital of France is"))
        ```
    """

    def __init__(self, folder: BookFolder) -> None:
        """Made by `new` and `open`."""
        self._folder = folder

    @classmethod
    def new(cls, folder: str | Path, lm: LanguageModel) -> Book:
        """Make a book for a model, without corrections; the folder may exist.

        Raises:
            NotABook (CG801): the folder holds a book already.
            WriteFailed (CG601): it cannot be written.
        """
        return cls(BookFolder.create(folder, describe_base(require_lm(lm))))

    @classmethod
    def open(cls, folder: str | Path) -> Book:
        """Open a book.

        Raises:
            NotABook (CG801): there is none in this folder.
            DamagedBook (CG802), NewerFormat (CG404): its `book.toml` cannot be read.
        """
        return cls(BookFolder(folder))

    @property
    def folder(self) -> Path:
        """Return the folder."""
        return self._folder.path

    @property
    def base(self) -> BookBase:
        """Return the model that the book corrects: name, digest and sizes."""
        return self._folder.base

    @property
    def corrections(self) -> tuple[Correction, ...]:
        """Return the corrections in their order, read from the folder.

        Raises:
            DamagedBook (CG802): a record cannot be read.
        """
        return self._folder.corrections

    @property
    def state(self) -> str:
        """Return a hash of the corrections in their order; empty for none."""
        return self._folder.state

    def __len__(self) -> int:
        return len(self.corrections)

    def __repr__(self) -> str:
        return f"<book {self.folder}: {len(self)} corrections of {self.base.name}>"

    def find(self, name: str | int) -> Correction:
        """Return a correction by its number, its id, or the first digits of its id.

        Raises:
            UnknownCorrection (CG804): there is none, or there are several.
        """
        return self._folder.find(name)

    def patch(self, name: str | int | None = None) -> PatchValue:
        """Return the sum of all patches, or the patch of one correction; empty where there is none.

        Raises:
            DamagedBook (CG802): a patch is missing, damaged, or another one.
            UnknownCorrection (CG804): no such correction.
        """
        if name is None:
            return sum_patches(self._folder)
        return sum_patches(self._folder, [self.find(name)])

    def apply(
        self,
        lm: LanguageModel,
        *,
        mode: Literal["merge", "runtime"] = "merge",
        force: bool = False,
    ) -> Applied:
        """Put all corrections on a model; a context manager with `.revert()`.

        Args:
            lm: The model of the book.
            mode: As for `Patch.apply`.
            force: Put them on another model of the same shape.

        Raises:
            WrongBase (CG401): the model is not the base of the book.
            DamagedBook (CG802): a patch is missing, damaged, or another one.
            NotApplied (CG406) ...: as `Patch.apply`.
        """
        lm = require_lm(lm)
        if not force:
            require_base_of(self._folder, lm)
        return self.patch().apply(lm, mode=mode, force=force)

    def add(
        self,
        lm: LanguageModel,
        facts: FactLike | Sequence[FactLike],
        patch: Patch | None,
        settings: Mapping[str, object] | None = None,
        *,
        verdict: Verdict | Assessment | None = None,
    ) -> Correction:
        """Add a patch that was made already, after all others.

        Its prerequisites, if it was made on top of others, must be in the book; they are noted and
        dropped from its file.

        Args:
            lm: The model of the book; the model without patches, unless a verdict is given.
            facts: What the patch makes true, one fact or several.
            patch: The patch; None, or an empty one, for facts that hold on the base: the book keeps
                asking them.
            settings: Settings of its method; those in its header if None.
            verdict: What was measured; the facts are asked, with the book and the patch, if None.

        Returns:
            The correction.

        Raises:
            WrongBase (CG401): the model, or that of the patch, is not the base of the book; or the
                patch was made on top of patches that are not in the book.
            ConflictingCorrections (CG803): the book answers one of the questions already.
            NotExportable (CG405): a patch of a plug-in that cannot be part of a sum.
            WriteFailed (CG601): the book cannot be written; it is as it was.
        """
        found = tuple(as_facts(facts))
        return add_patch(self._folder, require_lm(lm), found, patch, settings, verdict)

    def make(
        self,
        lm: LanguageModel,
        facts: FactLike | Sequence[FactLike],
        editor: Editor | str = "rome",
        *,
        together: bool = False,
        corpus: TrainingSet | None = None,
        chat: bool | None = None,
        progress: Progress | bool | None = None,
        layer: int | None = None,
        **options: object,
    ) -> Additions:
        """Make facts true on top of the book, and add each as a correction of its own.

        Each is in the book as soon as it is made; where this is interrupted, those before it are
        there, and the same call again continues. Facts that the book or the model has already are
        left out, as are those that did not become true. The model is left as it was.

        Args:
            lm: The model of the book, without patches.
            facts: What should become true.
            editor: An editor, or the name of a method for the one with the model's preset; its
                state is fitted on the model without patches.
            together: Make one patch for all of them, as one correction, which is undone as one.
            corpus: Text or facts for the fit; see `corrigenda.fit`.
            chat: As for `corrigenda.edit`.
            progress: A callback with (stage, done, total), or False for no progress bar.
            layer: Block to edit; only with a name.
            **options: Options of the method, only with a name.

        Raises:
            WrongBase (CG401): the model is not the base of the book.
            BadConfig (CG502), UnknownMethod (CG501): as `corrigenda.edit`.
        """
        lm = require_lm(lm)
        require_base_of(self._folder, lm)
        found = resolve_editor(lm, editor, layer=layer, **options)
        wanted = as_facts(facts)
        with show_progress(progress) as report:
            state = found.fit(lm, corpus, progress=report)
            how = BookEditor(found, state, chat, progress)
            return make_corrections(self._folder, lm, wanted, how, together=together)

    def undo(self, name: str | int) -> Correction:
        """Take one correction out; what is left is the book that never had it, bit for bit.

        Its record is kept among those undone, its patch is removed; the history of the folder has
        both.

        Args:
            name: Its number, its id, or the first digits of its id.

        Raises:
            UnknownCorrection (CG804): there is none, or there are several.
            WriteFailed (CG601): it cannot be moved; the book is as it was.
        """
        return self._folder.undo(name)

    def check(
        self, lm: LanguageModel, *, chat: bool | None = None, force: bool = False
    ) -> BookCheck:
        """Ask every correction again, with all of them applied, and note what was answered.

        Args:
            lm: The model of the book, without patches.
            chat: Ask in the chat form too; by default where the model has a template.
            force: Ask another model of the same shape, such as a quantised one; nothing is noted.

        Raises:
            WrongBase (CG401): the model is not the base of the book.
            DamagedBook (CG802): a file is missing or damaged.
        """
        return check_corrections(self._folder, require_lm(lm), chat=chat, force=force)

    def status(self, lm: LanguageModel | None = None) -> BookStatus:
        """Return what can be said of the book without asking; every file is read and checked.

        Args:
            lm: A model, to be told whether it is the base of the book.
        """
        return describe_status(self._folder, None if lm is None else require_lm(lm))

    def log(self) -> tuple[LogEntry, ...]:
        """Return all corrections, those undone too, with author and date where git has them."""
        return read_log(self._folder)

    def move(
        self,
        lm: LanguageModel,
        folder: str | Path,
        editor: Editor | str | None = None,
        *,
        chat: bool | None = None,
        progress: Progress | bool | None = None,
        layer: int | None = None,
        **options: object,
    ) -> tuple[Book, Moved]:
        """Make all corrections again on another base model, into a new book.

        Each is made with its own method: with the settings that are recorded where the new base has
        the same shape, as the next release of a model has, else with the preset for the new base.
        Facts that the new base states already, and those that no patch made true, are in the new
        book without a patch, so that none is lost. Where the folder holds a book of that base, as
        after an interrupted move, this continues it.

        Args:
            lm: The other model.
            folder: The folder of the new book.
            editor: Make all with this editor, or the method of this name.
            chat: As for `corrigenda.edit`.
            progress: A callback with (stage, done, total), or False for no progress bar.
            layer: Block to edit; only with a name.
            **options: Options of the method, only with a name.

        Returns:
            The new book, and what was done with each correction.

        Raises:
            WrongBase (CG401): the folder holds a book of a third model.
            UnknownMethod (CG501), BadConfig (CG502): the editor given is none.
        """
        lm = require_lm(lm)
        new = Book.open(folder) if is_book(folder) else Book.new(folder, lm)
        require_base_of(new._folder, lm)
        chosen = None if editor is None else resolve_editor(lm, editor, layer=layer, **options)
        with show_progress(progress) as report:
            editors = EditorsAgain(
                self._folder,
                lm,
                editor=chosen,
                same_shape=self.base.shape == new.base.shape,
                chat=chat,
                progress=report if callable(report) else progress,
            )
            return new, move_corrections(self._folder, new._folder, lm, editors)

    def merge(self, other: Book, *, keep: Keep | str | None = None) -> Merge:
        """Take the corrections of another book of the same base into this one.

        What one of the two has taken out is out. Corrections that contradict each other are named
        and nothing is done, unless `keep` says which stay. The other book is left as it is.

        Args:
            other: The other book.
            keep: "ours" or "theirs".

        Raises:
            WrongBase (CG401): it corrects another model.
            ConflictingCorrections (CG803): the books contradict each other; all places are listed.
        """
        chosen = None if keep is None else parse_choice(Keep, keep)
        return merge_books(self._folder, other._folder, chosen)

    def export(self, lm: LanguageModel, path: str | Path, **options: object) -> None:
        """Write the sum of all patches in a form that another program reads.

        Args:
            lm: The model of the book.
            path: As for `corrigenda.export`, as are the options and errors.
            **options: Such as `to="gguf-adapter"`.
        """
        require_base_of(self._folder, require_lm(lm))
        export(self.patch(), lm, path, **options)  # type: ignore[arg-type]  # checked there
