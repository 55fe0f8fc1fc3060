"""Queries, which probes become, and the answers to them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from jaxtyping import Float
from torch import Tensor

from corrigenda.cases import GENERATED, NATURAL, TEXTS, Probe, Protocol
from corrigenda.run.tables import PLAIN, NaturalForm


class Query(NamedTuple):
    """One query to a model: everything about a probe that decides the answer.

    Attributes:
        prompt: Everything the model reads; empty for a text that is scored as it is.
        protocol: How the answer is taken.
        target: The expected string that is scored, or whose tokens are noted; None without one.
        rivals: Other answers that are scored.
        separator: Text between prompt and target.
        max_new_tokens: Length of a greedy answer; 0 under the other protocols.
        marker: Text after which the greedy answer proper begins.
        is_text: Whether a greedy answer continues after its first line.
        divergence: Whether the distributions of the next token are compared too.
        turns: Texts that follow each of the model's own answers, before the one that counts.
        examples: Worked examples before the prompt, as many of the first as there is room for.
        chat: Whether the prompt is a user's turn in the chat template.
        system: System message of the chat template; empty leaves it to the template.
        stop: Texts at which a natural answer ends, besides its own end.
    """

    prompt: str
    protocol: Protocol
    target: str | None = None
    rivals: tuple[str, ...] = ()
    separator: str = " "
    max_new_tokens: int = 0
    marker: str = ""
    is_text: bool = False
    divergence: bool = False
    turns: tuple[str, ...] = ()
    examples: tuple[str, ...] = ()
    chat: bool = False
    system: str = ""
    stop: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Answer:
    """Answer of a model to a query; the fields are those of `corrigenda.rows.Row`.

    Attributes:
        answer: Greedy: the continuation, or its part after the marker.
        token_ids: Tokens of the target.
        predicted: Teacher forced: the argmax at each of them. Greedy: the tokens generated.
        log_probs: log p of each of them.
        rival_log_probs: The same of each rival.
        ended: Whether a natural answer ended by itself.
        skipped: Why there is nothing: code and name of an error.
    """

    answer: str | None = None
    token_ids: list[int] | None = None
    predicted: list[int] | None = None
    log_probs: list[float] | None = None
    rival_log_probs: list[list[float]] | None = None
    ended: bool | None = None
    skipped: str = ""


class AnswerTable(NamedTuple):
    """Answers by query.

    Attributes:
        given: One for each query.
        distributions: Natural log-probabilities of all tokens, for queries with `divergence`.
    """

    given: dict[Query, Answer]
    distributions: dict[Query, Float[Tensor, "reads vocab"]]


def make_query(
    probe: Probe,
    max_new_tokens: int,
    *,
    chat: bool = False,
    natural: NaturalForm = PLAIN,
) -> Query:
    """Return the query of a probe.

    Args:
        probe: The probe.
        max_new_tokens: Length of a greedy answer where the probe does not say.
        chat: Ask in the chat form, except texts, which are continued as they are.
        natural: How natural answers are asked for.
    """
    generated, is_natural = probe.protocol in GENERATED, probe.protocol in NATURAL
    is_chat = probe.protocol == Protocol.CHAT
    plain = probe.protocol == Protocol.GENERATE and not chat
    length = natural.max_new_tokens if is_natural else max_new_tokens
    return Query(
        prompt=natural.wording.replace("{}", probe.prompt) if plain else probe.prompt,
        protocol=probe.protocol,
        target=probe.answer,
        rivals=probe.rivals if probe.protocol == Protocol.RANK else (),
        separator=probe.separator,
        max_new_tokens=(probe.max_new_tokens or length) if generated else 0,
        marker=probe.marker if generated else "",
        is_text=is_natural or (generated and probe.family in TEXTS),
        divergence=probe.divergence,
        turns=probe.turns if generated else (),
        chat=is_chat or (chat and probe.protocol != Protocol.SAMPLED and probe.family not in TEXTS),
        system=natural.system if is_chat else "",
        stop=natural.stop if is_natural else (),
    )
