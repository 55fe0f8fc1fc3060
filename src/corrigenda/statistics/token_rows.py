"""Text as rows of token ids, on disk, with a hash of the ids."""

from __future__ import annotations

import hashlib
import tempfile
from array import array
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice

import numpy as np
from transformers import PreTrainedTokenizerBase

from corrigenda.errors import EmptyCorpus
from corrigenda.progress import Progress

_DOCUMENTS_AT_ONCE = 256
_LONGEST_PIECE = 100_000
_CHARACTERS_PER_TOKEN = 64


class TokenRows:
    """Rows of token ids in a temporary file that is removed with the object.

    Attributes:
        lengths: Number of tokens of each row.
        digest: Hash of all rows in order.
    """

    def __init__(self, rows: Iterable[Sequence[int]], *, num_tokens: int) -> None:
        """Store rows until they hold `num_tokens` tokens; the last one is cut to fit."""
        self._file = tempfile.TemporaryFile()  # noqa: SIM115 - lives as long as the rows
        self.lengths = array("q")
        digest = hashlib.sha256()
        left = num_tokens
        for row in rows:
            ids = np.asarray(row[:left], dtype=np.int32)
            content = ids.tobytes()
            digest.update(len(ids).to_bytes(8, "little") + content)
            self._file.write(content)
            self.lengths.append(len(ids))
            left -= len(ids)
            if left <= 0:
                break
        self._file.flush()
        self.digest = digest.hexdigest()
        self._starts = np.concatenate([[0], np.cumsum(self.lengths)]).astype(np.int64)
        self._ids = np.memmap(self._file, dtype=np.int32, mode="r") if self.num_tokens else None

    def __del__(self) -> None:
        """Close the temporary file."""
        self._file.close()

    def __len__(self) -> int:
        return len(self.lengths)

    @property
    def num_tokens(self) -> int:
        """Tokens of all rows together."""
        return int(self._starts[-1])

    def __getitem__(self, index: int) -> list[int]:
        assert self._ids is not None
        return self._ids[self._starts[index] : self._starts[index + 1]].tolist()

    def batches(self, tokens: int) -> list[list[int]]:
        """Return indices of rows of nearly equal length, at most `tokens` a batch with padding.

        Rows of one length keep their order, so that the batches depend on nothing but the rows.
        """
        order = sorted(range(len(self)), key=self.lengths.__getitem__)
        batches: list[list[int]] = []
        for index in order:
            if not batches or self.lengths[index] * (len(batches[-1]) + 1) > tokens:
                batches.append([])
            batches[-1].append(index)
        return batches


def tokenise(
    tokenizer: PreTrainedTokenizerBase,
    texts: Iterable[str],
    *,
    length: int,
    pack: bool,
    num_tokens: int,
    progress: Progress | None = None,
) -> TokenRows:
    """Turn texts into rows of at most `length` tokens, stopping after `num_tokens`.

    One document a row: as the tokenizer encodes it, its special tokens included, cut at `length`.
    Packed: documents follow each other, separated by the end-of-text token if there is one, and are
    cut into rows of `length`, each after the token that the tokenizer puts before every text, if
    any.

    Raises:
        EmptyCorpus (CG602): the texts hold no tokens.
    """
    made = _pack(tokenizer, texts, length) if pack else _encode_singly(tokenizer, texts, length)
    rows = TokenRows(_report_progress(made, num_tokens, progress), num_tokens=num_tokens)
    if not rows.num_tokens:
        raise EmptyCorpus(
            "the text for statistics holds no tokens.",
            hint="Give a file or texts that are not empty.",
        )
    return rows


def _encode_singly(
    tokenizer: PreTrainedTokenizerBase, texts: Iterable[str], length: int
) -> Iterator[list[int]]:
    cut = (text[: _CHARACTERS_PER_TOKEN * length] for text in texts)
    for ids in _encode_batches(tokenizer, cut, special=True):
        if ids:
            yield ids[:length]


def _pack(
    tokenizer: PreTrainedTokenizerBase, texts: Iterable[str], length: int
) -> Iterator[list[int]]:
    first = tokenizer("a").input_ids[:1]
    prefix = first if first == [tokenizer.bos_token_id] and length > 1 else []
    end = [tokenizer.eos_token_id] if isinstance(tokenizer.eos_token_id, int) else []
    row: list[int] = []
    room = length - len(prefix)
    for ids in _encode_batches(tokenizer, _split(texts), special=False):
        row += [*ids, *end]
        while len(row) >= room:
            yield prefix + row[:room]
            row = row[room:]
    if row:
        yield prefix + row


def _split(texts: Iterable[str]) -> Iterator[str]:
    for text in texts:
        for start in range(0, len(text), _LONGEST_PIECE):
            yield text[start : start + _LONGEST_PIECE]


def _encode_batches(
    tokenizer: PreTrainedTokenizerBase, texts: Iterable[str], *, special: bool
) -> Iterator[list[int]]:
    stream = iter(texts)
    while batch := list(islice(stream, _DOCUMENTS_AT_ONCE)):
        yield from tokenizer(batch, add_special_tokens=special, verbose=False).input_ids


def _report_progress(
    rows: Iterable[list[int]], num_tokens: int, progress: Progress | None
) -> Iterator[list[int]]:
    done = 0
    for number, row in enumerate(rows):
        done += len(row)
        if progress is not None and number % _DOCUMENTS_AT_ONCE == 0:
            progress("reading text", min(done, num_tokens), num_tokens)
        yield row
    # A text that ends early is read completely.
    if progress is not None and 0 < done < num_tokens:
        progress("reading text", done, done)
