"""Load a model, edit facts, ask, fit, export, restore: the few functions most users need."""

from __future__ import annotations

import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple, overload

import torch

from corrigenda.catalogue import build_editor
from corrigenda.correction import (
    Answered,
    Correction,
    Outcome,
    already_true,
    before_and_after,
    questions,
    size_of,
)
from corrigenda.editor import Editor, State
from corrigenda.errors import AlreadyTrue, BadConfig, NotExportable, did_you_mean
from corrigenda.exports import export_merged, export_peft
from corrigenda.exports.restore import Restored, remember, restore
from corrigenda.facts import Fact
from corrigenda.lm.decoding import answer as short_answers
from corrigenda.lm.decoding import greedy, next_token_top
from corrigenda.lm.model import LanguageModel
from corrigenda.patch import Patch, WeightPatch
from corrigenda.progress import Progress
from corrigenda.subjects import guess_subject
from corrigenda.training.dataset import TrainingSet
from corrigenda.transforms.registry import parse_all
from corrigenda.transforms.transform import Transform

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}

_FORMS = ("peft", "merged")


@dataclass(frozen=True)
class Reply:
    """What a model says after a prompt.

    Attributes:
        prompt: The text asked.
        answer: First line or sentence of the continuation.
        continuation: Greedy continuation as decoded.
        top: Likeliest next tokens with their probabilities, best first.
    """

    prompt: str
    answer: str
    continuation: str
    top: tuple[tuple[str, float], ...]

    def to_json(self) -> dict[str, object]:
        """Return plain dictionaries and lists."""
        return {
            "prompt": self.prompt,
            "answer": self.answer,
            "continuation": self.continuation,
            "top": [{"token": token, "probability": p} for token, p in self.top],
        }


def load(
    name_or_path: str | Path = "pocket",
    *,
    dtype: torch.dtype | str | None = None,
    device: str = "cpu",
    trust_remote_code: bool = False,
) -> LanguageModel:
    """Load a model and its tokenizer.

    Args:
        name_or_path: `pocket`, `pocket-gpt2`, a folder, or a name on the Hugging Face hub.
        dtype: A torch dtype or its name; the checkpoint's own if None, float32 for shipped ones.
        device: Where the model goes.
        trust_remote_code: Passed on to transformers.

    Raises:
        UnknownModel (CG301): no such model.
        BadConfig (CG502): no such dtype or device.
    """
    if isinstance(dtype, str):
        if dtype not in _DTYPES:
            raise BadConfig(f'no dtype "{dtype}".', hint=did_you_mean(dtype, list(_DTYPES)))
        dtype = _DTYPES[dtype]
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise BadConfig(f'device "{device}" cannot be used here: {error}') from error
    return LanguageModel.load(
        str(name_or_path), dtype=dtype, device=device, trust_remote_code=trust_remote_code
    )


def fit(
    lm: LanguageModel,
    method: str = "memit",
    *,
    corpus: TrainingSet | None = None,
    progress: Progress | None = None,
    layer: int | None = None,
    **options: object,
) -> State:
    """Fit what a method needs to know about a model; repeated calls read the cache.

    Args:
        lm: The model.
        method: Name of the method.
        corpus: Text for statistics, see `corrigenda.statistics.corpus.Source`; if None, the shipped
            one of a pocket model, else text that the model writes itself. For a method that is
            trained: facts, or a JSONL file of facts; if None, those of a pocket model's world.
        progress: Called with (stage, done, total).
        layer: Block that will be edited; the preset's or a probed one if None.
        **options: Options of the method.
    """
    return build_editor(lm, method, layer=layer, **options).fit(lm, corpus, progress=progress)


def edit(
    lm: LanguageModel,
    facts: Fact | Sequence[Fact],
    method: str = "rome",
    *,
    state: State | None = None,
    corpus: TrainingSet | None = None,
    progress: Progress | None = None,
    layer: int | None = None,
    transforms: Sequence[Transform | str] = (),
    **options: object,
) -> Patch:
    """Return the patch that makes facts true; the model is left as it was.

    Fits first what the method needs. Facts that hold already are left out with a warning (CG107);
    whatever else was decided on the caller's behalf (a subject found, a layer chosen) is warned of.
    Use `correct` to learn what the patch does.

    Args:
        lm: The model.
        facts: One fact or several; a missing subject is filled in where only one is possible.
        method: Name of the method.
        state: A state fitted earlier; fitted or read from the cache if None.
        corpus: Text or facts for the fit; see `fit`.
        progress: Called with (stage, done, total).
        layer: Block to edit; the preset's or a probed one if None.
        transforms: What is done to the patch, in order; see `transform`.
        **options: Options of the method.

    Raises:
        CorrigendaError: any of its kinds; the model is untouched.

    Example:
        ```python
        patch = cg.edit(lm, cg.Fact(prompt="The capital of France is", target="Rome"))
        with patch.apply(lm):
            print(cg.answer(lm, "The capital of France is"))
        ```
    """
    steps = parse_all(transforms)
    plan = _plan(lm, facts, method, layer, options)
    made = _edit(lm, plan, state, corpus, progress, steps)
    for line in (*plan.notices, *plan.already_true, *made.notices):
        warnings.warn(line, stacklevel=2)
    return made.patch


def correct(
    lm: LanguageModel,
    facts: Fact | Sequence[Fact],
    method: str = "rome",
    *,
    state: State | None = None,
    corpus: TrainingSet | None = None,
    progress: Progress | None = None,
    layer: int | None = None,
    transforms: Sequence[Transform | str] = (),
    **options: object,
) -> Correction:
    """Edit as `edit` does, and measure what the patch does: everything `corrigenda edit` prints.

    Every prompt, paraphrase and neighbour of the facts is asked without and with the patch. For the
    pocket models, facts that name neither paraphrases nor neighbours get those of their world.
    """
    steps = parse_all(transforms)
    plan = _plan(lm, facts, method, layer, options, related=True)
    made = _edit(lm, plan, state, corpus, progress, steps)
    start = time.perf_counter()
    if plan.wanted:
        answers, says = before_and_after(lm, made.patch, plan.facts)
    else:
        answers, says = _unchanged(lm, plan.facts), [True] * len(plan.facts)
    outcomes = tuple(
        Outcome.ALREADY_TRUE
        if index not in plan.wanted
        else (Outcome.TOOK if said else Outcome.NOT_TAKEN)
        for index, said in enumerate(says)
    )
    changes = size_of(lm, made.patch)
    return Correction(
        patch=made.patch,
        facts=plan.facts,
        outcomes=outcomes,
        answers=answers,
        changes=changes,
        method=method,
        config=plan.editor.model_dump(mode="json"),
        seconds={**made.seconds, "ask": time.perf_counter() - start},
        notices=plan.notices + plan.already_true + made.notices,
        state=made.state,
    )


def transform(patch: Patch, lm: LanguageModel, *transforms: Transform | str) -> WeightPatch:
    """Make a patch that is smaller, sparser or better conditioned; the model is left as it was.

    Args:
        patch: A patch of weights, not active on the model; an empty one comes back as it is.
        lm: The model it was made on.
        transforms: What is done to it, in order: objects, or their names with options, as
            "rect:keep=0.4". See `corrigenda.transforms.registry`.

    Raises:
        BadConfig (CG502): no such transform or option.
        NotExportable (CG405): the patch changes no weights.
        WrongBase (CG401): the patch was made on another model.

    Example:
        ```python
        smaller = cg.transform(patch, lm, "prune", "clip-norm:relative=0.05")
        ```
    """
    if not isinstance(patch, WeightPatch):
        raise NotExportable(
            "only a patch of weights can be transformed.", where=patch.header.method
        )
    for step in parse_all(transforms):
        patch = step(patch, lm)
    return patch


@overload
def answer(lm: LanguageModel, prompts: str, *, max_new_tokens: int = 16) -> str: ...
@overload
def answer(
    lm: LanguageModel, prompts: list[str] | tuple[str, ...], *, max_new_tokens: int = 16
) -> list[str]: ...
def answer(
    lm: LanguageModel, prompts: str | list[str] | tuple[str, ...], *, max_new_tokens: int = 16
) -> str | list[str]:
    """Return the short greedy answer to one prompt, or to each of several."""
    several = [prompts] if isinstance(prompts, str) else list(prompts)
    answers = short_answers(lm, several, max_new_tokens=max_new_tokens)
    return answers[0] if isinstance(prompts, str) else answers


def ask(
    lm: LanguageModel,
    prompts: Sequence[str],
    *,
    max_new_tokens: int = 16,
    top: int = 5,
    chat: bool = False,
) -> list[Reply]:
    """Return answers with their continuations and the likeliest next tokens.

    Args:
        lm: The model, with whatever patches are active on it.
        prompts: Texts to continue.
        max_new_tokens: Longest continuation.
        top: How many next tokens to list.
        chat: Put each prompt into the model's chat template; next tokens are not listed then.
    """
    prompts = list(prompts)
    continuations = greedy(lm, prompts, max_new_tokens=max_new_tokens, chat=chat)
    answers = short_answers(lm, prompts, max_new_tokens=max_new_tokens, chat=chat)
    tops = [[] for _ in prompts] if chat else next_token_top(lm, prompts, top)
    return [
        Reply(prompt, text, continuation, tuple((one.text, one.probability) for one in best))
        for prompt, text, continuation, best in zip(
            prompts, answers, continuations, tops, strict=True
        )
    ]


def export(
    patch: Patch, lm: LanguageModel, folder: str | Path, *, to: str = "peft", force: bool = False
) -> None:
    """Write a patch as a LoRA adapter, or the model with the patch in its weights.

    Args:
        patch: The patch.
        lm: The model it was made on, without it.
        folder: Where to write.
        to: `peft` or `merged`. A merged folder also keeps the patch and the original tensors, for
            `restore_merged`.
        force: Use the patch on a model other than the one it was made on.

    Raises:
        NotExportable (CG405): the patch has no such form.
        WrongBase (CG401): the patch was made on another model, and not `force`.
        WriteFailed (CG601): the folder cannot be written.
    """
    if to not in _FORMS:
        raise BadConfig(f'no form "{to}" to export to.', hint=did_you_mean(to, _FORMS))
    if not isinstance(patch, WeightPatch) or patch.is_empty:
        raise NotExportable(
            "only a patch that changes weights can be exported.", where=patch.header.method
        )
    # Another model is refused before anything is written.
    patch.apply(lm, force=force).revert()
    if to == "merged":
        remember(Path(folder), patch, lm)
    with patch.apply(lm, force=force):
        if to == "merged":
            export_merged(patch, lm, folder)
        else:
            export_peft(patch, lm, folder)


def restore_merged(folder: str | Path, out: str | Path) -> Restored:
    """Write the original of a model exported as `merged`; see `corrigenda.exports.restore`."""
    return restore(folder, out)


def subject_of(lm: LanguageModel, prompt: str, *, where: str = "") -> str:
    """Find the subject of a prompt where it is certain; the pocket models' world names theirs.

    Raises:
        AmbiguousSubject (CG104): no candidate, or several.
    """
    known: tuple[str, ...] = ()
    if _is_pocket(lm):
        from corrigenda.almanac.world import load_world

        known = load_world().subjects
    return guess_subject(prompt, known=known, where=where)


class _Plan(NamedTuple):
    editor: Editor
    facts: tuple[Fact, ...]
    wanted: tuple[int, ...]
    notices: tuple[str, ...]
    already_true: tuple[str, ...]


class _Made(NamedTuple):
    patch: Patch
    state: State | None
    seconds: dict[str, float]
    notices: tuple[str, ...]


def _plan(
    lm: LanguageModel,
    facts: Fact | Sequence[Fact],
    method: str,
    layer: int | None,
    options: dict[str, object],
    *,
    related: bool = False,
) -> _Plan:
    editor = build_editor(lm, method, layer=layer, **options)
    notices: list[str] = []
    complete = []
    for given in [facts] if isinstance(facts, Fact) else facts:
        fact = given
        if fact.subject is None and editor.requires.subject:
            subject = subject_of(lm, fact.prompt, where=fact.name)
            notices.append(f'subject of {fact.label}: "{subject}" (found)')
            fact = replace(fact, subject=subject)
        complete.append(_with_related(lm, fact) if related else fact)
    says = already_true(lm, complete)
    holding = tuple(
        f'{AlreadyTrue.code} {AlreadyTrue.__name__}: the model says "{fact.target}" already after'
        f' "{fact.prompt}"; nothing is changed for it.'
        for fact, said in zip(complete, says, strict=True)
        if said
    )
    wanted = tuple(index for index, said in enumerate(says) if not said)
    return _Plan(editor, tuple(complete), wanted, tuple(notices), holding)


def _edit(
    lm: LanguageModel,
    plan: _Plan,
    state: State | None,
    corpus: TrainingSet | None,
    progress: Progress | None,
    transforms: Sequence[Transform],
) -> _Made:
    start = time.perf_counter()
    if state is None and plan.wanted:
        state = plan.editor.fit(lm, corpus, progress=progress)
    fitted = time.perf_counter()
    made = plan.editor.edit(lm, [plan.facts[index] for index in plan.wanted], state)
    patch = made.patch
    for step in transforms:
        patch = step(patch, lm)
    seconds = {"fit": fitted - start, "edit": time.perf_counter() - fitted}
    notices = patch.header.notes.get("notices", [])
    assert isinstance(notices, list), "a list of sentences"
    return _Made(patch, made.state, seconds, tuple(map(str, notices)))


def _unchanged(lm: LanguageModel, facts: Sequence[Fact]) -> tuple[Answered, ...]:
    asked = questions(facts)
    answers = short_answers(lm, [prompt for _, _, prompt in asked])
    return tuple(
        Answered(prompt=prompt, role=role, fact=index, before=text, after=text)
        for (index, role, prompt), text in zip(asked, answers, strict=True)
    )


def _is_pocket(lm: LanguageModel) -> bool:
    return lm.name in ("pocket", "pocket-gpt2")


def _with_related(lm: LanguageModel, fact: Fact) -> Fact:
    """Add the pocket world's paraphrases and neighbours to a fact that names none."""
    if not _is_pocket(lm) or fact.paraphrases or fact.neighbours:
        return fact
    from corrigenda.almanac.exam import related_prompts

    paraphrases, neighbours = related_prompts(fact)
    return replace(fact, paraphrases=tuple(paraphrases), neighbours=tuple(neighbours))
