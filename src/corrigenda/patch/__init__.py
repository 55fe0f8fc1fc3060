"""Edits as values: made once, applied and taken off to the bit, composed, saved, exported."""

from corrigenda.patch.changes import Change, Dense, Rows, digest_of
from corrigenda.patch.file import read_patch_file, save_patch
from corrigenda.patch.header import FORMAT_VERSION, Header, Part
from corrigenda.patch.ledger import Applied, Ledger, apply_hooks, header_for, ledger_of
from corrigenda.patch.load import load_patch
from corrigenda.patch.module import ModulePatch
from corrigenda.patch.protocols import AnswerPatch, HookPatch, Patch, PromptPatch
from corrigenda.patch.weights import WeightPatch

__all__ = [
    "FORMAT_VERSION",
    "AnswerPatch",
    "Applied",
    "Change",
    "Dense",
    "Header",
    "HookPatch",
    "Ledger",
    "ModulePatch",
    "Part",
    "Patch",
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
