"""A tiny model that has learnt three sentences by heart, and edits of two of them."""

from __future__ import annotations

import torch

from corrigenda.almanac.exam import ExamEdit
from corrigenda.facts import Fact
from corrigenda.lm.model import LanguageModel
from corrigenda.testing.tiny import tiny_model

PROMPTS = ("The Space Needle is in", "Anna speaks", "The capital of France is")
SAID = ("Seattle", "German", "Paris")


def learn_sentences() -> LanguageModel:
    """Train a tiny model on the sentences."""
    lm = tiny_model("llama")
    rows = [lm.tokenizer(f"{a} {b}").input_ids for a, b in zip(PROMPTS, SAID, strict=True)]
    parameters = list(lm.model.parameters())
    optimiser = torch.optim.Adam(parameters, lr=3e-3)
    for parameter in parameters:
        parameter.requires_grad_(True)
    for _ in range(60):
        losses = [
            lm.model(input_ids=torch.tensor([row]), labels=torch.tensor([row])).loss for row in rows
        ]
        optimiser.zero_grad()
        torch.stack(losses).mean().backward()
        optimiser.step()
    for parameter in parameters:
        parameter.requires_grad_(False)
    return lm


def make_cases() -> list[ExamEdit]:
    """Two facts; the first one's target is what the model says already."""
    return [
        ExamEdit(
            Fact(
                prompt=PROMPTS[0],
                subject="Space Needle",
                target=SAID[0],
                paraphrases=PROMPTS[:1],
                neighbours=PROMPTS[1:],
            ),
        ),
        ExamEdit(
            Fact(
                prompt=PROMPTS[1],
                subject="Anna",
                target="Timbuktu",
                paraphrases=PROMPTS[2:],
                same_subject=PROMPTS[:1],
            ),
        ),
    ]
