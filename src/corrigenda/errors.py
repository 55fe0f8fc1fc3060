"""Every error a user can cause, with a stable code and a page in `docs/errors/`.

One class for each decision a caller can take. The page of the code explains symptom, cause and
cure.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar


class CorrigendaError(ValueError):
    """An error that the user can mend; `str(error)` starts with its code."""

    code: ClassVar[str] = "CG000"

    def __init__(self, message: str, *, where: str = "", hint: str = "") -> None:
        """Compose the text that is shown.

        Args:
            message: What happened, and what was expected.
            where: The fact, file, line, method or model concerned.
            hint: What to do about it.
        """
        self.message, self.where, self.hint = message, where, hint
        lines = [f"{self.code} {type(self).__name__}: {message}"]
        lines += [f"  {line}" for line in (where, hint) if line]
        super().__init__("\n".join(lines))


class MalformedFacts(CorrigendaError):
    """A facts file or record cannot be read; all problems found are listed together."""

    code = "CG101"


class EmptyTarget(CorrigendaError):
    """A fact has an empty target or an empty prompt."""

    code = "CG102"


class SubjectNotFound(CorrigendaError):
    """The subject does not occur in the prompt, or not at the place stated."""

    code = "CG103"


class AmbiguousSubject(CorrigendaError):
    """The subject occurs more than once, or none was given and it is not certain."""

    code = "CG104"


class PromptTooLong(CorrigendaError):
    """Prompt and target together exceed the context of the model."""

    code = "CG105"


class NotEnoughFacts(CorrigendaError):
    """The method cannot take these facts together: too many for it, or duplicates."""

    code = "CG106"


class AlreadyTrue(CorrigendaError):
    """The model answers with the target already; a notice, not raised: nothing is changed."""

    code = "CG107"


class NonFinite(CorrigendaError):
    """A key, a target vector or a solve holds infinities or NaN."""

    code = "CG201"


class DependentKeys(CorrigendaError):
    """Equality constraints on linearly dependent keys have no solution."""

    code = "CG202"


class IllConditioned(CorrigendaError):
    """A second moment or a system has no Cholesky factor, or its condition number is beyond use."""

    code = "CG203"


class UnknownModel(CorrigendaError):
    """No model by that name or at that path."""

    code = "CG301"


class UnknownFamily(CorrigendaError):
    """The architecture is not in the table and cannot be resolved by its names and shapes."""

    code = "CG302"


class UnknownSite(CorrigendaError):
    """The model has no such layer, part or expert."""

    code = "CG303"


class QuantisedWeights(CorrigendaError):
    """Quantised weights are never written into."""

    code = "CG304"


class SlowTokenizer(CorrigendaError):
    """Character offsets need a fast tokenizer."""

    code = "CG305"


class LostPrompts(CorrigendaError):
    """A patch that is routed on the prompt does not know the prompts of the rows it sees."""

    code = "CG306"


class NotAModel(CorrigendaError):
    """Something else than a wrapped model or its parts, or a model that cannot be used."""

    code = "CG307"


class CompiledModel(CorrigendaError):
    """A model, or a block of it, runs as compiled code, in which hooks do nothing."""

    code = "CG308"


class WrongBase(CorrigendaError):
    """The patch was made on another model."""

    code = "CG401"


class CorruptFile(CorrigendaError):
    """A patch or state file is truncated, tampered with, or not one of ours."""

    code = "CG402"


class PickleRefused(CorrigendaError):
    """Pickle files can run code when opened and are never read."""

    code = "CG403"


class NewerFormat(CorrigendaError):
    """The file was written by a newer version of this library."""

    code = "CG404"


class NotExportable(CorrigendaError):
    """This patch cannot be written in the form asked for."""

    code = "CG405"


class NotApplied(CorrigendaError):
    """The patch is not active on this model, or is active already."""

    code = "CG406"


class WeightsChanged(CorrigendaError):
    """Something other than patches has written into a patched weight; reverting would lose it."""

    code = "CG407"


class EditRefused(CorrigendaError):
    """The guard measured damage beyond the limits; the edit was taken back."""

    code = "CG408"


class UnknownMethod(CorrigendaError):
    """No method by that name."""

    code = "CG501"


class BadConfig(CorrigendaError):
    """An option of a method, preset or command has a value it cannot take."""

    code = "CG502"


class MissingState(CorrigendaError):
    """The method needs a state that was not given, or one fitted for other sites or models."""

    code = "CG503"


class MissingExtra(CorrigendaError):
    """An optional dependency is not installed; the message holds the pip command."""

    code = "CG504"


class UnknownMetric(CorrigendaError):
    """No metric by that name, or not under that protocol."""

    code = "CG505"


class MixedRows(CorrigendaError):
    """Rows that must not be averaged: of several runs, or two answers to one probe."""

    code = "CG506"


class MalformedRows(CorrigendaError):
    """A row contradicts itself, or lacks what the metric reads."""

    code = "CG507"


class UnknownBenchmark(CorrigendaError):
    """No benchmark by that name."""

    code = "CG508"


class NotResampled(CorrigendaError):
    """The value of a case is no mean of its answers, so they cannot be resampled within it."""

    code = "CG509"


class WriteFailed(CorrigendaError):
    """A file could not be written completely; the old one, if any, is as it was."""

    code = "CG601"


class EmptyCorpus(CorrigendaError):
    """The text given for statistics holds no tokens."""

    code = "CG602"


class MalformedRecords(CorrigendaError):
    """A benchmark file cannot be read, or its records have another schema; problems are listed."""

    code = "CG603"


class MissingData(CorrigendaError):
    """A file of a benchmark is neither at the place given nor to be downloaded."""

    code = "CG604"


class WrongChecksum(CorrigendaError):
    """A downloaded file is not the one that was published."""

    code = "CG605"


class RunInUse(CorrigendaError):
    """Another process works in the folder of a run."""

    code = "CG606"


class NoCases(CorrigendaError):
    """A run has no case that can be used, or no probe to ask."""

    code = "CG607"


def did_you_mean(name: str, known: Sequence[str]) -> str:
    """Return a hint that names the closest of the known names, else lists them all.

    Example:
        >>> did_you_mean("mimet", ["rome", "memit"])
        'Did you mean "memit"?'
    """
    import difflib

    close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f'Did you mean "{close[0]}"?' if close else f"Known: {', '.join(sorted(known))}."


class UnsafeAddress(CorrigendaError):
    """A server would be reached from other machines, and asks for no token."""

    code = "CG701"


class NotABook(CorrigendaError):
    """The folder holds no book of corrections, or holds one already where one is to be made."""

    code = "CG801"


class DamagedBook(CorrigendaError):
    """A file of a book is missing, or is not what was written."""

    code = "CG802"


class ConflictingCorrections(CorrigendaError):
    """Corrections give different answers to the same question; all of them are listed."""

    code = "CG803"


class UnknownCorrection(CorrigendaError):
    """No correction of the book by that number or id, or several."""

    code = "CG804"
