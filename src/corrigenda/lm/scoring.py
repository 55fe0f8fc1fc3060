"""Ratings of tokens that are fed after prompts, with nothing read twice.

Rows of one prompt share its pass: a row that begins like a longer one is read off it, and where
several continue the same text differently, that text is read once and its keys and values serve
them all. The vocabulary projection runs only at the positions that are read.
"""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from corrigenda.lm.cache_columns import select_rows
from corrigenda.lm.kv_cache import batches, pad_id, token_budget, widen
from corrigenda.lm.model import LanguageModel
from corrigenda.lm.sites import Tokens, state

_HEAD_NUMBERS = 1 << 25
# Beginnings get a pass of their own where that spares so many tokens in each group and in all, and
# this share of all tokens: the second pass costs something too.
_SPARED_EACH, _SPARED_TOKENS, _SPARED_SHARE = 8, 64, 0.2
# Keys and values may be held for so many times the tokens of a batch.
_ROOM = 4


class Fed(NamedTuple):
    """Row of tokens with the positions at which it is read.

    Attributes:
        ids: Tokens that are fed: the prompt, and what is rated but for its last token.
        reads: Positions whose next-token distributions are wanted; the first is the end of the
            prompt.
        labels: The token rated at each of `reads`; empty where only distributions are wanted.
    """

    ids: list[int]
    reads: range
    labels: tuple[int, ...] = ()


class Rating(NamedTuple):
    """Log-probabilities and most likely tokens of one row.

    Attributes:
        log_probs: Natural log-probability of each label.
        argmax_ids: Most likely token at each read; the lowest id of several.
        distributions: (reads, vocab) natural log-probabilities of all tokens, float32 or wider, on
            the CPU; None unless asked for.
    """

    log_probs: tuple[float, ...]
    argmax_ids: tuple[int, ...]
    distributions: Tensor | None


def rate(
    lm: LanguageModel,
    rows: Sequence[Fed],
    *,
    whole: Collection[int] = (),
    share: bool = True,
    batch_tokens: int | None = None,
) -> list[Rating]:
    """Rate the labels of each row, given all tokens before them.

    Args:
        lm: The model, asked directly.
        rows: What is fed and read.
        whole: Rows, by index, whose distributions are wanted too.
        share: Whether a beginning that rows have in common may be read by itself. Without, equal
            rows get equal bits whether or not passes are followed.
        batch_tokens: Most tokens in one batch, padding included; None takes what suits the device.

    Returns:
        One rating a row. Log-softmax is taken in float32, in float64 for a float64 model.
    """
    found = _Found(rows, frozenset(whole))
    hosts = _choose_hosts(rows)
    groups, alone = _share_beginnings(lm, rows, [*hosts]) if share else ([], [*hosts])
    for batch in batches(lm, [len(rows[host].ids) for host in alone], batch_tokens):
        own = [alone[i] for i in batch]
        tokens = Tokens.pad([rows[host].ids for host in own], pad_id(lm)).to(lm.device)
        positions = [sorted(hosts[host]) for host in own]
        hidden = states_at(lm, tokens, [range(one[0], one[-1] + 1) for one in positions])
        wanted = [
            hosts[host][position]
            for host, one in zip(own, positions, strict=True)
            for position in one
        ]
        for part, logits in logits_in_parts(lm, hidden):
            found.take(logits, wanted[part])
    for several in _batch_groups(lm, groups, rows, batch_tokens):
        _rate_groups(lm, several, rows, hosts, found)
    return found.ratings()


def states_at(
    lm: LanguageModel, tokens: Tokens, reads: Sequence[range]
) -> Float[Tensor, "reads d_model"]:
    """Return hidden states after the last block at the positions read, row after row.

    The first position read of a row is taken as the end of its prompt. Padding is on the right.
    """
    width = max(map(len, reads))
    at = torch.tensor([[*own, *[own[-1]] * (width - len(own))] for own in reads])
    real = torch.tensor([[j < len(own) for j in range(width)] for own in reads])
    last = state(lm.num_layers - 1)
    with lm.prompt_ends.mark(at[:, 0].to(lm.device)):
        hidden = lm.tap(tokens, [last], positions=at.to(lm.device))[last]
    return hidden[real.to(hidden.device)]


def logits_in_parts(
    lm: LanguageModel, hidden: Float[Tensor, "reads d_model"]
) -> Iterator[tuple[slice, Float[Tensor, "part vocab"]]]:
    """Yield logits at some hidden states, in parts that keep memory bounded, at least float32."""
    size = max(1, _HEAD_NUMBERS // lm.model.config.get_text_config().vocab_size)
    with torch.inference_mode():
        for begin in range(0, len(hidden), size):
            part = slice(begin, begin + size)
            yield part, widen(lm.head(hidden[part]))


class _Place(NamedTuple):
    """A read of a row: which row, and which of its reads."""

    row: int
    read: int


_Wanted = dict[int, list[_Place]]
"""By position of a row that is run: the reads that are served there."""


class _Found:
    """Collects what is read."""

    def __init__(self, rows: Sequence[Fed], whole: frozenset[int]) -> None:
        self._rows, self._whole = rows, whole
        self._log_probs = [[0.0] * len(row.labels) for row in rows]
        self._argmax = [[0] * len(row.reads) for row in rows]
        self._distributions: list[list[Tensor]] = [
            [torch.empty(0)] * (len(row.reads) if index in whole else 0)
            for index, row in enumerate(rows)
        ]

    def take(self, logits: Float[Tensor, "part vocab"], wanted: Sequence[Sequence[_Place]]) -> None:
        """Note logits; `wanted` lists for each line the reads it serves."""
        lines = [line for line, places in enumerate(wanted) for _ in places]
        places = list(itertools.chain.from_iterable(wanted))
        labels = [self._label(place) for place in places]
        at = torch.tensor([lines, labels], dtype=torch.long, device=logits.device)
        chosen = (logits[at[0], at[1]] - logits.logsumexp(1)[at[0]]).tolist()
        argmax = logits.argmax(1).tolist()
        for line, place, log_prob in zip(lines, places, chosen, strict=True):
            self._argmax[place.row][place.read] = argmax[line]
            if self._rows[place.row].labels:
                self._log_probs[place.row][place.read] = log_prob
            if place.row in self._whole:
                distribution = logits[line].log_softmax(0).cpu()
                self._distributions[place.row][place.read] = distribution

    def _label(self, place: _Place) -> int:
        labels = self._rows[place.row].labels
        return labels[place.read] if labels else 0

    def ratings(self) -> list[Rating]:
        """Return the ratings of each row."""
        return [
            Rating(
                tuple(log_probs),
                tuple(argmax),
                torch.stack(distributions) if distributions else None,
            )
            for log_probs, argmax, distributions in zip(
                self._log_probs, self._argmax, self._distributions, strict=True
            )
        ]


def _choose_hosts(rows: Sequence[Fed]) -> dict[int, _Wanted]:
    """Return the rows that are run, with the reads served there.

    A row that begins a longer one, after the same prompt, is not run.
    """
    order = sorted(range(len(rows)), key=lambda i: (rows[i].reads.start, rows[i].ids), reverse=True)
    hosts: dict[int, _Wanted] = {}
    host = -1
    for index in order:
        row = rows[index]
        hosted = (
            host >= 0
            and rows[host].reads.start == row.reads.start
            and rows[host].ids[: len(row.ids)] == row.ids
        )
        if not hosted:
            host = index
            hosts[host] = {}
        for read, position in enumerate(row.reads):
            hosts[host].setdefault(position, []).append(_Place(index, read))
    return hosts


class _Group(NamedTuple):
    """Rows that begin alike.

    Attributes:
        prefix: What they begin with, up to the end of a prompt at most.
        members: Which rows.
    """

    prefix: list[int]
    members: list[int]

    @property
    def spared(self) -> int:
        """Tokens that need not be run again."""
        return (len(self.members) - 1) * len(self.prefix)


def _share_beginnings(
    lm: LanguageModel, rows: Sequence[Fed], hosts: Sequence[int]
) -> tuple[list[_Group], list[int]]:
    """Return groups of rows whose beginning is worth a pass of its own, and the rows left.

    While passes are followed, only whole prompts are shared. With sliding windows
    keys and values cannot be kept apart from how a row is padded.
    """
    if getattr(lm.model.config.get_text_config(), "sliding_window", None):
        return [], [*hosts]
    found = [*_group_rows(rows, hosts, whole_prompts=lm.prompt_ends.are_followed)]
    groups = [one for one in found if one.spared >= _SPARED_EACH]
    spared = sum(one.spared for one in groups)
    if spared < max(_SPARED_TOKENS, _SPARED_SHARE * sum(len(rows[host].ids) for host in hosts)):
        return [], [*hosts]
    return groups, [row for one in found if one.spared < _SPARED_EACH for row in one.members]


def _group_rows(
    rows: Sequence[Fed], hosts: Sequence[int], *, whole_prompts: bool
) -> Iterator[_Group]:
    """Yield all rows, in groups that share at least half of each member, or a whole prompt."""
    members: list[int] = []
    prefix: list[int] = []
    longest = 0
    for host in sorted(hosts, key=lambda one: rows[one].ids):
        row = rows[host]
        prompt = row.ids[: row.reads.start + 1]
        common = _common(prefix, prompt) if members else 0
        if whole_prompts:
            joins = members and common == len(prefix) == len(prompt)
        else:
            joins = members and 2 * common >= max(longest, len(row.ids))
        if joins:
            members.append(host)
            prefix, longest = prefix[:common], max(longest, len(row.ids))
            continue
        if members:
            yield _Group(prefix, members)
        members, prefix, longest = [host], prompt, len(row.ids)
    if members:
        yield _Group(prefix, members)


def _common(first: Sequence[int], second: Sequence[int]) -> int:
    """Return the length of the common beginning."""
    pairs = zip(first, second, strict=False)
    return next((n for n, (a, b) in enumerate(pairs) if a != b), min(len(first), len(second)))


def _batch_groups(
    lm: LanguageModel, groups: Sequence[_Group], rows: Sequence[Fed], batch_tokens: int | None
) -> Iterator[list[_Group]]:
    """Yield groups that are run at once, of nearly equal length; large ones are split."""
    room = _ROOM * token_budget(lm, batch_tokens)
    batch: list[_Group] = []
    taken = 0
    for group in sorted(groups, key=lambda one: len(one.prefix), reverse=True):
        width = max(len(rows[row].ids) for row in group.members)
        size = max(2, room // width)
        for begin in range(0, len(group.members), size):
            part = _Group(group.prefix, group.members[begin : begin + size])
            needed = width * len(part.members)
            if batch and (taken + needed > room or 2 * len(part.prefix) < len(batch[0].prefix)):
                yield batch
                batch, taken = [], 0
            batch.append(part)
            taken += needed
    if batch:
        yield batch


@torch.inference_mode()
def _rate_groups(
    lm: LanguageModel,
    groups: Sequence[_Group],
    rows: Sequence[Fed],
    hosts: Mapping[int, _Wanted],
    found: _Found,
) -> None:
    """Read the beginning of each group once, then what its rows add to it."""
    start = Tokens.pad([one.prefix for one in groups], pad_id(lm), side="left").to(lm.device)
    mask = start.mask.long()
    output = lm.model(
        input_ids=start.ids,
        attention_mask=mask,
        position_ids=start.position_ids,
        use_cache=True,
        logits_to_keep=1,
    )
    at_end = [
        [place for row in one.members for place in hosts[row].get(len(one.prefix) - 1, [])]
        for one in groups
    ]
    found.take(widen(output.logits[:, -1]), at_end)
    added = [
        (number, row, rows[row].ids[len(one.prefix) :])
        for number, one in enumerate(groups)
        for row in one.members
        if len(rows[row].ids) > len(one.prefix)
    ]
    if not added:
        return
    chosen = torch.tensor([number for number, _, _ in added], device=lm.device)
    cache = output.past_key_values
    select_rows(cache, chosen)
    lm.prompt_ends.select(chosen)
    rest = Tokens.pad([ids for _, _, ids in added], pad_id(lm), side="left").to(lm.device)
    lengths = mask.sum(1)[chosen]
    read = [
        [position for position in hosts[row] if position >= len(groups[number].prefix)]
        for number, row, _ in added
    ]
    # Rows end at the last column, so the positions read are among the last ones.
    kept = max(len(rows[row].ids) - min(own) for (_, row, _), own in zip(added, read, strict=True))
    logits = lm.model(
        input_ids=rest.ids,
        attention_mask=torch.cat([mask[chosen], rest.mask.long()], dim=1),
        position_ids=rest.position_ids + lengths[:, None],
        past_key_values=cache,
        use_cache=True,
        logits_to_keep=kept,
    ).logits
    lines = [
        (line, kept - (len(rows[row].ids) - position), hosts[row][position])
        for line, ((_, row, _), own) in enumerate(zip(added, read, strict=True))
        for position in own
    ]
    at = torch.tensor([(line, column) for line, column, _ in lines], device=lm.device)
    found.take(widen(logits[at[:, 0], at[:, 1]]), [places for _, _, places in lines])
