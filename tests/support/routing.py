"""What tests of edits that route on the prompt share."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from corrigenda.facts import Fact
from corrigenda.lm.model import LanguageModel
from corrigenda.lm.sites import Tokens
from corrigenda.lm.spans import encode

FACTS = (
    Fact(prompt="The Space Needle is in the city of", subject="Space Needle", target="Rome"),
    Fact(prompt="Ada was born in", subject="Ada", target="Tokyo"),
    Fact(prompt="The mother tongue of Claude Monet is", subject="Claude Monet", target="German"),
)
OTHERS = ["Windows is made by", "Rome", "The river that runs through London is"]
PROMPTS = [*(fact.prompt for fact in FACTS), *OTHERS]


def logits(lm: LanguageModel, prompts: Sequence[str] = PROMPTS) -> Tensor:
    """Next-token logits of prompts in one batch."""
    rows = [encode(lm, prompt).ids for prompt in prompts]
    tokens = Tokens.pad(rows, 0)
    return lm.logits(tokens)[torch.arange(len(rows)), tokens.lengths - 1]


def uncached(lm: LanguageModel, prompt: str, count: int) -> list[int]:
    """Greedy tokens behind a prompt, the whole row run anew for each."""
    ids = list(encode(lm, prompt).ids)
    end = torch.tensor([len(ids) - 1])
    for _ in range(count):
        with lm.prompt_ends.mark(end):
            ids.append(int(lm.logits(Tokens.pad([ids], 0))[0, -1].argmax()))
    return ids[-count:]


def generated(lm: LanguageModel, prompts: Sequence[str], count: int) -> list[list[int]]:
    """What the model's own `generate` adds to prompts padded on the left."""
    tokens = Tokens.pad([encode(lm, prompt).ids for prompt in prompts], 0, "left")
    output = lm.model.generate(
        tokens.ids,
        attention_mask=tokens.mask,
        max_new_tokens=count,
        min_new_tokens=count,
        do_sample=False,
        pad_token_id=0,
    )
    return output[:, tokens.ids.shape[1] :].tolist()
