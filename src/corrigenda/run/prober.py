"""Probes become questions, and questions answers: many at once, each once.

What the model is fed depends on the question alone, so the unedited model is asked the very same.
Edits that rewrite prompts or answer themselves are obeyed, see `corrigenda.lm.interception`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from jaxtyping import Float
from torch import Tensor

from corrigenda.cases import TEXTS, Probe, Protocol
from corrigenda.errors import CorrigendaError, EmptyTarget
from corrigenda.lm.decoding import continuations
from corrigenda.lm.interception import through
from corrigenda.lm.kv_cache import Continuation
from corrigenda.lm.model import LanguageModel
from corrigenda.lm.sampling import sample_to_length
from corrigenda.lm.scoring import Fed, Rating, rate
from corrigenda.lm.spans import encode

SAMPLED = {"length": 100, "top_k": 5, "seed": 0}
"""How texts are sampled: tokens with the prompt, and among how many each is drawn."""


_Rated = tuple[Fed, Rating] | str
"""A row with what the model makes of it, or why there is none."""
_Plainly = Callable[[LanguageModel, list[int], list[str]], list[_Rated]]


class Question(NamedTuple):
    """Everything about a probe that decides what a model answers.

    Attributes:
        prompt: Everything the model reads; empty for a text that is scored as it stands.
        protocol: How the answer is taken.
        target: The expected string that is scored, or whose tokens are noted; None without one.
        rivals: Answers scored beside it.
        separator: Text between prompt and target.
        max_new_tokens: Length of a greedy answer; 0 under the other protocols.
        marker: Text behind which the greedy answer proper stands.
        is_text: Whether a greedy answer goes on beyond its first line.
        divergence: Whether the distributions of the next token are compared too.
        turns: What is said behind each of the model's own answers, before the one that counts.
        examples: Worked examples to stand before the prompt, as many of the first as there is room.
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


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What a model gave; the fields are those of `corrigenda.rows.Row`.

    Attributes:
        answer: Greedy: the continuation, or of it what stands behind the marker.
        token_ids: Tokens of the target.
        predicted: Teacher forced: the argmax at each of them. Greedy: the tokens generated.
        log_probs: log p of each of them.
        rival_log_probs: The same of each rival.
        skipped: Why there is nothing: code and name of an error.
    """

    answer: str | None = None
    token_ids: list[int] | None = None
    predicted: list[int] | None = None
    log_probs: list[float] | None = None
    rival_log_probs: list[list[float]] | None = None
    skipped: str = ""


class Answers(NamedTuple):
    """Answers by question.

    Attributes:
        given: One for each question.
        distributions: Natural log-probabilities of all tokens, for questions with `divergence`.
    """

    given: dict[Question, Answer]
    distributions: dict[Question, Float[Tensor, "reads vocab"]]


def question_of(probe: Probe, max_new_tokens: int) -> Question:
    """What a probe asks.

    Args:
        probe: The probe.
        max_new_tokens: Length of a greedy answer where the probe does not say.
    """
    greedy = probe.protocol == Protocol.GREEDY
    return Question(
        prompt=probe.prompt,
        protocol=probe.protocol,
        target=probe.answer,
        rivals=probe.rivals if probe.protocol == Protocol.RANK else (),
        separator=probe.separator,
        max_new_tokens=(probe.max_new_tokens or max_new_tokens) if greedy else 0,
        marker=probe.marker if greedy else "",
        is_text=greedy and probe.family in TEXTS,
        divergence=probe.divergence,
        turns=probe.turns if greedy else (),
    )


def ask(
    lm: LanguageModel,
    questions: Iterable[Question],
    *,
    distributions: bool = True,
    batch_tokens: int | None = None,
) -> Answers:
    """Ask a model, with whatever patches are active, every question once.

    A question that cannot be asked (a prompt beyond the context, an empty target) gets an answer
    that says so; the others are not touched by it.

    Args:
        lm: The model.
        questions: Any number, equal ones count as one.
        distributions: Whether to take those of questions with `divergence`.
        batch_tokens: Most tokens in one batch, padding included; None takes what suits the device.
    """
    unique = list(dict.fromkeys(questions))
    asked = [shown(lm, one) for one in unique]
    found = _Answers(asked)
    _score(lm, asked, found, distributions, batch_tokens)
    _generate(lm, asked, found, batch_tokens)
    _sample(lm, asked, found, batch_tokens)
    return Answers(dict(zip(unique, found.finished(), strict=True)), found.distributions)


def shown(lm: LanguageModel, question: Question) -> Question:
    """A question with its worked examples in the prompt: as many as its context holds.

    There is room where prompt and answer fit, the longest of the answers that are scored, or one of
    `max_new_tokens`.
    """
    for count in range(len(question.examples), 0, -1):
        prompt = "".join(question.examples[:count]) + question.prompt
        if _has_room(lm, question._replace(prompt=prompt)):
            return question._replace(prompt=prompt, examples=())
    return question._replace(examples=()) if question.examples else question


def _has_room(lm: LanguageModel, one: Question) -> bool:
    greedy = one.protocol in (Protocol.GREEDY, Protocol.SAMPLED)
    answers = ("",) if greedy else (one.target or "", *one.rivals)
    try:
        lengths = [
            len(encode(lm, one.prompt, target=answer, separator=one.separator).ids)
            for answer in answers
        ]
    except CorrigendaError:
        return False
    return max(lengths) + one.max_new_tokens <= lm.context_length


def divergences(
    before: Float[Tensor, "reads vocab"], after: Float[Tensor, "reads vocab"]
) -> tuple[list[float], list[float]]:
    """KL(unedited || edited) and KL(edited || unedited) in nats at each position, in float64."""
    p, q = before.double(), after.double()
    forward = (p.exp() * (p - q)).nan_to_num(nan=0.0).sum(1)
    backward = (q.exp() * (q - p)).nan_to_num(nan=0.0).sum(1)
    # Rounding may leave a trifle below zero.
    return forward.clamp_min(0).tolist(), backward.clamp_min(0).tolist()


def coded(error: Exception) -> str:
    """Why something was skipped: the code and name of an error.

    Example:
        >>> from corrigenda.errors import EmptyTarget
        >>> coded(EmptyTarget("no target"))
        'CG102 EmptyTarget'
    """
    code = f"{error.code} " if isinstance(error, CorrigendaError) else ""
    return f"{code}{type(error).__name__}"


class _Answers:
    """Answers as they come in, question by question."""

    def __init__(self, questions: Sequence[Question]) -> None:
        self.questions = questions
        self.parts: list[dict[str, object]] = [{} for _ in questions]
        self.distributions: dict[Question, Tensor] = {}

    def note(self, index: int, **parts: object) -> None:
        self.parts[index] |= parts

    def fails(self, index: int) -> bool:
        return "skipped" in self.parts[index]

    def finished(self) -> list[Answer]:
        return [
            Answer(skipped=str(part["skipped"])) if "skipped" in part else Answer(**part)  # type: ignore[arg-type]  # names of fields
            for part in self.parts
        ]


class _Scored(NamedTuple):
    """One target to score: of which question, as which of its rivals (-1: the expected answer)."""

    question: int
    target: str
    rival: int


def _score(
    lm: LanguageModel,
    questions: Sequence[Question],
    found: _Answers,
    distributions: bool,
    batch_tokens: int | None,
) -> None:
    wanted: list[_Scored] = []
    for index, one in enumerate(questions):
        if one.protocol in (Protocol.GREEDY, Protocol.SAMPLED):
            _note_target(lm, index, one, found)
            if one.divergence and distributions:
                wanted.append(_Scored(index, one.target or "", -1))
        else:
            wanted += _targets(index, one, found)

    def plainly(lm: LanguageModel, places: list[int], prompts: list[str]) -> list[_Rated]:
        rows: dict[int, Fed] = {}
        results: dict[int, _Rated] = {}
        for number, (place, prompt) in enumerate(zip(places, prompts, strict=True)):
            one = wanted[place]
            try:
                rows[number] = _fed(lm, prompt, one.target, questions[one.question].separator)
            except CorrigendaError as error:
                results[number] = coded(error)
        whole = [
            at
            for at, number in enumerate(rows)
            if distributions
            and questions[wanted[places[number]].question].divergence
            and wanted[places[number]].rival < 0
        ]
        rated = rate(lm, list(rows.values()), whole=whole, batch_tokens=batch_tokens)
        results |= {
            number: (row, rating) for (number, row), rating in zip(rows.items(), rated, strict=True)
        }
        return [results[number] for number in range(len(places))]

    for one, result in zip(wanted, _through(lm, wanted, questions, plainly), strict=True):
        if isinstance(result, str):
            found.note(one.question, skipped=result)
        elif not found.fails(one.question):
            _note_rating(found, one, *result)


def _through(
    lm: LanguageModel, wanted: Sequence[_Scored], questions: Sequence[Question], plainly: _Plainly
) -> list[_Rated]:
    """Rated behind their prompts as rewritten; texts without a prompt are nobody's question."""
    texts = [i for i, one in enumerate(wanted) if not questions[one.question].prompt]
    others = [i for i, one in enumerate(wanted) if questions[one.question].prompt]

    def of_others(lm: LanguageModel, places: list[int], prompts: list[str]) -> list[_Rated]:
        return plainly(lm, [others[place] for place in places], prompts)

    prompts = [questions[wanted[i].question].prompt for i in others]
    results = dict(zip(others, through(lm, prompts, of_others), strict=True))
    results |= dict(zip(texts, plainly(lm, texts, [""] * len(texts)), strict=True))
    return [results[i] for i in range(len(wanted))]


def _targets(index: int, one: Question, found: _Answers) -> list[_Scored]:
    if not one.target:
        if one.divergence:
            return [_Scored(index, "", -1)]
        found.note(index, skipped="no expected answer")
        return []
    found.note(index, rival_log_probs=[[] for _ in one.rivals] if one.rivals else None)
    rivals = [_Scored(index, rival, number) for number, rival in enumerate(one.rivals)]
    return [_Scored(index, one.target, -1), *rivals]


def _fed(lm: LanguageModel, prompt: str, target: str, separator: str) -> Fed:
    """The row in which a target is read behind a prompt; without target, the next token.

    A text without prompt is cut to the context, and its first token only read: a BOS token, where
    the tokenizer puts one.
    """
    if prompt == "" and target:
        ids = lm.tokenizer(target, verbose=False).input_ids[: lm.context_length]
        if len(ids) < 2:
            raise EmptyTarget("the text has no token to predict.", where=target)
        return Fed(ids[:-1], range(len(ids) - 1), tuple(ids[1:]))
    row = encode(lm, prompt, target=target, separator=separator)
    if not target:
        return Fed(row.ids, range(row.prompt_last, row.prompt_last + 1))
    return Fed(row.ids[:-1], row.reads, row.target_ids)


def _note_rating(found: _Answers, one: _Scored, row: Fed, rating: Rating) -> None:
    question = found.questions[one.question]
    if rating.distributions is not None:
        found.distributions[question] = rating.distributions
    if question.protocol == Protocol.GREEDY or not row.labels:
        return
    if one.rival >= 0:
        rivals = found.parts[one.question]["rival_log_probs"]
        assert isinstance(rivals, list)
        rivals[one.rival] = list(rating.log_probs)
        return
    found.note(one.question, token_ids=list(row.labels), log_probs=list(rating.log_probs))
    if question.protocol == Protocol.TEACHER_FORCED:
        found.note(one.question, predicted=list(rating.argmax_ids))


def _note_target(lm: LanguageModel, index: int, one: Question, found: _Answers) -> None:
    """Note the tokens of an answer that is not fed; texts are compared as words."""
    if one.is_text or not one.target:
        return
    try:
        row = encode(lm, one.prompt, target=one.target, separator=one.separator)
    except CorrigendaError:
        # The prompt alone may still fit, and then the answer is judged by its words.
        return
    found.note(index, token_ids=list(row.target_ids))


def _generate(
    lm: LanguageModel,
    questions: Sequence[Question],
    found: _Answers,
    batch_tokens: int | None,
) -> None:
    fitting = _fitting(lm, questions, found, Protocol.GREEDY)

    # What has been said so far, by question: each turn lengthens it.
    said = {index: questions[index].prompt for index in fitting}

    def continued(several: list[int]) -> list[Continuation]:
        own = [questions[index] for index in several]
        return continuations(
            lm,
            [said[index] for index in several],
            max_new_tokens=[one.max_new_tokens for one in own],
            finished=lambda at, text: (
                not own[at].is_text and _has_line(_behind(text, own[at].marker))
            ),
            batch_tokens=batch_tokens,
        )

    turn = 0
    while fitting:
        given = _each(fitting, continued, found)
        for index, (text, ids) in given:
            one = questions[index]
            answer = text if one.is_text else _line(_behind(text, one.marker) or "")
            new = lm.tokenizer(text, add_special_tokens=False).input_ids if ids is None else ids
            found.note(index, answer=answer, predicted=list(new))
            if turn < len(one.turns):
                said[index] += f"{answer.rstrip()}\n{one.turns[turn]}"
        fitting = [index for index, _ in given if turn < len(questions[index].turns)]
        turn += 1


def _sample(
    lm: LanguageModel, questions: Sequence[Question], found: _Answers, batch_tokens: int | None
) -> None:
    """Note sampled texts, as long as those of the published programs."""

    def continue_all(several: list[int]) -> list[Continuation]:
        return sample_to_length(
            lm,
            [questions[index].prompt for index in several],
            **SAMPLED,
            batch_tokens=batch_tokens,
        )

    fitting = _fitting(lm, questions, found, Protocol.SAMPLED)
    for index, (text, ids) in _each(fitting, continue_all, found) if fitting else ():
        new = lm.tokenizer(text, add_special_tokens=False).input_ids if ids is None else ids
        found.note(index, answer=text, predicted=list(new))


def _each(
    members: list[int], ask_all: Callable[[list[int]], list[Continuation]], found: _Answers
) -> list[tuple[int, Continuation]]:
    """Ask together; where a prompt cannot be asked as it was rewritten, one by one."""
    try:
        return list(zip(members, ask_all(members), strict=True))
    except CorrigendaError as error:
        if len(members) == 1:
            found.note(members[0], skipped=coded(error))
            return []
    return [pair for index in members for pair in _each([index], ask_all, found)]


def _fitting(
    lm: LanguageModel, questions: Sequence[Question], found: _Answers, protocol: Protocol
) -> list[int]:
    """Places of the questions of a protocol whose prompts can be asked."""
    return [
        index
        for index, one in enumerate(questions)
        if one.protocol == protocol and not found.fails(index) and _fits(lm, one, index, found)
    ]


def _fits(lm: LanguageModel, one: Question, index: int, found: _Answers) -> bool:
    """Whether the prompt can be asked; notes why it cannot."""
    try:
        encode(lm, one.prompt)
    except CorrigendaError as error:
        found.note(index, skipped=coded(error))
        return False
    return True


def _behind(text: str, marker: str) -> str | None:
    """What stands behind the first marker; None as long as it has not come."""
    if not marker:
        return text
    _, found, rest = text.partition(marker)
    return rest if found else None


def _has_line(text: str | None) -> bool:
    """Whether a line with something in it has ended."""
    return text is not None and "\n" in text.lstrip()


def _line(text: str) -> str:
    """The first line with something in it, and the white space before it."""
    shown = text.lstrip()
    return text[: len(text) - len(shown)] + shown.partition("\n")[0]
