"""Answers of a model to many prompts at once: log-probabilities, greedy and sampled text.

Prompts are sorted by length and run in batches of nearly equal length; results come back in the
order asked. They depend on the batch, its order and its padding by no more than float noise, which
can matter only where two tokens are equally likely. Nothing is read from the model's generation
configuration but its end-of-sequence tokens.

Edits that rewrite prompts or answer in the model's place (`corrigenda.lm.interception`) are obeyed
by all functions; where tokens are rated (`score`, `next_token_top`), there is no answer to replace,
and only rewriting counts.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from jaxtyping import Float
from torch import Tensor

from corrigenda.errors import EmptyTarget, PromptTooLong
from corrigenda.lm.chat import write_turns
from corrigenda.lm.interception import answer_directly, ask_rewritten
from corrigenda.lm.kv_cache import (
    Continuation,
    Decoder,
    Finished,
    batches,
    continue_rows,
    pad_id,
)
from corrigenda.lm.model import LanguageModel
from corrigenda.lm.scoring import Fed, logits_in_parts, rate, states_at
from corrigenda.lm.sites import Tokens
from corrigenda.lm.spans import encode, excerpt
from corrigenda.short_answers import begins

# A full stop that ends a sentence: not after an initial ("J. K.", "D.C.") nor after a common
# abbreviation.
_SENTENCE_END = re.compile(
    r"(?<!\b[A-Z])(?<!\b(?:St|Mr|Dr|Ms|Mt|Jr|Co))(?<!\b(?:Mrs|Inc|Ltd))[.!?](?=\s)"
)


@dataclass(frozen=True)
class Score:
    """Log-probabilities of one target after one prompt, with the target fed in (teacher forcing).

    Attributes:
        ids: Token ids of the target; the separating space belongs to it.
        log_probs: Natural log-probability of each target token, given the prompt and the target
            tokens before it.
        argmax_ids: Most likely token at each place; the lowest id where several are equally likely.
    """

    ids: tuple[int, ...]
    log_probs: tuple[float, ...]
    argmax_ids: tuple[int, ...]

    @property
    def correct(self) -> list[bool]:
        """Token by token, whether the most likely token is the target's."""
        return [ours == theirs for ours, theirs in zip(self.ids, self.argmax_ids, strict=True)]

    @property
    def total(self) -> float:
        """Log-probability of the whole target: the sum over its tokens."""
        return sum(self.log_probs)

    @property
    def mean(self) -> float:
        """Log-probability per token of the target."""
        return self.total / len(self.log_probs)


class Candidate(NamedTuple):
    """Possible next token with its probability.

    Attributes:
        text: What the token adds to the prompt, with its leading space.
        probability: In [0, 1].
        id: Token id.
    """

    text: str
    probability: float
    id: int


def score(
    lm: LanguageModel, pairs: Sequence[tuple[str, str]], *, batch_tokens: int | None = None
) -> list[Score]:
    """Rate a target after each prompt.

    Where every token is `correct`, greedy generation from the prompt gives exactly the target. The
    vocabulary projection runs only where a label is read; log-softmax is taken in float32, in
    float64 for a float64 model.

    Args:
        lm: The model.
        pairs: Prompts, each with its target (joined as `spans.encode` says).
        batch_tokens: Most tokens in one batch, padding included; None takes what suits the device.

    Raises:
        PromptTooLong (CG105): a prompt and its target exceed the context.
        EmptyTarget (CG102): a target or prompt is empty.

    See also: `greedy`, for the answer that the model generates.
    """

    def ask(lm: LanguageModel, places: list[int], prompts: list[str]) -> list[Score]:
        targets = [pairs[place][1] for place in places]
        return _score(lm, list(zip(prompts, targets, strict=True)), batch_tokens)

    return ask_rewritten(lm, [prompt for prompt, _ in pairs], ask)


def _score(
    lm: LanguageModel, pairs: Sequence[tuple[str, str]], batch_tokens: int | None
) -> list[Score]:
    rows = [encode(lm, prompt, target=target) for prompt, target in pairs]
    for row in rows:
        if not row.labels:
            raise EmptyTarget(
                f'the target of "{row.text}" is empty.', hint="Give the answer to rate."
            )
    fed = [Fed(row.ids[:-1], row.reads, row.target_ids) for row in rows]
    rated = rate(lm, fed, share=False, batch_tokens=batch_tokens)
    return [
        Score(row.target_ids, rating.log_probs, rating.argmax_ids)
        for row, rating in zip(rows, rated, strict=True)
    ]


def gives(lm: LanguageModel, pairs: Sequence[tuple[str, str]]) -> list[bool]:
    """Tell for each prompt whether greedy generation begins with its target, token by token.

    Where an edit answers in the model's place, the words of the answer count.

    Raises:
        PromptTooLong (CG105), EmptyTarget (CG102): as `score`.
    """
    replies = answer_directly(lm, [prompt for prompt, _ in pairs])
    left = [pair for pair, reply in zip(pairs, replies, strict=True) if reply is None]
    rated = iter(score(lm, left))
    return [
        all(next(rated).correct) if reply is None else begins(reply, target)
        for (_, target), reply in zip(pairs, replies, strict=True)
    ]


def says(lm: LanguageModel, prompt: str, targets: Sequence[str]) -> bool:
    """Tell whether greedy generation from a prompt begins with one of the targets; see `gives`."""
    return any(gives(lm, [(prompt, target) for target in targets]))


def next_token_top(
    lm: LanguageModel, prompts: Sequence[str], k: int = 5, *, batch_tokens: int | None = None
) -> list[list[Candidate]]:
    """List the `k` most likely next tokens of each prompt, most likely first.

    Raises:
        PromptTooLong (CG105): a prompt exceeds the context.
    """

    def ask(lm: LanguageModel, _: list[int], prompts: list[str]) -> list[list[Candidate]]:
        return _next_token_top(lm, prompts, k, batch_tokens)

    return ask_rewritten(lm, prompts, ask)


def _next_token_top(
    lm: LanguageModel, prompts: Sequence[str], k: int, batch_tokens: int | None
) -> list[list[Candidate]]:
    rows = encode_prompts(lm, prompts, chat=False)
    decode = Decoder(lm)
    found: dict[int, list[Candidate]] = {}
    for batch in batches(lm, [len(row) for row in rows], batch_tokens):
        last = [range(len(rows[i]) - 1, len(rows[i])) for i in batch]
        tokens = Tokens.pad([rows[i] for i in batch], pad_id(lm)).to(lm.device)
        for part, logits in logits_in_parts(lm, states_at(lm, tokens, last)):
            top = logits.softmax(1).topk(min(k, logits.shape[1]), dim=1)
            for i, probabilities, ids in zip(
                batch[part], top.values.tolist(), top.indices.tolist(), strict=True
            ):
                found[i] = [
                    Candidate(decode(rows[i], [token]), probability, token)
                    for probability, token in zip(probabilities, ids, strict=True)
                ]
    return [found[i] for i in range(len(rows))]


def greedy(
    lm: LanguageModel,
    prompts: Sequence[str],
    *,
    max_new_tokens: int = 16,
    stop: Sequence[str] = ("\n",),
    chat: bool = False,
    batch_tokens: int | None = None,
) -> list[str]:
    """Continue each prompt with the most likely token, again and again.

    Returns only what is added, decoded and otherwise untouched: it usually begins with a space. A
    row ends before its first stop string, at an end-of-sequence token, after `max_new_tokens`, or
    where the context is full.

    Args:
        lm: The model.
        prompts: Texts to continue; an empty one means the BOS token.
        max_new_tokens: Longest continuation.
        stop: Strings that end a continuation and are not part of it.
        chat: Put each prompt as a user's turn into the model's chat template.
        batch_tokens: Most tokens in one batch, padding and continuation included; None takes what
            suits the device.

    Raises:
        PromptTooLong (CG105): a prompt exceeds the context.
        BadConfig (CG502): `chat` with a tokenizer that has no chat template.

    See also: `answer`, for the first sentence only; `score`, for the probability of a given target.
    """

    def finished(text: str) -> bool:
        return any(end in text for end in stop)

    texts = _continue_texts(lm, prompts, max_new_tokens, finished, chat, batch_tokens)
    return [
        text[: min([text.find(end) for end in stop if end in text], default=None)] for text in texts
    ]


def answer(
    lm: LanguageModel,
    prompts: Sequence[str],
    *,
    max_new_tokens: int = 16,
    chat: bool = False,
    batch_tokens: int | None = None,
) -> list[str]:
    """Return the first sentence of each greedy continuation, without its closing full stop.

    A sentence ends at a line break, or at `.`, `!` or `?` before a space, unless it follows an
    initial or an abbreviation such as "St". Arguments and errors are those of `greedy`.
    """

    def finished(text: str) -> bool:
        return _first_sentence(text) is not None

    texts = _continue_texts(lm, prompts, max_new_tokens, finished, chat, batch_tokens)
    return [_cut_answer(text) for text in texts]


def answer_and_line(
    lm: LanguageModel,
    prompts: Sequence[str],
    *,
    max_new_tokens: int = 16,
    chat: bool = False,
    batch_tokens: int | None = None,
) -> list[tuple[str, str]]:
    """Return what `answer` and `greedy` return, each prompt continued once.

    Arguments and errors are those of `greedy`.
    """

    def finished(text: str) -> bool:
        return "\n" in text and _first_sentence(text) is not None

    texts = _continue_texts(lm, prompts, max_new_tokens, finished, chat, batch_tokens)
    return [(_cut_answer(text), text.partition("\n")[0]) for text in texts]


def continuations(
    lm: LanguageModel,
    prompts: Sequence[str],
    *,
    max_new_tokens: int | Sequence[int],
    finished: Finished,
    chat: bool = False,
    system: str = "",
    batch_tokens: int | None = None,
) -> list[Continuation]:
    """Continue each prompt with the most likely token until its text is finished, uncut.

    Args:
        lm: The model.
        prompts: Texts to continue; an empty one means the BOS token.
        max_new_tokens: Longest continuation; of all, or one number for each prompt.
        finished: Whether a prompt, by its index, has been answered by this added text; it ends
            earlier at an end-of-sequence token or a full context.
        chat: As for `greedy`.
        system: System message of the chat template; empty leaves it to the template.
        batch_tokens: As for `greedy`.

    Raises:
        PromptTooLong (CG105), BadConfig (CG502): as `greedy`.
    """
    several = isinstance(max_new_tokens, Sequence)
    longest = list(max_new_tokens) if several else [max_new_tokens] * len(prompts)

    def ask(lm: LanguageModel, places: list[int], prompts: list[str]) -> list[Continuation]:
        return continue_rows(
            lm,
            encode_prompts(lm, prompts, chat=chat, system=system),
            max_new_tokens=[longest[place] for place in places],
            choose=_choose_most_likely,
            finished=lambda row, text: finished(places[row], text),
            batch_tokens=batch_tokens,
        )

    return continue_or_answer(lm, prompts, ask)


def continue_or_answer(
    lm: LanguageModel,
    prompts: Sequence[str],
    ask: Callable[[LanguageModel, list[int], list[str]], Sequence[Continuation]],
) -> list[Continuation]:
    """Return answers of edits as continuations; the model continues where there is none."""
    answers = answer_directly(lm, prompts)
    left = [index for index, text in enumerate(answers) if text is None]

    def ask_left(
        lm: LanguageModel, places: list[int], prompts: list[str]
    ) -> Sequence[Continuation]:
        return ask(lm, [left[place] for place in places], prompts)

    generated = iter(ask_rewritten(lm, [prompts[index] for index in left], ask_left))
    return [
        next(generated) if text is None else Continuation(f" {text}\n", None) for text in answers
    ]


def _continue_texts(
    lm: LanguageModel,
    prompts: Sequence[str],
    max_new_tokens: int,
    finished: Callable[[str], bool],
    chat: bool,
    batch_tokens: int | None,
) -> list[str]:
    found = continuations(
        lm,
        prompts,
        max_new_tokens=max_new_tokens,
        finished=lambda _, text: finished(text),
        chat=chat,
        batch_tokens=batch_tokens,
    )
    return [one.text for one in found]


def _cut_answer(text: str) -> str:
    """Return the first sentence of a continuation, all of it where none ends."""
    return _first_sentence(text + "\n") or text.strip()


def _first_sentence(text: str) -> str | None:
    """Return the first sentence of a text, None as long as it may continue."""
    text = text.lstrip()
    line, newline, _ = text.partition("\n")
    end = _SENTENCE_END.search(line + newline, 1)
    if end is None and not newline:
        return None
    return line[: end.start() if end else None].strip()


def encode_prompts(
    lm: LanguageModel, prompts: Sequence[str], *, chat: bool, system: str = ""
) -> list[list[int]]:
    """Return the token ids of prompts, in the chat template where `chat`.

    A system message goes before each prompt there; without one the template decides.

    Raises:
        PromptTooLong (CG105): a prompt exceeds the context.
        BadConfig (CG502): the model has no chat template.
    """
    if not chat:
        return [encode(lm, prompt).ids for prompt in prompts]
    told = [{"role": "system", "content": system}] if system else []
    return [encode_chat(lm, [*told, {"role": "user", "content": prompt}]) for prompt in prompts]


def encode_chat(lm: LanguageModel, messages: Sequence[Mapping[str, str]]) -> list[int]:
    """Return the token ids of a conversation in the chat template, up to the model's next turn.

    Args:
        lm: The model.
        messages: Turns, each with `role` and `content`.

    Raises:
        BadConfig (CG502): the model has no chat template, or the template refuses the turns.
        PromptTooLong (CG105): the conversation exceeds the context.
    """
    text = write_turns(lm.tokenizer, messages)
    ids: list[int] = lm.tokenizer(text, add_special_tokens=False, verbose=False).input_ids
    if len(ids) > lm.context_length:
        raise PromptTooLong(
            f'"{excerpt(messages[-1]["content"])}" has {len(ids)} tokens in the chat template; at '
            f"most {lm.context_length} fit.",
            hint="Shorten the prompt.",
        )
    return ids


def _choose_most_likely(logits: Float[Tensor, "batch vocab"], _: Sequence[int]) -> list[int]:
    return logits.argmax(1).tolist()
