"""Contexts of a prompt, so that a key is an average over several: prefixes, and the chat form."""

from __future__ import annotations

import json
import re
import unicodedata
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, cast

from corrigenda.errors import BadConfig
from corrigenda.lm.model import LanguageModel
from corrigenda.lm.sampling import sample
from corrigenda.patch.ledger import ledger_of
from corrigenda.progress import report_stage
from corrigenda.statistics import cache
from corrigenda.text_files import parse_json

SEED_WORDS: tuple[str, ...] = ("The", "Therefore", "Because", "I", "You")
"""Words that generated prefixes begin with."""

_TOP_K = 5
_SHORT, _LONG = 5, 10
_SEPARATOR = ". "
_ROME_SAMPLES = 2
_FORMAT = 1
_MOST_RECENT = 16
_STAGE = "contexts"

Style = Literal["rome", "memit"]

_RECENT: dict[str, Contexts] = {}


@dataclass(frozen=True)
class Contexts:
    """Ordered list of prefixes; the same list serves a whole sequence of edits.

    A prompt in context is `prefix + prompt`, by plain concatenation: a prefix holds its own
    separator, and braces in it mean nothing.

    Attributes:
        prefixes: The prefixes; the first is the empty one, the prompt itself.
        groups: Group of each prefix, from 0; keys are averaged inside each group, then over groups.
            Empty puts all into one group: a plain mean.
        base_digest: Digest of the model that generated the prefixes; empty where they were given.
        seed: Seed of the generation.
        chat: Weight, below 1, of one more context after the prefixes: the prompt in the model's
            chat template, see `Fact.chat`. 0 leaves it out.

    Raises:
        BadConfig (CG502): no prefix, the first not empty, groups that do not match, or no weight.

    Example:
        >>> Contexts(("", "I think so. ", "You know. "), groups=(0, 1, 1)).weights
        (0.5, 0.25, 0.25)
        >>> Contexts(("", "You know. "), chat=0.5).weights
        (0.25, 0.25, 0.5)
    """

    prefixes: tuple[str, ...] = ("",)
    groups: tuple[int, ...] = ()
    base_digest: str = ""
    seed: int | None = None
    chat: float = 0.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "prefixes", tuple(self.prefixes))
        object.__setattr__(self, "groups", tuple(self.groups) or (0,) * len(self.prefixes))
        if not self.prefixes or self.prefixes[0] != "":
            raise BadConfig(
                "the first context must be the empty prefix.",
                where="contexts",
                hint='Put "" first.',
            )
        if len(self.groups) != len(self.prefixes) or set(self.groups) != set(
            range(max(self.groups) + 1)
        ):
            raise BadConfig(
                f"{len(self.prefixes)} prefixes need as many groups, numbered from 0; got "
                f"{list(self.groups)}.",
                where="contexts",
            )

        if not 0 <= self.chat < 1:
            raise BadConfig(
                f"the weight of the chat form is {self.chat}.",
                where="contexts",
                hint="Give a number from 0 to below 1.",
            )

    def __len__(self) -> int:
        return len(self.prefixes) + (self.chat > 0)

    @property
    def weights(self) -> tuple[float, ...]:
        """Weight of each context in the averaged key; they add up to 1."""
        whole = (max(self.groups) + 1) / (1.0 - self.chat)
        own = tuple(1.0 / (whole * self.groups.count(group)) for group in self.groups)
        return (*own, self.chat) if self.chat else own

    @property
    def loss_weights(self) -> tuple[float, ...]:
        """Weight of each context in the loss of a search, their mean 1: all prefixes alike."""
        if not self.chat:
            return (1.0,) * len(self)
        share = (1.0 - self.chat) / len(self.prefixes)
        return tuple(len(self) * one for one in (*[share] * len(self.prefixes), self.chat))

    def to_json(self) -> str:
        """Return a text that `from_json` reads; equal contexts have equal texts."""
        return json.dumps(asdict(self), sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> Contexts:
        """Read contexts from a text of `to_json`.

        Raises:
            BadConfig (CG502): not what `to_json` wrote.
        """
        try:
            # A model may write NUL, which files of users may not hold.
            return cls(**cast("dict[str, Any]", parse_json(text, strict=False)))
        except (TypeError, ValueError) as error:
            raise BadConfig(f"these are no contexts: {error}.", where="contexts") from error


def generate_contexts(
    lm: LanguageModel,
    style: Style = "rome",
    *,
    count: int | None = None,
    seed: int = 0,
    keep: bool = True,
) -> Contexts:
    """Generate prefixes with the model itself, by sampling among its five likeliest tokens.

    In the style `memit`: the empty prefix, and one of 10 tokens from each of `SEED_WORDS`; two
    groups, so that the bare prompt weighs one half. In the style `rome`: the empty prefix, ten of 5
    and ten of 10 tokens; one group. Lengths count the seed word and the tokens that the tokenizer
    puts before a text.

    Generate them once, from the unedited model, and use them for a whole sequence of edits. They
    are cached by the content of the model, its active patches, style, count and seed.

    Args:
        lm: The model; it stays as it is.
        style: Which paper's contexts.
        count: How many prefixes besides the empty one: that many of the style's, evenly spread; all
            of them if None.
        seed: Any integer; the same model, style and seed give the same contexts.
        keep: Read and write the cache.

    Raises:
        BadConfig (CG502): no such style, or more prefixes than it has.

    Reference: ROME (Meng et al. 2022), appendix E.5; MEMIT (Meng et al. 2023), appendix B. There
        nothing was seeded.
    """
    digest = lm.recall_digest()
    wanted = _choose(style, count)
    name = _name(lm, digest, style, wanted, seed)
    # A sequence of edits would leave a file for each.
    lasting = keep and not lm.patches
    kept = _RECENT.get(name) if keep else None
    if kept is None and lasting:
        kept = _read(name)
    if kept is not None:
        return kept
    by_room: dict[int, list[int]] = defaultdict(list)
    for index, (word, length) in enumerate(wanted):
        by_room[max(length - len(lm.tokenizer(word).input_ids), 0)].append(index)
    prefixes = [""] * len(wanted)
    done = 0
    for room, indices in by_room.items():
        report_stage(_STAGE, done, len(wanted))
        done += len(indices)
        words = [wanted[index][0] for index in indices]
        texts = sample(lm, words, max_new_tokens=room, top_k=_TOP_K, seed=seed)
        for index, word, text in zip(indices, words, texts, strict=True):
            prefixes[index] = _clean(lm, word + text) + _SEPARATOR
    groups = (0, *([1] * len(prefixes) if style == "memit" else [0] * len(prefixes)))
    report_stage(_STAGE, done, len(wanted))
    made = Contexts(("", *prefixes), groups, digest, seed)
    if keep:
        while len(_RECENT) >= _MOST_RECENT:
            del _RECENT[next(iter(_RECENT))]
        _RECENT[name] = made
    if lasting:
        cache.write_texts(name, [made.to_json()])
    return made


def _choose(style: Style, count: int | None) -> list[tuple[str, int]]:
    """Return the seed word and the length of each prefix."""
    if style == "memit":
        found = [(word, _LONG) for word in SEED_WORDS]
    elif style == "rome":
        found = [
            (word, length)
            for length in (_SHORT, _LONG)
            for word in SEED_WORDS
            for _ in range(_ROME_SAMPLES)
        ]
    else:
        raise BadConfig(f'no style of contexts "{style}".', hint="Known: memit, rome.")
    if count is None:
        return found
    if not 0 <= count <= len(found):
        raise BadConfig(
            f'{count} prefixes of the style "{style}".', hint=f"It has {len(found)}; give fewer."
        )
    return [found[number * len(found) // count] for number in range(count)]


def _name(
    lm: LanguageModel, digest: str, style: str, wanted: Sequence[tuple[str, int]], seed: int
) -> str:
    """Return the file name of contexts: a hash of all that decides them."""
    settings = {
        "format": _FORMAT,
        "model": digest,
        "patches": ledger_of(lm).digests(),
        "words": lm.tokenizer(list(SEED_WORDS)).input_ids,
        "tokens": len(lm.tokenizer),
        "style": style,
        "wanted": [list(one) for one in wanted],
        "seed": seed,
    }
    return f"contexts-{cache.hash_settings(settings)}.jsonl"


def _read(name: str) -> Contexts | None:
    texts = cache.read_texts(name)
    return None if texts is None else Contexts.from_json(texts[0])


def _clean(lm: LanguageModel, text: str) -> str:
    """Apply compatibility decomposition; remove empty lines, special tokens and braces."""
    for mark in lm.tokenizer.all_special_tokens:
        text = text.replace(mark, "")
    text = unicodedata.normalize("NFKD", text).replace("\n\n", " ")
    return re.sub(r"[{}]", " ", text)
