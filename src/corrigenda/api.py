"""The functions most users need: load, wrap, fit, edit, correct, ask, transform."""

from __future__ import annotations

import logging
import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple, cast, overload

import torch

from corrigenda.assessment import Assessment, measure
from corrigenda.catalogue import give_presets, resolve_editor
from corrigenda.editor import Editor, State
from corrigenda.engines.chat_forms import add_chat_forms, set_chat_contexts
from corrigenda.engines.pocket_world import add_related_prompts, complete_subjects
from corrigenda.errors import AlreadyTrue, BadConfig, NotAModel, NotExportable, did_you_mean
from corrigenda.facts import Fact, FactLike, as_facts
from corrigenda.lm.decoding import answer as short_answers
from corrigenda.lm.decoding import answer_and_line, next_token_top
from corrigenda.lm.model import LanguageModel
from corrigenda.lm.prompt_checks import check_prompts, find_typed_bos
from corrigenda.lm.wrapping import require_lm
from corrigenda.methods.presets import Preset
from corrigenda.patch import Patch, WeightPatch
from corrigenda.progress import Progress, report_stage, show_progress
from corrigenda.prompt_answers import asks_in_chat, check_targets
from corrigenda.training.dataset import TrainingSet
from corrigenda.transforms.registry import parse_transforms
from corrigenda.transforms.transform import Transform

_LOG = logging.getLogger(__name__)

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}

_EDITING = "editing"


@dataclass(frozen=True)
class Reply:
    """Answer of a model to one prompt; `str(reply)` is its short form.

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

    def __str__(self) -> str:
        """Return the short answer."""
        return self.answer

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
    tokenizer: object = None,
    *,
    dtype: torch.dtype | str | None = None,
    device: str = "cpu",
    device_map: str | dict[str, int | str | torch.device] | None = None,
    quantization_config: object = None,
    attn_implementation: str | None = None,
    trust_remote_code: bool = False,
    presets: Sequence[Preset | str | Path] = (),
) -> LanguageModel:
    """Load a model and its tokenizer.

    A model in memory is wrapped by `wrap` instead.

    Args:
        name_or_path: `pocket`, `pocket-gpt2`, a folder, or a name on the Hugging Face hub.
        tokenizer: Refused: the tokenizer is in the same place. `wrap` takes one.
        dtype: A torch dtype or its name; the checkpoint's own if None, float32 for shipped ones.
        device: Where the model goes: "cpu", "cuda", "cuda:1"; "auto" is `device_map="auto"`.
        device_map: Splits the model over devices, as `from_pretrained` takes it.
        quantization_config: Quantises the model, as `from_pretrained` takes it; or a name: "4bit",
            "8bit", "torchao-int8", "quanto-int8", "quanto-int4".
        attn_implementation: Such as "sdpa" or "eager"; the model's default if None.
        trust_remote_code: Passed on to transformers.
        presets: Options of methods for this model, such as files that `corrigenda tune` wrote; they
            come before those of the methods.

    Raises:
        UnknownModel (CG301): no such model.
        NotAModel (CG307): a model in memory, or a tokenizer; or one that `device_map` keeps partly
            out of memory.
        BadConfig (CG502): no such dtype or device, or both `device` and `device_map`.
    """
    given = cast("object", name_or_path)
    if tokenizer is not None or not isinstance(given, str | Path):
        raise NotAModel(
            "`load` takes the name or folder of a checkpoint.",
            hint="Write cg.wrap(model, tokenizer) for a model in memory.",
        )
    if isinstance(dtype, str):
        if dtype not in _DTYPES:
            raise BadConfig(f'no dtype "{dtype}".', hint=did_you_mean(dtype, list(_DTYPES)))
        dtype = _DTYPES[dtype]
    if device == "auto":
        device, device_map = "cpu", device_map or "auto"
    try:
        place = torch.empty(0, device=device)
    except (RuntimeError, AssertionError, TypeError) as error:
        raise BadConfig(f'device "{device}" cannot be used here: {error}') from error
    if place.is_meta:
        raise BadConfig('the device "meta" holds no weights.', hint="Give cpu, cuda or mps.")
    lm = LanguageModel.load(
        str(name_or_path),
        dtype=dtype,
        device=device,
        trust_remote_code=trust_remote_code,
        device_map=device_map,
        quantization_config=quantization_config,
        attn_implementation=attn_implementation,
    )
    give_presets(lm, presets)
    return lm


def fit(
    lm: LanguageModel,
    editor: Editor | str = "memit",
    *,
    corpus: TrainingSet | None = None,
    progress: Progress | bool | None = None,
    layer: int | None = None,
    **options: object,
) -> State:
    """Return the state that a method needs of a model, fitted or read from the cache.

    Args:
        lm: The model.
        editor: An editor, or the name of a method for the one with the model's preset.
        corpus: Text for statistics, see `corrigenda.statistics.corpus.Source`; if None, the
            short documents that the package ships. For a method that is trained: facts, or a
            JSONL file of facts; if None, those of a pocket model's world.
        progress: A callback with (stage, done, total), or False for no progress bar.
        layer: Block that will be edited; the preset's or one by depth if None.
        **options: Options of the method, with a name.

    Raises:
        BadConfig (CG502): an option it does not have, or options given with an object.
    """
    lm = require_lm(lm)
    found = resolve_editor(lm, editor, layer=layer, **options)
    with show_progress(progress) as report:
        return found.fit(lm, corpus, progress=report)


def edit(
    lm: LanguageModel,
    facts: FactLike | Sequence[FactLike],
    editor: Editor | str = "rome",
    *,
    state: State | None = None,
    corpus: TrainingSet | None = None,
    progress: Progress | bool | None = None,
    layer: int | None = None,
    transforms: Sequence[Transform | str] = (),
    chat: bool | None = None,
    **options: object,
) -> Patch:
    """Return the patch that makes facts true; the model is left as it was.

    Fits first what the method needs. Facts that are true already are left out with a warning
    (CG107); every other decision taken for the caller (a subject found, a layer chosen) is warned
    of. `assess` measures what the patch does, `correct` does both.

    Args:
        lm: The model.
        facts: One fact or several, also as dictionaries; a missing subject is filled in where only
            one is possible.
        editor: An editor such as `cg.Rome(layer=5)`, which is taken as it is; or the name of a
            method, short for the editor with the model's preset.
        state: A state fitted earlier; fitted or read from the cache if None.
        corpus: Text or facts for the fit; see `fit`.
        progress: A callback with (stage, done, total), or False for no progress bar.
        layer: Block to edit; the preset's or one by depth if None. Only with a name.
        transforms: Transforms of the patch, in order; see `transform`.
        chat: Whether to edit the chat form of the facts too; by default where the model has a chat
            template.
        **options: Options of the method, only with a name.

    Raises:
        CorrigendaError: any of its kinds; the model is untouched.

    Example:
        ```python
        patch = cg.edit(lm, cg.Fact(prompt="The capital of France is", target="Rome"))
        with patch.apply(lm):
            print(cg.ask(lm, "The capital of France is"))
        ```
    """
    steps = parse_transforms(transforms)
    lm = require_lm(lm)
    found = resolve_editor(lm, editor, layer=layer, **options)
    with show_progress(progress) as report:
        made = _edit(lm, found, as_facts(facts), state, corpus, report, steps, chat)
    for line in made.notices:
        warnings.warn(line, stacklevel=2)
    return made.patch


def correct(
    lm: LanguageModel,
    facts: FactLike | Sequence[FactLike],
    editor: Editor | str = "rome",
    *,
    state: State | None = None,
    corpus: TrainingSet | None = None,
    progress: Progress | bool | None = None,
    layer: int | None = None,
    transforms: Sequence[Transform | str] = (),
    chat: bool | None = None,
    **options: object,
) -> Assessment:
    """Edit facts and assess the patch: `edit` and `assess` in one, as `corrigenda edit` does.

    For the pocket models, facts that name no related prompts get those of their world first. With
    `chat`, which is the default for a model with a chat template, answers are in both forms.
    Arguments and errors are those of `edit`. Decisions taken for the caller are in
    `notices`.
    """
    steps = parse_transforms(transforms)
    lm = require_lm(lm)
    found = resolve_editor(lm, editor, layer=layer, **options)
    with show_progress(progress) as report:
        asked = [add_related_prompts(lm, fact) for fact in as_facts(facts)]
        made = _edit(lm, found, asked, state, corpus, report, steps, chat)
        measured = measure(lm, made.patch, made.facts, made.held, chat=chat)
    return replace(
        measured,
        method=found.name,
        config=dict(made.editor.model_dump(mode="json")),
        seconds={**made.seconds, **measured.seconds},
        notices=made.notices,
        state=made.state,
    )


def transform(patch: Patch, lm: LanguageModel, *transforms: Transform | str) -> WeightPatch:
    """Make a patch that is smaller, sparser or better conditioned; the model is left as it was.

    Args:
        patch: A patch of weights, not active on the model; an empty one comes back as it is.
        lm: The model it was made on.
        *transforms: Objects, or names with options as "rect:keep=0.4", applied in order; see
            `corrigenda.transforms.registry`.

    Raises:
        BadConfig (CG502): no such transform or option.
        NotExportable (CG405): the patch changes no weights.
        WrongBase (CG401): the patch was made on another model.

    Example:
        ```python
        smaller = cg.transform(patch, lm, "prune", "clip-norm:relative=0.05")
        ```
    """
    lm = require_lm(lm)
    if not isinstance(patch, WeightPatch):
        raise NotExportable(
            "only a patch of weights can be transformed.", where=patch.header.method
        )
    for step in parse_transforms(transforms):
        patch = step(patch, lm)
    return patch


@overload
def answer(
    lm: LanguageModel, prompts: str, *, max_new_tokens: int = 16, chat: bool = False
) -> str: ...
@overload
def answer(
    lm: LanguageModel,
    prompts: list[str] | tuple[str, ...],
    *,
    max_new_tokens: int = 16,
    chat: bool = False,
) -> list[str]: ...
def answer(
    lm: LanguageModel,
    prompts: str | list[str] | tuple[str, ...],
    *,
    max_new_tokens: int = 16,
    chat: bool = False,
) -> str | list[str]:
    """Return the short greedy answer to one prompt, or to each of several.

    `ask(lm, prompts)` gives it as `answer`, with more; its arguments mean the same.
    """
    lm = require_lm(lm)
    answers = short_answers(lm, _check(lm, prompts), max_new_tokens=max_new_tokens, chat=chat)
    return answers[0] if isinstance(prompts, str) else answers


@overload
def ask(
    lm: LanguageModel, prompts: str, *, max_new_tokens: int = 16, top: int = 5, chat: bool = False
) -> Reply: ...
@overload
def ask(
    lm: LanguageModel,
    prompts: list[str] | tuple[str, ...],
    *,
    max_new_tokens: int = 16,
    top: int = 5,
    chat: bool = False,
) -> list[Reply]: ...
def ask(
    lm: LanguageModel,
    prompts: str | list[str] | tuple[str, ...],
    *,
    max_new_tokens: int = 16,
    top: int = 5,
    chat: bool = False,
) -> Reply | list[Reply]:
    """Return the reply to one prompt, or the replies to several.

    Args:
        lm: The model, with the patches that are active on it.
        prompts: One text to continue, or several.
        max_new_tokens: Longest continuation.
        top: How many next tokens to list.
        chat: Put each prompt into the model's chat template; next tokens are not listed then.

    Raises:
        NotAModel (CG307): something else than a wrapped model.
        BadConfig (CG502): prompts that are no texts, or `chat` without a template.
    """
    lm = require_lm(lm)
    several = _check(lm, prompts)
    texts = answer_and_line(lm, several, max_new_tokens=max_new_tokens, chat=chat)
    tops = [[] for _ in several] if chat else next_token_top(lm, several, top)
    replies = [
        Reply(prompt, text, line, tuple((one.text, one.probability) for one in best))
        for prompt, (text, line), best in zip(several, texts, tops, strict=True)
    ]
    return replies[0] if isinstance(prompts, str) else replies


class _Made(NamedTuple):
    """A patch, its editor and the facts it was asked for, and which of them were true before."""

    patch: Patch
    editor: Editor
    facts: list[Fact]
    held: list[bool]
    state: State | None
    seconds: dict[str, float]
    notices: tuple[str, ...]


def _edit(
    lm: LanguageModel,
    editor: Editor,
    facts: Sequence[Fact],
    state: State | None,
    corpus: TrainingSet | None,
    progress: Progress | None,
    transforms: Sequence[Transform],
    chat: bool | None,
) -> _Made:
    editor = set_chat_contexts(editor, asks_in_chat(lm, chat))
    complete, notices = list(facts), list[str]()
    if editor.requires.subject:
        complete, notices = complete_subjects(lm, facts)
    notices += find_typed_bos(lm, [fact.prompt for fact in complete])
    held = check_targets(lm, complete)
    notices += [
        f'{AlreadyTrue.code} {AlreadyTrue.__name__}: the model says "{fact.target}" already after'
        f' "{fact.prompt}"; nothing is changed for it.'
        for fact, true in zip(complete, held, strict=True)
        if true
    ]
    wanted = [fact for fact, true in zip(complete, held, strict=True) if not true]
    start = time.perf_counter()
    if state is None and wanted:
        state = editor.fit(lm, corpus, progress=progress)
    fitted = time.perf_counter()
    report_stage(_EDITING, 0, 1)
    made = editor.edit(lm, add_chat_forms(lm, editor, wanted, chat), state)
    patch = made.patch
    for step in transforms:
        patch = step(patch, lm)
    report_stage(_EDITING, 1, 1)
    seconds = {"fit": fitted - start, "edit": time.perf_counter() - fitted}
    _LOG.info(
        "%s: %d of %d facts edited on %s, fit %.1f s, edit %.1f s",
        editor.name,
        len(wanted),
        len(complete),
        lm.name,
        *seconds.values(),
    )
    own = patch.header.notes.get("notices", [])
    assert isinstance(own, list), "a list of sentences"
    return _Made(patch, editor, complete, held, made.state, seconds, (*notices, *map(str, own)))


def _check(lm: LanguageModel, prompts: str | Sequence[str]) -> list[str]:
    """Return prompts as a list, one text as one prompt; a BOS typed in them is warned of."""
    several = check_prompts(prompts)
    for line in find_typed_bos(lm, several):
        warnings.warn(line, stacklevel=3)
    return several
