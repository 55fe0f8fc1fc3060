"""Edits as values that are applied, reverted to the bit, composed, saved and exported."""

from corrigenda.patch.applied import Applied
from corrigenda.patch.changes import Change, Dense, Rows, digest_of
from corrigenda.patch.file import read_patch_file, save_patch
from corrigenda.patch.header import FORMAT_VERSION, Header, PatchPart
from corrigenda.patch.ledger import Ledger, header_for, ledger_of
from corrigenda.patch.load import load_patch
from corrigenda.patch.module import ModulePatch, apply_hooks
from corrigenda.patch.protocols import AnswerPatch, HookPatch, Patch, PromptPatch
from corrigenda.patch.value import ComposedPatch, PatchValue
from corrigenda.patch.weights import WeightPatch

__all__ = [
    "FORMAT_VERSION",
    "AnswerPatch",
    "Applied",
    "Change",
    "ComposedPatch",
    "Dense",
    "Header",
    "HookPatch",
    "Ledger",
    "ModulePatch",
    "Patch",
    "PatchPart",
    "PatchValue",
    "PromptPatch",
    "Rows",
    "WeightPatch",
    "apply_hooks",
    "digest_of",
    "header_for",
    "ledger_of",
    "load_patch",
    "read_patch_file",
    "save_patch",
]
