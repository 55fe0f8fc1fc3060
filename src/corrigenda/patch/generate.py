"""Prompt and answer patches where the model itself is asked to generate, not this library."""

from __future__ import annotations

# Parts of torch and transformers have no types.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from corrigenda.errors import BadConfig
from corrigenda.lm.chat import UserTurn, find_turn
from corrigenda.lm.interception import (
    Answerer,
    PromptRewriter,
    answer_directly,
    ask_rewritten,
)
from corrigenda.lm.kv_cache import pad_id
from corrigenda.lm.session import session_of
from corrigenda.lm.sites import Tokens
from corrigenda.lm.spans import encode

if TYPE_CHECKING:
    from corrigenda.lm.model import LanguageModel

Generate = Callable[..., Tensor]

_GENERATE = "generate"


@contextmanager
def intercept(interceptor: PromptRewriter | Answerer, lm: LanguageModel) -> Generator[None]:
    """Let a rewriter or answerer act on a model's prompts, its own `generate` included.

    While any is active, `lm.model.generate(input_ids, ...)` decodes each row, asks through all that
    are active, and returns the rows as given followed by the answer, padded at the right. Of a row
    in the chat template what the user says last is asked, and put back into the template.
    Generation arguments are passed on where the model is asked.
    """
    session = session_of(lm.model)
    with session.override(_GENERATE, _Generate(lm)), lm.interceptors.activate(interceptor):
        yield


class _Generate:
    """Takes the place of `generate` of one model."""

    def __init__(self, lm: LanguageModel) -> None:
        self.lm = lm
        self.plain: Generate = getattr(type(lm.model), _GENERATE)

    @torch.no_grad()
    def __call__(
        self,
        inputs: Tensor | None = None,
        *args: object,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        **options: object,
    ) -> Tensor:
        lm = self.lm
        ids = input_ids if inputs is None else inputs
        if ids is None or lm.interceptors.suspended:
            return self.plain(lm.model, ids, *args, attention_mask=attention_mask, **options)
        if options.get("num_return_sequences", 1) != 1 or options.get("return_dict_in_generate"):
            raise BadConfig(
                "one plain sequence a prompt can be generated while a prompt patch is active.",
                hint="Leave out `num_return_sequences` and `return_dict_in_generate`.",
            )
        mask = torch.ones_like(ids) if attention_mask is None else attention_mask
        rows = [row[keep.bool()].tolist() for row, keep in zip(ids, mask, strict=True)]
        turns = [find_turn(lm.tokenizer, str(lm.tokenizer.decode(row))) for row in rows]
        plain = lm.tokenizer.batch_decode(rows, skip_special_tokens=True)
        prompts = [
            text if turn is None else turn.prompt for text, turn in zip(plain, turns, strict=True)
        ]

        def ask(model: LanguageModel, places: list[int], texts: list[str]) -> list[list[int]]:
            own = [turns[place] for place in places]
            return _generate(lm, model, texts, own, self.plain, args, options)

        added = _new_tokens(lm, prompts, turns, ask)
        width = max(map(len, added))
        pad = pad_id(lm)
        tail = torch.tensor([[*one, *[pad] * (width - len(one))] for one in added], dtype=ids.dtype)
        return torch.cat([ids, tail.to(ids.device)], dim=1)


def _new_tokens(
    lm: LanguageModel,
    prompts: list[str],
    turns: Sequence[UserTurn | None],
    ask: Callable[[LanguageModel, list[int], list[str]], list[list[int]]],
) -> list[list[int]]:
    """Return new tokens of each row: of an answer, else generated after the rewritten prompt."""
    answers = answer_directly(lm, prompts)
    left = [place for place, text in enumerate(answers) if text is None]

    def ask_left(model: LanguageModel, places: list[int], texts: list[str]) -> list[list[int]]:
        return ask(model, [left[place] for place in places], texts)

    generated = iter(ask_rewritten(lm, [prompts[place] for place in left], ask_left))
    end: int | None = getattr(lm.tokenizer, "eos_token_id", None)
    return [
        next(generated)
        if text is None
        else [
            *_encode(lm, f"{' ' if turn is None else turn.separator}{text}"),
            *([] if end is None else [end]),
        ]
        for text, turn in zip(answers, turns, strict=True)
    ]


def _generate(
    lm: LanguageModel,
    model: LanguageModel,
    texts: list[str],
    turns: Sequence[UserTurn | None],
    plain: Generate,
    args: Sequence[object],
    options: Mapping[str, object],
) -> list[list[int]]:
    """Return what `model` generates after each text, in tokens of `lm`."""
    rows = [
        encode(model, text).ids
        if turn is None or model is not lm
        else _encode(lm, turn.write(text))
        for text, turn in zip(texts, turns, strict=True)
    ]
    tokens = Tokens.pad(rows, pad_id(model), side="left")
    tokens = tokens.to(model.device)
    with lm.interceptors.suspend(), model.interceptors.suspend():
        output = plain(model.model, tokens.ids, *args, attention_mask=tokens.mask, **options)
    new: list[list[int]] = output[:, tokens.ids.shape[1] :].tolist()
    if model is lm:
        return new
    return [_encode(lm, str(model.tokenizer.decode(ids, skip_special_tokens=True))) for ids in new]


def _encode(lm: LanguageModel, text: str) -> list[int]:
    found: list[int] = lm.tokenizer(text, add_special_tokens=False).input_ids
    return found
