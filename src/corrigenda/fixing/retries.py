"""Further attempts at facts that did not take: stronger, elsewhere, otherwise, in a store."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

from corrigenda.assessment import Assessment, Outcome
from corrigenda.catalogue import build_editor
from corrigenda.errors import CorrigendaError
from corrigenda.facts import Fact
from corrigenda.fixing.search import EditMaker, list_outcomes, strengthen
from corrigenda.progress import report_stage
from corrigenda.tuning.scores import score_outcomes

if TYPE_CHECKING:
    from corrigenda.editor import Editor
    from corrigenda.lm.model import LanguageModel
    from corrigenda.patch import PatchValue

STORE = "grace"
"""Method that keeps the last facts beside the weights."""

OTHERS = ("rome", "memit")
"""Methods of which the first that is another one edits facts one by one, or several, again."""

_STRONG = 0.75


class RetryAttempt(NamedTuple):
    """A retry, and whether it was kept.

    Attributes:
        name: "stronger", "much stronger", "another layer", "another method" or "store".
        method: Method that was used.
        facts: Places of the facts that it was made for.
        kept: Whether it made more facts true than it cost.
        problem: Why it could not be made; empty where it could.
    """

    name: str
    method: str
    facts: tuple[int, ...]
    kept: bool
    problem: str = ""


class Retried(NamedTuple):
    """An edit after its retries.

    Attributes:
        patches: The patch, and those of the retries that were kept, in order.
        facts: For each patch, the places of its facts.
        assessment: What they do together.
        attempts: Every retry.
    """

    patches: tuple[PatchValue, ...]
    facts: tuple[tuple[int, ...], ...]
    assessment: Assessment
    attempts: tuple[RetryAttempt, ...]


def retry(maker: EditMaker, editor: Editor, patch: PatchValue, facts: Sequence[Fact]) -> Retried:
    """Ask for facts, and edit those again that did not take, on top of the patch.

    A fact did not take where its prompt has another answer, or fewer than three quarters of its
    paraphrases have the new one. A retry is kept where the score of all facts rises and no prompt
    is lost.

    Args:
        maker: Makes the patches.
        editor: The editor of the patch.
        patch: The patch.
        facts: All facts.
    """
    patches: list[PatchValue] = [patch]
    owned: list[tuple[int, ...]] = [tuple(range(len(facts)))]
    found = maker.measure(patches, facts)
    attempts: list[RetryAttempt] = []
    for name, other in _list_editors(maker.lm, editor):
        weak = list_weak(found, only_prompts=name == "store")
        if not weak:
            continue
        report_stage(f"edit: {name}", 0, 1)
        try:
            further = maker.make(other, [facts[place] for place in weak], patches)
            together = maker.measure([*patches, further], facts)
        except CorrigendaError as error:
            problem = f"{error.code} {error.message}"
            attempts.append(RetryAttempt(name, other.name, weak, False, problem))
            continue
        report_stage(f"edit: {name}", 1, 1)
        better = _is_better(together, found)
        attempts.append(RetryAttempt(name, other.name, weak, better))
        if better:
            found = together
            patches.append(further)
            owned.append(weak)
    return Retried(tuple(patches), tuple(owned), found, tuple(attempts))


def list_weak(found: Assessment, *, only_prompts: bool = False) -> tuple[int, ...]:
    """Return the places of facts that did not take."""
    plain = [one for one in list_outcomes(found) if not one.chat]
    return tuple(
        place
        for place, one in enumerate(plain)
        if found.outcomes[place] is Outcome.FAILED
        or (
            not only_prompts
            and one.paraphrase
            and sum(one.paraphrase) < _STRONG * len(one.paraphrase)
        )
    )


def _is_better(after: Assessment, before: Assessment) -> bool:
    failed = [sum(one is Outcome.FAILED for one in each.outcomes) for each in (after, before)]
    scores = [score_outcomes(list_outcomes(each)) for each in (after, before)]
    return failed[0] <= failed[1] and scores[0] > scores[1]


def _list_editors(lm: LanguageModel, editor: Editor) -> Iterator[tuple[str, Editor]]:
    """Yield the editors of the retries, with their names."""
    yield "stronger", strengthen(editor)
    yield "much stronger", strengthen(strengthen(editor))
    moved = move_layers(lm, editor)
    if moved is not None:
        yield "another layer", strengthen(moved)
    other = next(name for name in OTHERS if name != editor.name)
    yield "another method", build_editor(lm, other)
    if editor.name != STORE:
        yield "store", build_editor(lm, STORE)


def move_layers(lm: LanguageModel, editor: Editor) -> Editor | None:
    """Return an editor that works one block later, or earlier where there is none; None for others.

    A method of several blocks keeps their number.
    """
    layer = getattr(editor, "layer", None)
    layers = [site.layer for site in editor.sites(lm)]
    if layer is not None:
        moved = layer + 1 if layer + 1 < lm.num_layers else layer - 1
        return editor.model_copy(update={"layer": moved})
    if "layers" in type(editor).model_fields and layers:
        step = 1 if max(layers) + 1 < lm.num_layers else -1
        moved_layers = sorted({one + step for one in layers})
        if min(moved_layers) >= 0:
            return editor.model_copy(update={"layers": tuple(moved_layers)})
    return None
