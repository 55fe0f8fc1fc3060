"""The laws that every editing method obeys, for the methods of this library and for plug-ins.

```python
from corrigenda.testing.editor import check_editor

def test_laws(lm):
    editor = MyEditor(layer=2)
    check_editor(editor, lm, facts, editor.fit(lm, texts))
```

Each law raises an `AssertionError` whose message names it.
"""

from __future__ import annotations

import copy
import pickle
import tempfile
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from corrigenda.editor import Editor
from corrigenda.errors import CorrigendaError, MissingState, NotEnoughFacts
from corrigenda.facts import Fact
from corrigenda.lm.decoding import greedy, next_token_top, score
from corrigenda.lm.model import LanguageModel
from corrigenda.lm.sites import Tokens
from corrigenda.patch import AnswerPatch, Patch, PromptPatch, WeightPatch, load_patch
from corrigenda.patch.changes import dense
from corrigenda.state import State

# Relative difference of logits between a merged weight, rounded to its dtype, and the exact sum at
# run time; and of two patches that differ by the order of sums only.
_MERGED = {torch.float64: 1e-9, torch.float32: 1e-5, torch.bfloat16: 0.03, torch.float16: 0.005}
_SAME = {torch.float64: 1e-9, torch.float32: 1e-3, torch.bfloat16: 0.02, torch.float16: 0.01}
_EXACT = 1e-6


def check_editor(
    editor: Editor, lm: LanguageModel, facts: Sequence[Fact], state: State | None = None
) -> None:
    """Run the laws of editing for one editor.

    1. Pure: `edit` leaves every bit of the model as it was, also when it raises.
    2. Reversible: applying and reverting is bitwise identity; patches come off in any order.
    3. Deterministic: the same model, facts and state give an equal patch.
    4. Neutral: no facts give the empty patch.
    5. Portable: a saved patch loads as an equal one; merged and run-time application agree.
    6. Honest: what `supports` claims holds, and `requires` lists all that is needed.
    7. Contained, where `supports` claims it: a question out of scope gives exactly what the
       unedited model gives.

    Args:
        editor: The editor, with settings that make it quick; if it is contained, with a scope that
            ends before the other facts.
        lm: A small model without active patches.
        facts: At least two facts about different subjects, each of which changes the model.
        state: What `editor.fit(lm, ...)` returned; None where the method needs nothing.

    Raises:
        AssertionError: a law does not hold; the message names it.
    """
    assert len({fact.subject for fact in facts}) > 1, "give at least two facts, two subjects"
    case = _Case(editor, lm, facts, state)
    pure(case)
    reversible(case)
    deterministic(case)
    neutral(case)
    portable(case)
    honest(case)
    contained(case)


class _Case:
    """An editor on a model with its facts, and the model's bits and answers before anything."""

    def __init__(
        self, editor: Editor, lm: LanguageModel, facts: Sequence[Fact], state: State | None
    ) -> None:
        self.editor, self.lm, self.facts, self.state = editor, lm, list(facts), state
        self.group = self.facts if editor.supports.batch else self.facts[:1]
        rows = [lm.tokenizer(fact.prompt).input_ids for fact in facts]
        self.tokens = Tokens.pad(rows, 0).to(lm.device)
        self.bits = {name: tensor.clone() for name, tensor in lm.model.state_dict().items()}
        self.logits = lm.logits(self.tokens).clone()
        self.before = self.logits
        self.digest = lm.digest()
        self.by_asking = False

    def edit(self, facts: Sequence[Fact] | None = None) -> Patch:
        """Return the patch for some facts, or for as many as the editor takes at once."""
        facts = self.group if facts is None else facts
        patch = self.editor.edit(self.lm, facts, self.state).patch
        if not self.by_asking and isinstance(patch, PromptPatch | AnswerPatch):
            self.by_asking = True
            self.before = self.answers()
        return patch

    def answers(self) -> Tensor:
        """Return the logits that the model gives for the prompts.

        Where patches change the prompt or answer themselves, logits stay as they are, and it is the
        log-probabilities of the targets followed by the text that is answered.
        """
        if not self.by_asking:
            return self.lm.logits(self.tokens).clone()
        ratings = score(self.lm, [(fact.prompt, fact.target) for fact in self.facts])
        texts = greedy(self.lm, [fact.prompt for fact in self.facts], max_new_tokens=4)
        numbers = [one for rating in ratings for one in rating.log_probs]
        return torch.tensor([*numbers, *"\n".join(texts).encode()], dtype=torch.float64)

    def require_untouched(self, law: str, when: str) -> None:
        """Check that every parameter, logit and the digest are to the bit as before."""
        for name, tensor in self.lm.model.state_dict().items():
            assert _same_bits(tensor, self.bits[name]), f"{law}: {name} changed {when}"
        same = _same_bits(self.lm.logits(self.tokens), self.logits)
        if self.by_asking:
            same = same and _same_bits(self.answers(), self.before)
        assert same, f"{law}: the model answers differently {when}"
        assert self.lm.digest() == self.digest, f"{law}: the digest changed {when}"


def pure(case: _Case) -> None:
    """Law 1: `edit` leaves the model as it was, also when it raises."""
    patch = case.edit()
    assert not patch.is_empty, "pure: the facts given change nothing, so nothing is tested"
    case.require_untouched("pure", "by an edit")
    first = case.group[0]
    failing = [replace(first, prompt=first.prompt + " and" * case.lm.context_length)]
    if case.editor.requires.subject:
        failing.append(replace(first, subject=None, subject_start=None))
    for fact in failing:
        _require_error(case, [*case.group[1:], fact], case.state, CorrigendaError)
        case.require_untouched("pure", "by an edit that raised")


def reversible(case: _Case) -> None:
    """Law 2: applying and reverting is bitwise identity; patches come off in any order."""
    one, two = case.edit(case.facts[:1]), case.edit(case.facts[1:2])
    for mode in ("merge", "runtime"):
        for order in ((0, 1), (1, 0)):
            with one.apply(case.lm, mode=mode):
                alone = case.answers()
            case.require_untouched("reversible", f"after one patch ({mode})")
            assert not _same_bits(alone, case.before), f"reversible: a patch ({mode}) does nothing"
            applied = [one.apply(case.lm, mode=mode), two.apply(case.lm, mode=mode)]
            applied[order[0]].revert()
            if order[0] == 1:
                assert _same_bits(case.answers(), alone), (
                    f"reversible: taking off the second patch ({mode}) does not leave the first"
                )
            applied[order[1]].revert()
            case.require_untouched("reversible", f"after two patches ({mode}), order {order}")


def deterministic(case: _Case) -> None:
    """Law 3: the same model, facts and state give an equal patch."""
    torch.manual_seed(1)
    one = case.edit()
    torch.manual_seed(2)
    assert one == case.edit(), "deterministic: the same edit gives another patch"
    with torch.inference_mode():
        asked_inside = case.edit()
    assert one == asked_inside, "deterministic: in torch.inference_mode an edit gives another patch"


def neutral(case: _Case) -> None:
    """Law 4: no facts give the empty patch."""
    patch = case.edit([])
    assert patch.is_empty, "neutral: no facts give a patch that is not empty"
    with patch.apply(case.lm):
        case.require_untouched("neutral", "by an empty patch")


def portable(case: _Case) -> None:
    """Law 5: a saved patch loads as an equal one; merged and run-time application agree."""
    patch = case.edit()
    with tempfile.TemporaryDirectory() as folder:
        loaded = load_patch(patch.save(Path(folder) / "patch.safetensors"))
    assert loaded == patch, "portable: the loaded patch differs from the saved one"
    for copied in (copy.deepcopy(patch), pickle.loads(pickle.dumps(patch))):  # our own bytes
        assert copied == patch, "portable: a copy of the patch differs from it"
    with patch.apply(case.lm):
        merged = case.answers().double()
    with loaded.apply(case.lm, mode="runtime"):
        runtime = case.answers().double()
    allowed = _MERGED[case.lm.dtype]
    differs = _relative(merged, runtime)
    assert differs <= allowed, (
        f"portable: merged and run-time logits differ by {differs:.2g}, allowed {allowed:g}"
    )


def honest(case: _Case) -> None:
    """Law 6: what `supports` claims holds, and `requires` lists all that is needed."""
    supports, requires = case.editor.supports, case.editor.requires
    if requires.moments or requires.training_set:
        _require_error(case, case.group, None, MissingState)
    else:
        assert case.state is None or not case.editor.edit(case.lm, case.group).patch.is_empty, (
            "honest: `requires` asks for nothing, yet without a state nothing is edited"
        )
    if supports.single:
        assert not case.edit(case.facts[:1]).is_empty, "honest: one fact is not edited"
    if not supports.batch:
        _require_error(case, case.facts, case.state, NotEnoughFacts)
    patch = case.edit()
    with _padding_side(case.lm, "left"):
        _require_close(case, case.edit(), patch, "honest: the padding side changes the patch")
    if supports.order_free:
        permuted = case.edit(case.group[::-1])
        _require_close(case, permuted, patch, "honest: the order of facts changes the patch")
    if supports.exact:
        _require_exact(case, patch)
    if supports.sequential:
        _require_sequence(case)


def contained(case: _Case) -> None:
    """Law 7: a question out of scope gives, to the bit, what the unedited model gives."""
    if not case.editor.supports.contained:
        return
    lm, first = case.lm, case.facts[0]
    outside = [fact for fact in case.facts if fact.subject != first.subject]
    pairs = [(fact.prompt, fact.target) for fact in outside]
    prompts = [fact.prompt for fact in outside]
    rows = torch.tensor([fact.subject != first.subject for fact in case.facts])

    def answers() -> tuple[object, ...]:
        return score(lm, pairs), next_token_top(lm, prompts), greedy(lm, prompts, max_new_tokens=4)

    before = answers()
    with case.edit([first]).apply(lm):
        assert answers() == before, "contained: a question out of scope is answered differently"
        logits = lm.logits(case.tokens)[rows.to(lm.device)]
    assert _same_bits(logits, case.logits[rows.to(lm.device)]), (
        "contained: a question out of scope is answered differently next to one in scope"
    )


def _require_exact(case: _Case, patch: Patch) -> None:
    constraints = case.editor.constraints(case.lm, case.group, case.state)
    assert constraints, "honest: an exact editor states no constraints"
    assert isinstance(patch, WeightPatch), "honest: only changes of weights are exact"
    for site, (keys, values) in constraints.items():
        weight = case.lm.weight(site).double() + dense(patch.changes[site]).to(case.lm.device)
        differs = _relative(weight @ keys.double(), values.double())
        assert differs <= _EXACT, f"honest: (W + dW) k misses v by {differs:.2g} at {site}"


def _require_sequence(case: _Case) -> None:
    first, state = case.editor.edit(case.lm, case.facts[:1], case.state)
    applied = first.apply(case.lm)
    with_first = case.answers()
    second, _ = case.editor.edit(case.lm, case.facts[1:2], state)
    assert _same_bits(case.answers(), with_first), (
        "honest: the second edit of a sequence disturbs the first"
    )
    on_top = second.apply(case.lm)
    applied.revert()
    on_top.revert()
    case.require_untouched("honest", "by a sequence of two edits")


def _require_error(
    case: _Case, facts: Sequence[Fact], state: State | None, kind: type[CorrigendaError]
) -> None:
    try:
        case.editor.edit(case.lm, facts, state)
    except kind:
        return
    raise AssertionError(f"honest: {kind.__name__} ({kind.code}) was expected and not raised")


def _require_close(case: _Case, ours: Patch, theirs: Patch, law: str) -> None:
    """Check equality up to rounding: of changes for weights, else of the model's answers."""
    allowed = _SAME[case.lm.dtype]
    if isinstance(ours, WeightPatch) and isinstance(theirs, WeightPatch):
        assert ours.sites == theirs.sites, f"{law}: other sites"
        differs = max(
            _relative(dense(ours.changes[site]), dense(theirs.changes[site])) for site in ours.sites
        )
    else:
        answers = []
        for patch in (ours, theirs):
            with patch.apply(case.lm):
                answers.append(case.answers().double())
        differs = _relative(*answers)
    assert differs <= allowed, f"{law} by {differs:.2g}, allowed {allowed:g}"


@contextmanager
def _padding_side(lm: LanguageModel, side: str) -> Generator[None]:
    before = lm.tokenizer.padding_side
    lm.tokenizer.padding_side = side
    try:
        yield
    finally:
        lm.tokenizer.padding_side = before


def _relative(ours: Tensor, theirs: Tensor) -> float:
    if ours.shape != theirs.shape:
        return float("inf")
    return float((ours - theirs).norm() / theirs.norm().clamp_min(1e-30))


def _same_bits(ours: Tensor, theirs: Tensor) -> bool:
    return torch.equal(ours.contiguous().view(torch.uint8), theirs.contiguous().view(torch.uint8))
