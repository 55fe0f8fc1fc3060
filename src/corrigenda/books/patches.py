"""The patches of a book: their sum, and how a patch becomes part of one."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from corrigenda.books.folder import BookFolder, missing_patch
from corrigenda.books.records import BookBase, Correction, state_of
from corrigenda.catalogue import shape_of
from corrigenda.errors import (
    CorruptFile,
    DamagedBook,
    NotExportable,
    PickleRefused,
    WrongBase,
)
from corrigenda.lm.model import LanguageModel
from corrigenda.patch import Header, Patch, PatchValue, WeightPatch, ledger_of, load_patch
from corrigenda.patch.compare import add_up
from corrigenda.patch.ledger import digests_of
from corrigenda.patch.value import ComposedPatch, members_of


def describe_base(lm: LanguageModel) -> BookBase:
    """Return what a book notes of its model, without any patches active on it."""
    base = ledger_of(lm).base(lm)
    return BookBase(name=lm.name, digest=str(base), **shape_of(lm)._asdict())


def require_base_of(folder: BookFolder, lm: LanguageModel) -> None:
    """Refuse another model than that of a book.

    Raises:
        WrongBase (CG401): the digest is another.
    """
    digest = ledger_of(lm).base(lm)
    if digest != folder.base.digest:
        raise WrongBase(
            f"this book corrects {folder.base.name} ({folder.base.digest[:12]}), not {lm.name} as "
            f"it is now ({str(digest)[:12]}).",
            where=str(folder.path),
            hint="Load the very weights and dtype it was made on, or make the corrections again on "
            "this model: corrigenda book move --to MODEL.",
        )


def read_patch(folder: BookFolder, correction: Correction) -> PatchValue | None:
    """Return the patch of a correction; None where it has none.

    Raises:
        DamagedBook (CG802): the file is missing, damaged, or holds another patch.
    """
    if not correction.patch:
        return None
    file = folder.patch_file(correction)
    if not file.exists():
        raise missing_patch(correction, file)
    try:
        found = load_patch(file)
    except (CorruptFile, PickleRefused) as error:
        raise DamagedBook(
            f"the patch of correction {correction.name} cannot be read: {error.message}",
            where=str(file),
            hint="Take the file from the history again: git checkout -- FILE.",
        ) from error
    if found.digest() != correction.patch or not isinstance(found, PatchValue):
        raise DamagedBook(
            f"the file of correction {correction.name} holds another patch.",
            where=str(file),
            hint="Take the file from the history again: git checkout -- FILE.",
        )
    return found


def sum_patches(folder: BookFolder, corrections: Sequence[Correction] | None = None) -> PatchValue:
    """Return the sum of the patches of corrections, in order; of none, an empty patch.

    Args:
        folder: The book.
        corrections: Which; all of the book if None.

    Raises:
        DamagedBook (CG802): a patch cannot be read.
    """
    wanted = folder.corrections if corrections is None else corrections
    try:
        found = [read_patch(folder, one) for one in wanted]
    except DamagedBook:
        # Another process may have taken a correction out meanwhile.
        if corrections is not None or folder.corrections == wanted:
            raise
        return sum_patches(folder)
    patches = [one for one in found if one is not None]
    if patches:
        return add_up(patches)
    base = folder.base
    return WeightPatch({}, Header(method="book", base_digest=base.digest, base_name=base.name))


def make_independent(patch: PatchValue) -> PatchValue:
    """Return the same patch without prerequisites: in a book it is a term of a sum."""
    members = [
        dataclasses.replace(member, header=member.header.model_copy(update={"prerequisites": ()}))  # type: ignore[call-arg]  # every kind has a header
        for member in members_of(patch)
    ]
    return members[0] if len(members) == 1 else ComposedPatch(tuple(members))


def list_with_patches(corrections: Sequence[Correction]) -> list[Correction]:
    """Return the corrections that have a patch."""
    return [one for one in corrections if one.patch]


def find_made_on(folder: BookFolder, patch: PatchValue) -> str:
    """Return the state of the corrections that a patch was made on top of; empty for none.

    Raises:
        WrongBase (CG401): it was made on another model than that of the book, or on top of patches
            that are not in it.
    """
    header = patch.header
    if header.base_digest not in (None, folder.base.digest):
        raise WrongBase(
            f"this {header.method} patch was made on {header.base_name or 'another model'} "
            f"({str(header.base_digest)[:12]}); the book corrects {folder.base.name} "
            f"({folder.base.digest[:12]}).",
            where=str(folder.path),
            hint="Make the patch on the model of the book.",
        )
    if not header.prerequisites:
        return ""
    present = list_with_patches(folder.corrections)
    needed = set(header.prerequisites)
    below = [one for one in present if one.patch in needed]
    unknown = needed - {one.patch for one in below}
    if unknown:
        # The sum of all of them was active, and it has a digest of its own.
        unknown -= set(digests_of(sum_patches(folder, below)))
    if unknown:
        raise WrongBase(
            f"this {header.method} patch was made on top of {len(unknown)} patch(es) that are not "
            "in the book.",
            where="missing: " + ", ".join(sorted(name[:12] for name in unknown)),
            hint="Add those first, or make the patch with the book applied.",
        )
    return state_of(one.id for one in below)


def list_disturbed(corrections: Sequence[Correction]) -> list[Correction]:
    """Return the corrections made on top of others than those that are now before them.

    Their patches are as they were made; what they were made on has changed, so they are worth
    asking again.
    """
    found: list[Correction] = []
    before: list[str] = []
    for one in list_with_patches(corrections):
        if one.made_on and one.made_on != state_of(before):
            found.append(one)
        before.append(one.id)
    return found


def require_value(patch: Patch) -> PatchValue:
    """Refuse a patch of a plug-in that cannot be part of a sum.

    Raises:
        NotExportable (CG405): its class does not derive from `PatchValue`.
    """
    if not isinstance(patch, PatchValue):
        raise NotExportable(
            f"a {type(patch).__name__} cannot be part of a book.",
            where=patch.header.method,
            hint="Its class must derive from `PatchValue`.",
        )
    return patch
