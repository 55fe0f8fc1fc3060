"""Which tokens are the subject, the end of the prompt and the target, by character offsets.

The final string is built first and tokenised as a whole, and positions follow from the characters
each token covers. That holds for byte-level BPE and SentencePiece-style tokenizers alike, with and
without a BOS token. Text is only ever concatenated, so braces in it mean nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, NamedTuple, Protocol, cast

from corrigenda.errors import EmptyTarget, NotAModel, PromptTooLong, SlowTokenizer, SubjectNotFound
from corrigenda.facts import Fact, Span
from corrigenda.lm.chat import chat_form, word_turn

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class HasTokenizer(Protocol):
    """A model with its tokenizer and the length of its context."""

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """A fast tokenizer."""
        ...

    @property
    def context_length(self) -> int:
        """Most tokens in a row."""
        ...


TurnLabels = Literal["answer", "subject", "target"]
"""Which tokens of an answer in the chat form are labels."""

# Text put before a continuation so that no tokenizer treats it as the start of a text; one of them
# never merges with it.
_ANCHORS = ("\n", "a", "1")


class Encoded(NamedTuple):
    """Token ids of `prefix + prompt + separator + target`, and where its parts lie.

    Positions count from the first token of the unpadded sequence, so they hold under right padding;
    under left padding add `shift`.

    Attributes:
        ids: Token ids, with the tokenizer's BOS where it puts one.
        prompt_last: Position of the last token of the prompt; label `j` is read from the logits at
            `prompt_last + j`.
        subject_last: Position of the token that covers the subject's last character; None without
            subject.
        subject_first: Position of the token that covers the subject's first character; None without
            subject.
        labels: Positions of the target's tokens; empty without target. After `drop_last_target` its
            last position lies one beyond `ids`.
        text: The string that `ids` encode.
        glued: Whether the subject's last token also covers characters after the subject.
        target_ids: Ids at `labels`, all of them also after `drop_last_target`.
    """

    ids: list[int]
    prompt_last: int
    subject_last: int | None
    subject_first: int | None
    labels: range
    text: str
    glued: bool
    target_ids: tuple[int, ...]

    @property
    def subject_at_start(self) -> bool:
        """Whether the subject's last token is the very first of the sequence.

        That happens with a one-token subject and a tokenizer without BOS. Activations at the first
        position are an outlier (an attention sink), so a key read there is unlike every key read
        after a prefix.
        """
        return self.subject_last == 0

    @property
    def reads(self) -> range:
        """Positions whose next-token distributions predict `target_ids`, one for each."""
        return range(self.prompt_last, self.prompt_last + len(self.labels))

    def shift(self, width: int) -> int:
        """Number of pads in front when the sequence is padded on the left to `width` tokens."""
        return width - len(self.ids)


class _Piece(NamedTuple):
    """A token and the characters it covers."""

    id: int
    start: int
    end: int
    added: bool  # put there by the tokenizer (BOS), covers no text


def encode(
    lm: HasTokenizer | PreTrainedTokenizerBase,
    prompt: str,
    *,
    target: str = "",
    subject: Span | None = None,
    prefix: str = "",
    suffix: str = "",
    separator: str = " ",
    special_tokens: bool = True,
    max_length: int | None = None,
    where: str = "",
) -> Encoded:
    """Tokenise a prompt and its target as one string and locate their parts.

    The label tokens are those that start at or after the end of the prompt; the separator belongs
    to the target. There is one separator between prompt and target: one that ends the prompt or
    begins the target is not doubled, and one that ends a prompt without target is left out too,
    since it belongs to what follows.

    The ids up to `prompt_last` are always those of the prompt asked alone, and `labels` hold the
    whole target. Where a token would reach across the end of the prompt (`separator=""`, or text
    that merges with the target), the target is therefore tokenised as a continuation of the prompt
    instead of together with it.

    An empty prompt means the BOS token, which is put there even by tokenizers that put none.

    Args:
        lm: A model, or a fast tokenizer.
        prompt: Text up to the answer.
        target: The answer, without leading separator; empty to encode the prompt only.
        subject: Characters of the subject within `prompt`.
        prefix: Context before the prompt, concatenated exactly.
        suffix: Text after the prompt that is no part of the answer, concatenated exactly.
        separator: Text between prompt and target; empty for languages written without spaces.
        special_tokens: Whether the tokenizer puts its special tokens around the text; not where the
            text holds them itself, as that of a chat template does.
        max_length: Most tokens allowed for prompt and target; by default the context of the model,
            and unbounded for a tokenizer.
        where: How messages refer to the fact.

    Raises:
        SubjectNotFound (CG103): `subject` is empty or lies outside the prompt.
        PromptTooLong (CG105): prompt and target have more than `max_length` tokens.
        EmptyTarget (CG102): the prompt has no tokens and the tokenizer knows no BOS.
        SlowTokenizer (CG305): the tokenizer gives no character offsets.

    Reference: ROME (Meng et al. 2022), section 3.1: keys are read at the subject's last token. The
    authors' code finds it by counting the tokens of a template that is tokenised in parts.
    """
    tokenizer, context = _resolve(lm)
    if separator:
        prompt = prompt if suffix else _without_tail(prompt, separator)
        target = target.removeprefix(separator)
    asked = prefix + prompt + suffix
    text = asked + separator + target if target else asked
    end = len(asked)
    pieces = _tokenise(tokenizer, asked, plain=not special_tokens)
    first_label = len(pieces)
    if target:
        joint = _tokenise(tokenizer, text, plain=not special_tokens)
        if [piece.id for piece in joint[:first_label]] == [piece.id for piece in pieces]:
            pieces = joint
        else:
            pieces += _continuation(tokenizer, text[end:], end)
    if first_label == 0:
        pieces.insert(0, _bos(tokenizer, where))
        first_label = 1
    limit = context if max_length is None else max_length
    if limit is not None and len(pieces) > limit:
        raise PromptTooLong(
            f'"{excerpt(text)}" has {len(pieces)} tokens; at most {limit} fit.',
            where=where,
            hint="Shorten the prompt or its context.",
        )
    ids = [piece.id for piece in pieces]
    _require_embedded(lm, ids, where)
    first, last, glued = None, None, False
    if subject is not None:
        first, last, glued = _subject(pieces, prompt, subject, len(prefix), where)
    return Encoded(
        ids=ids,
        prompt_last=first_label - 1,
        subject_last=last,
        subject_first=first,
        labels=range(first_label, len(ids)),
        text=text,
        glued=glued,
        target_ids=tuple(ids[first_label:]),
    )


def encode_turn(
    lm: HasTokenizer | PreTrainedTokenizerBase,
    prompt: str,
    *,
    target: str = "",
    subject: Span | None = None,
    prefix: str = "",
    separator: str = " ",
    labels: TurnLabels = "target",
    max_length: int | None = None,
    where: str = "",
) -> Encoded:
    """Tokenise a prompt as a user's turn of the chat template, the target as the answer to it.

    The prompt is worded by `chat.word_turn`. A cloze is answered as chat models do, in a sentence:
    the answer restates the prompt and goes on with the target. Special tokens are those of the
    template alone.

    Args:
        lm: A model, or a fast tokenizer.
        prompt: What the user asks.
        target: The answer, or how the sentence goes on.
        subject: Characters of the subject within `prompt`.
        prefix: Context before the prompt, within the user's turn.
        separator: Text between a restated prompt and the target.
        labels: Which tokens of the answer to a cloze are labels: all of the sentence ("answer"),
            those from its subject on ("subject"), or the target's.
        max_length: As in `encode`.
        where: How messages refer to the fact.

    Raises:
        BadConfig (CG502): the tokenizer has no chat template.
        SubjectNotFound (CG103), PromptTooLong (CG105), SlowTokenizer (CG305): as `encode`.
    """
    form, wording = chat_form(_resolve(lm)[0]), word_turn(prompt)

    def answer(text: str) -> Encoded:
        return encode(
            lm,
            prompt,
            target=text,
            subject=subject,
            prefix=f"{form.before}{prefix}{wording.lead}",
            suffix=f"{wording.tail}{form.after}",
            separator=form.separator,
            special_tokens=False,
            max_length=max_length,
            where=where,
        )

    if not wording.tail or not target:
        return answer(target)
    whole = answer(f"{prompt}{separator}{target}")
    start = subject.start if labels == "subject" and subject else len(prompt)
    if labels == "answer" or not start:
        return whole
    told = answer(prompt[:start].rstrip())
    first = len(told.ids)
    # Where the text before the labels merges with them, all of the answer is a label.
    if whole.ids[:first] != told.ids:
        return whole
    ids = tuple(whole.ids[first:])
    return whole._replace(
        prompt_last=first - 1, labels=range(first, len(whole.ids)), target_ids=ids
    )


def encode_fact(
    lm: HasTokenizer | PreTrainedTokenizerBase,
    fact: Fact,
    *,
    prefix: str = "",
    drop_last_target: bool = False,
    max_length: int | None = None,
) -> Encoded:
    """Tokenise a fact with its target and locate its subject (if it names one).

    A fact with `chat` is put into the chat template, see `encode_turn`.

    Args:
        lm: A model, or a fast tokenizer.
        fact: The fact.
        prefix: Context before the prompt, concatenated exactly; within the user's turn.
        drop_last_target: Leave the last target token out of `ids`: nothing is predicted from it.
        max_length: As in `encode`.

    Raises:
        SubjectNotFound (CG103), PromptTooLong (CG105), SlowTokenizer (CG305): as `encode`.
        BadConfig (CG502): a fact with `chat`, and no chat template.
    """
    subject = None if fact.subject is None else fact.span
    if fact.chat:
        encoded = encode_turn(
            lm,
            fact.prompt,
            target=fact.target,
            subject=subject,
            prefix=prefix,
            separator=fact.separator,
            labels="answer",
            max_length=max_length,
            where=fact.label,
        )
    else:
        encoded = encode(
            lm,
            fact.prompt,
            target=fact.target,
            subject=subject,
            prefix=prefix,
            separator=fact.separator,
            max_length=max_length,
            where=fact.label,
        )
    return encoded._replace(ids=encoded.ids[:-1]) if drop_last_target else encoded


def excerpt(text: str, limit: int = 60) -> str:
    """Shorten a text for a message."""
    return text if len(text) <= limit else f"{text[: limit - 3]}..."


def _require_embedded(
    lm: object,
    ids: list[int],
    where: str,
) -> None:
    """Refuse tokens for which a model has no embedding."""
    # Some tokenizers have a `model` too, which is the algorithm of their splitting.
    model = getattr(lm, "model", None) if hasattr(lm, "tokenizer") else None
    if model is None:
        return
    rows = model.get_input_embeddings().weight.shape[0]
    if max(ids) >= rows:
        tokenizer = cast("PreTrainedTokenizerBase", getattr(lm, "tokenizer", None))
        text = tokenizer.convert_ids_to_tokens(max(ids))
        raise NotAModel(
            f'the token "{text}" has the id {max(ids)}, but the model embeds {rows} tokens.',
            where=where,
            hint="Give the model its own tokenizer; after adding tokens, call "
            "model.resize_token_embeddings(len(tokenizer)).",
        )


def _resolve(
    lm: HasTokenizer | PreTrainedTokenizerBase,
) -> tuple[PreTrainedTokenizerBase, int | None]:
    tokenizer = cast("PreTrainedTokenizerBase", getattr(lm, "tokenizer", lm))
    if not tokenizer.is_fast:
        raise SlowTokenizer(
            f"{type(tokenizer).__name__} gives no character offsets.",
            hint="Load the tokenizer with AutoTokenizer.from_pretrained(..., use_fast=True).",
        )
    context: int | None = getattr(lm, "context_length", None)
    return tokenizer, context


def _without_tail(prompt: str, separator: str) -> str:
    return prompt if prompt == separator else prompt.removesuffix(separator)


def _tokenise(
    tokenizer: PreTrainedTokenizerBase, text: str, *, plain: bool = False
) -> list[_Piece]:
    """Tokenise with offsets; `plain` adds no BOS, and an EOS after text is always left out."""
    output = tokenizer(
        text,
        add_special_tokens=not plain,
        return_offsets_mapping=True,
        return_special_tokens_mask=True,
        padding=False,
        truncation=False,
        verbose=False,
    )
    pieces = [
        _Piece(token, start, end, added and start == end)
        for token, (start, end), added in zip(
            output["input_ids"],
            output["offset_mapping"],
            map(bool, output["special_tokens_mask"]),
            strict=True,
        )
    ]
    while len(pieces) > 1 and pieces[-1].added:
        pieces.pop()
    return pieces


def _continuation(tokenizer: PreTrainedTokenizerBase, text: str, start: int) -> list[_Piece]:
    """Tokenise text that follows `start` other characters, without merging the two."""
    for anchor in _ANCHORS:
        pieces = _tokenise(tokenizer, anchor + text, plain=True)
        width = len(anchor)
        if not any(piece.start < width < piece.end for piece in pieces):
            move = start - width
            return [
                piece._replace(start=piece.start + move, end=piece.end + move)
                for piece in pieces
                if piece.start >= width
            ]
    raise AssertionError(f"every anchor merges with {text!r}")


def _bos(tokenizer: PreTrainedTokenizerBase, where: str) -> _Piece:
    bos: int | None = getattr(tokenizer, "bos_token_id", None)
    if bos is None:
        raise EmptyTarget(
            "the prompt is empty, and the tokenizer has no BOS token to take its place.",
            where=where,
            hint="Give the text up to the answer.",
        )
    return _Piece(bos, 0, 0, True)


def _subject(
    pieces: list[_Piece], prompt: str, subject: Span, offset: int, where: str
) -> tuple[int, int, bool]:
    """Return first and last token of the subject, and whether the last reaches beyond it."""
    if not 0 <= subject.start < subject.end <= len(prompt):
        raise SubjectNotFound(
            f'characters {subject.start} to {subject.end} are not within the prompt "{prompt}".',
            where=where,
            hint="A subject must be part of the prompt, without the space after it.",
        )
    start, end = subject.start + offset, subject.end + offset
    covering = [at for at, piece in enumerate(pieces) if piece.start < end and piece.end > start]
    if not covering:
        raise SubjectNotFound(
            f'the tokenizer gives no token for "{prompt[subject.start : subject.end]}".',
            where=where,
            hint="The tokenizer drops its characters; choose a subject with visible text.",
        )
    return covering[0], covering[-1], pieces[covering[-1]].end > end
