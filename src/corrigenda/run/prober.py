"""Asking a model: probes become queries, and a batch of queries is answered at once.

What the model is fed depends on the query alone, so the unedited model is asked the very same.
Edits that rewrite prompts or answer themselves are obeyed, see `corrigenda.lm.interception`.
"""

from __future__ import annotations

# Parts of torch and transformers have no types.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import NamedTuple

from jaxtyping import Float
from torch import Tensor

from corrigenda.cases import GENERATED, NATURAL, Protocol
from corrigenda.errors import CorrigendaError, EmptyTarget
from corrigenda.lm.chat import word_turn
from corrigenda.lm.decoding import continuations
from corrigenda.lm.interception import ask_rewritten
from corrigenda.lm.kv_cache import Continuation
from corrigenda.lm.model import LanguageModel
from corrigenda.lm.sampling import sample_to_length
from corrigenda.lm.scoring import Fed, Rating, rate
from corrigenda.lm.spans import Encoded, encode, encode_turn
from corrigenda.run.queries import Answer, AnswerTable, Query

SAMPLED = {"length": 100, "top_k": 5, "seed": 0}
"""How texts are sampled: tokens with the prompt, and among how many each is drawn."""

_Rated = tuple[Fed, Rating] | str
"""A row with its scores, or why there is none."""
_Scorer = Callable[[LanguageModel, list[int], list[str]], list[_Rated]]


def ask(
    lm: LanguageModel,
    queries: Iterable[Query],
    *,
    distributions: bool = True,
    batch_tokens: int | None = None,
) -> AnswerTable:
    """Ask a model, with the patches that are active, every query once.

    A query that cannot be asked (a prompt beyond the context, an empty target) gets an answer
    that names the reason; it does not change the others.

    Args:
        lm: The model.
        queries: Any number, equal ones count as one.
        distributions: Whether to take those of queries with `divergence`.
        batch_tokens: Most tokens in one batch, padding included; None takes what suits the device.
    """
    unique = list(dict.fromkeys(queries))
    asked = [add_examples(lm, one) for one in unique]
    found = _AnswerCollector(asked)
    _score(lm, asked, found, distributions, batch_tokens)
    _generate(lm, asked, found, batch_tokens)
    _sample(lm, asked, found, batch_tokens)
    return AnswerTable(dict(zip(unique, found.build(), strict=True)), found.distributions)


def add_examples(lm: LanguageModel, query: Query) -> Query:
    """Return a query with its worked examples in the prompt, as many as the context holds.

    There is room where prompt and answer fit, the longest of the answers that are scored, or one of
    `max_new_tokens`.
    """
    for count in range(len(query.examples), 0, -1):
        prompt = "".join(query.examples[:count]) + query.prompt
        if _has_room(lm, query._replace(prompt=prompt)):
            return query._replace(prompt=prompt, examples=())
    return query._replace(examples=()) if query.examples else query


def _has_room(lm: LanguageModel, one: Query) -> bool:
    generated = one.protocol in (*GENERATED, Protocol.SAMPLED)
    answers = ("",) if generated else (one.target or "", *one.rivals)
    try:
        lengths = [len(_encode(lm, one, one.prompt, answer).ids) for answer in answers]
    except CorrigendaError:
        return False
    return max(lengths) + one.max_new_tokens <= lm.context_length


def compute_divergences(
    before: Float[Tensor, "reads vocab"], after: Float[Tensor, "reads vocab"]
) -> tuple[list[float], list[float]]:
    """Return KL(unedited || edited) and KL(edited || unedited), in nats at each position."""
    p, q = before.double(), after.double()
    forward = (p.exp() * (p - q)).nan_to_num(nan=0.0).sum(1)
    backward = (q.exp() * (q - p)).nan_to_num(nan=0.0).sum(1)
    # Rounding may leave a value below zero.
    return forward.clamp_min(0).tolist(), backward.clamp_min(0).tolist()


def describe_error(error: Exception) -> str:
    """Return the code and name of an error, the reason in a row without an answer.

    Example:
        >>> from corrigenda.errors import EmptyTarget
        >>> describe_error(EmptyTarget("no target"))
        'CG102 EmptyTarget'
    """
    code = f"{error.code} " if isinstance(error, CorrigendaError) else ""
    return f"{code}{type(error).__name__}"


class _AnswerCollector:
    """Answers under construction, query by query."""

    def __init__(self, queries: Sequence[Query]) -> None:
        self.queries = queries
        self.parts: list[dict[str, object]] = [{} for _ in queries]
        self.distributions: dict[Query, Tensor] = {}

    def add(self, index: int, **parts: object) -> None:
        self.parts[index] |= parts

    def is_skipped(self, index: int) -> bool:
        return "skipped" in self.parts[index]

    def build(self) -> list[Answer]:
        return [
            Answer(skipped=str(part["skipped"])) if "skipped" in part else Answer(**part)  # type: ignore[arg-type]  # names of fields
            for part in self.parts
        ]


class _ScoredTarget(NamedTuple):
    """One target to score: of which query, as which of its rivals (-1: the expected answer)."""

    query: int
    target: str
    rival: int


def _score(
    lm: LanguageModel,
    queries: Sequence[Query],
    found: _AnswerCollector,
    distributions: bool,
    batch_tokens: int | None,
) -> None:
    wanted: list[_ScoredTarget] = []
    for index, one in enumerate(queries):
        if one.protocol in (*GENERATED, Protocol.SAMPLED):
            _add_target_ids(lm, index, one, found)
            if one.divergence and distributions:
                wanted.append(_ScoredTarget(index, one.target or "", -1))
        else:
            wanted += _list_targets(index, one, found)

    def score_prompts(lm: LanguageModel, places: list[int], prompts: list[str]) -> list[_Rated]:
        rows: dict[int, Fed] = {}
        results: dict[int, _Rated] = {}
        for number, (place, prompt) in enumerate(zip(places, prompts, strict=True)):
            one = wanted[place]
            try:
                rows[number] = _build_row(lm, queries[one.query], prompt, one.target)
            except CorrigendaError as error:
                results[number] = describe_error(error)
        whole = [
            at
            for at, number in enumerate(rows)
            if distributions
            and queries[wanted[places[number]].query].divergence
            and wanted[places[number]].rival < 0
        ]
        rated = rate(lm, list(rows.values()), whole=whole, batch_tokens=batch_tokens)
        results |= {
            number: (row, rating) for (number, row), rating in zip(rows.items(), rated, strict=True)
        }
        return [results[number] for number in range(len(places))]

    for one, result in zip(
        wanted, _score_rewritten(lm, wanted, queries, score_prompts), strict=True
    ):
        if isinstance(result, str):
            found.add(one.query, skipped=result)
        elif not found.is_skipped(one.query):
            _add_rating(found, one, *result)


def _score_rewritten(
    lm: LanguageModel, wanted: Sequence[_ScoredTarget], queries: Sequence[Query], score: _Scorer
) -> list[_Rated]:
    """Score targets after their prompts as patches rewrite them; texts have no prompt."""
    texts = [i for i, one in enumerate(wanted) if not queries[one.query].prompt]
    others = [i for i, one in enumerate(wanted) if queries[one.query].prompt]

    def score_others(lm: LanguageModel, places: list[int], prompts: list[str]) -> list[_Rated]:
        return score(lm, [others[place] for place in places], prompts)

    prompts = [queries[wanted[i].query].prompt for i in others]
    results = dict(zip(others, ask_rewritten(lm, prompts, score_others), strict=True))
    results |= dict(zip(texts, score(lm, texts, [""] * len(texts)), strict=True))
    return [results[i] for i in range(len(wanted))]


def _list_targets(index: int, one: Query, found: _AnswerCollector) -> list[_ScoredTarget]:
    if not one.target:
        if one.divergence:
            return [_ScoredTarget(index, "", -1)]
        found.add(index, skipped="no expected answer")
        return []
    found.add(index, rival_log_probs=[[] for _ in one.rivals] if one.rivals else None)
    rivals = [_ScoredTarget(index, rival, number) for number, rival in enumerate(one.rivals)]
    return [_ScoredTarget(index, one.target, -1), *rivals]


def _encode(lm: LanguageModel, query: Query, prompt: str, target: str = "") -> Encoded:
    """Encode what a query asks, its prompt as patches rewrite it, in the chat form where asked."""
    if query.chat:
        return encode_turn(lm, prompt, target=target, separator=query.separator)
    return encode(lm, prompt, target=target, separator=query.separator)


def _build_row(lm: LanguageModel, query: Query, prompt: str, target: str) -> Fed:
    """Return the row in which a target follows a prompt; without target, the next token is read.

    A text without prompt is cut to the context, and its first token only read: a BOS token, where
    the tokenizer puts one.
    """
    if prompt == "" and target:
        ids = lm.tokenizer(target, verbose=False).input_ids[: lm.context_length]
        if len(ids) < 2:
            raise EmptyTarget("the text has no token to predict.", where=target)
        return Fed(ids[:-1], range(len(ids) - 1), tuple(ids[1:]))
    row = _encode(lm, query, prompt, target)
    if not target:
        return Fed(row.ids, range(row.prompt_last, row.prompt_last + 1))
    return Fed(row.ids[:-1], row.reads, row.target_ids)


def _add_rating(found: _AnswerCollector, one: _ScoredTarget, row: Fed, rating: Rating) -> None:
    query = found.queries[one.query]
    if rating.distributions is not None:
        found.distributions[query] = rating.distributions
    if query.protocol in GENERATED or not row.labels:
        return
    if one.rival >= 0:
        rivals = found.parts[one.query]["rival_log_probs"]
        assert isinstance(rivals, list)
        rivals[one.rival] = list(rating.log_probs)
        return
    found.add(one.query, token_ids=list(row.labels), log_probs=list(rating.log_probs))
    if query.protocol == Protocol.TEACHER_FORCED:
        found.add(one.query, predicted=list(rating.argmax_ids))


def _add_target_ids(lm: LanguageModel, index: int, one: Query, found: _AnswerCollector) -> None:
    """Add the tokens of an expected answer that is not fed; texts are compared as words."""
    if one.is_text or not one.target:
        return
    try:
        row = _encode(lm, one, one.prompt, one.target)
    except CorrigendaError:
        # The prompt alone may still fit, and then the answer is judged by its words.
        return
    found.add(index, token_ids=list(row.target_ids))


def _generate(
    lm: LanguageModel,
    queries: Sequence[Query],
    found: _AnswerCollector,
    batch_tokens: int | None,
) -> None:
    fitting = _select_askable(lm, queries, found, GENERATED)
    # The dialogue so far, by query; each turn lengthens it.
    dialogues = {index: queries[index].prompt for index in fitting}

    def continue_all(several: list[int]) -> list[Continuation]:
        own = [queries[index] for index in several]
        # Those of one call are in one form.
        form = own[0]
        return continuations(
            lm,
            [_word(one, dialogues[index]) for one, index in zip(own, several, strict=True)],
            chat=form.chat,
            system=form.system,
            max_new_tokens=[one.max_new_tokens for one in own],
            finished=lambda at, text: _is_finished(own[at], text),
            batch_tokens=batch_tokens,
        )

    turn = 0
    while fitting:
        given = [
            pair
            for own in _group_by_form(queries, fitting)
            for pair in _ask_each(own, continue_all, found)
        ]
        for index, (text, ids) in given:
            one = queries[index]
            answer = _cut_answer(one, text)
            new = lm.tokenizer(text, add_special_tokens=False).input_ids if ids is None else ids
            found.add(index, answer=answer, predicted=list(new))
            if one.protocol in NATURAL:
                found.add(index, ended=ids is None or len(ids) < one.max_new_tokens)
            if turn < len(one.turns):
                dialogues[index] += f"{answer.rstrip()}\n{one.turns[turn]}"
        fitting = [index for index, _ in given if turn < len(queries[index].turns)]
        turn += 1


def _group_by_form(queries: Sequence[Query], places: Sequence[int]) -> list[list[int]]:
    """Group the places of queries that are put into a text in the same way."""
    groups: dict[tuple[bool, str], list[int]] = {}
    for index in places:
        groups.setdefault((queries[index].chat, queries[index].system), []).append(index)
    return [*groups.values()]


def _is_finished(query: Query, text: str) -> bool:
    if query.is_text:
        return any(stop in text for stop in query.stop)
    return _ends_line(_cut_marker(text, query.marker))


def _cut_answer(query: Query, text: str) -> str:
    """Return the answer in a continuation: a natural one whole, up to the first of its stops."""
    if not query.is_text:
        return _first_line(_cut_marker(text, query.marker) or "")
    ends = [text.find(stop) for stop in query.stop if stop in text]
    answer = text[: min(ends)] if ends else text
    return answer.strip() if query.protocol in NATURAL else answer


def _word(query: Query, prompt: str) -> str:
    return word_turn(prompt).write(prompt) if query.chat else prompt


def _sample(
    lm: LanguageModel,
    queries: Sequence[Query],
    found: _AnswerCollector,
    batch_tokens: int | None,
) -> None:
    """Sample texts as long as those of the published programs."""

    def continue_all(several: list[int]) -> list[Continuation]:
        return sample_to_length(
            lm,
            [queries[index].prompt for index in several],
            **SAMPLED,
            batch_tokens=batch_tokens,
        )

    fitting = _select_askable(lm, queries, found, (Protocol.SAMPLED,))
    for index, (text, ids) in _ask_each(fitting, continue_all, found) if fitting else ():
        new = lm.tokenizer(text, add_special_tokens=False).input_ids if ids is None else ids
        found.add(index, answer=text, predicted=list(new))


def _ask_each(
    members: list[int], ask_all: Callable[[list[int]], list[Continuation]], found: _AnswerCollector
) -> list[tuple[int, Continuation]]:
    """Ask together; where a rewritten prompt cannot be asked, one by one."""
    try:
        return list(zip(members, ask_all(members), strict=True))
    except CorrigendaError as error:
        if len(members) == 1:
            found.add(members[0], skipped=describe_error(error))
            return []
    return [pair for index in members for pair in _ask_each([index], ask_all, found)]


def _select_askable(
    lm: LanguageModel,
    queries: Sequence[Query],
    found: _AnswerCollector,
    protocols: Collection[Protocol],
) -> list[int]:
    """Return the places of the queries of some protocols whose prompts can be asked."""
    return [
        index
        for index, one in enumerate(queries)
        if one.protocol in protocols
        and not found.is_skipped(index)
        and _check_prompt(lm, one, index, found)
    ]


def _check_prompt(lm: LanguageModel, one: Query, index: int, found: _AnswerCollector) -> bool:
    """Return whether the prompt can be asked; where not, record why."""
    try:
        _encode(lm, one, one.prompt)
    except CorrigendaError as error:
        found.add(index, skipped=describe_error(error))
        return False
    return True


def _cut_marker(text: str, marker: str) -> str | None:
    """Return the text after the first marker; None as long as there is no marker."""
    if not marker:
        return text
    _, found, rest = text.partition(marker)
    return rest if found else None


def _ends_line(text: str | None) -> bool:
    """Return whether a line that is not blank has ended."""
    return text is not None and "\n" in text.lstrip()


def _first_line(text: str) -> str:
    """Return the first line that is not blank, with the white space before it."""
    shown = text.lstrip()
    return text[: len(text) - len(shown)] + shown.partition("\n")[0]
