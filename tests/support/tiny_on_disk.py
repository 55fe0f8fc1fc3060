"""A tiny model saved as a folder, a fact it can be taught, and the command line run on them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from typer.testing import CliRunner

from corrigenda.cli.main import app
from corrigenda.facts import Fact
from corrigenda.lm.decoding import score
from corrigenda.lm.model import LanguageModel
from corrigenda.testing.tiny import tiny_model

PROMPT = "The Space Needle is in"
SUBJECT = "Space Needle"
NEIGHBOUR = "The Eiffel Tower is in"
WORDS = ("Rome", "Paris", "London", "Tokyo", "Berlin", "Madrid", "Spain", "Italy", "Japan")

# Settings under which a random model can be taught: a late block, the bare prompt, long vectors.
QUICK = ("--layer", "2", "--set", "use_moment=false", "--set", 'contexts={"prefixes": [""]}')
QUICK += (
    "--set",
    "steps=40",
    "--set",
    "clamp=20",
    "--set",
    "weight_decay=0",
    "--set",
    "kl_weight=0",
)


class Ran(NamedTuple):
    """What a command gave back."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> dict[str, Any]:
        """The one JSON object on stdout."""
        return json.loads(self.out)


Run = Callable[..., Ran]


def command(*arguments: object) -> Ran:
    """Run the command line; unexpected exceptions are raised."""
    result = CliRunner().invoke(app, [str(item) for item in arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return Ran(result.exit_code, result.stdout, result.stderr)


def save_tiny(folder: Path, family: str = "llama", *, seed: int = 0) -> Path:
    """Save a tiny random model."""
    lm = tiny_model(family, seed=seed)
    lm.model.save_pretrained(folder)
    lm.tokenizer.save_pretrained(folder)
    return folder


def nearest_fact(lm: LanguageModel) -> Fact:
    """The fact about the Space Needle that a random model is closest to without saying it."""
    scores = score(lm, [(PROMPT, word) for word in WORDS])
    ranked = sorted(zip(scores, WORDS, strict=True), key=lambda pair: -pair[0].mean)
    target = next(word for result, word in ranked if not all(result.correct))
    return Fact(prompt=PROMPT, subject=SUBJECT, target=target, neighbours=(NEIGHBOUR,))
