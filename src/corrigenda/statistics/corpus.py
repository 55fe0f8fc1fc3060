"""Text for statistics: given, shipped with the package, or written by the model itself."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from corrigenda.errors import BadConfig, EmptyCorpus, MissingExtra
from corrigenda.lm.model import LanguageModel
from corrigenda.lm.model_names import SHIPPED
from corrigenda.lm.sampling import sample
from corrigenda.progress import Progress
from corrigenda.statistics import cache
from corrigenda.text_files import UnreadableText, check_plain_file, parse_json

Source = str | Path | Iterable[str | Path]
"""Text for statistics.

One `str` or `Path` is a file, or `datasets:NAME[:CONFIG[:SPLIT]]`. In an iterable a `str` is a
document and a `Path` again a file. A `.jsonl` file holds one document a line, a JSON string or an
object with `text`; every other file is UTF-8 text with one document a line. `model:` is text that
the model writes itself.
"""

OWN_TEXT = "model:"
"""Source that means text written by the model itself."""

OPENINGS: tuple[str, ...] = (
    "The", "Therefore", "Because", "I", "You", "In", "It", "He", "She", "They", "When", "After",
    "A", "This", "On", "For", "As", "One", "There", "What",
)  # fmt: skip
"""Words that texts written by the model itself begin with."""

_DATASETS = "datasets:"
_DOCUMENTS_TO_TRY = 50
_ENGLISH_CHARACTERS_PER_TOKEN = 2.0
_ALMANAC_NAME = "short English documents about people, places and things"
_OWN_NAME = "text that the model wrote"
_TOP_K = 50
_NEW_TOKENS = 128
_TEXTS_AT_ONCE = 64


@dataclass(frozen=True)
class Corpus:
    """Text with the way it is read.

    Attributes:
        source: See `Source`; None lets `complete_corpus` choose.
        num_tokens: Stop after so many tokens. None: 1,000,000 of a given text, 2 d_in of one that
            `complete_corpus` chose, 10 d_in of the model's own.
        length: Most tokens of a row; None: the model's context, at most 1024.
        pack: Fill rows by joining documents; otherwise each document is its own row, cut at
            `length`.
        include_first_token: Count the key at position 0, which in many models is an outlier of huge
            norm.
        seed: Seed of text that the model writes itself.
        shrinkage: Shrinkage of the moments, in [0, 1]; None: `automatic_shrinkage` of
            `corrigenda.state`. Published methods have 0, which needs two keys a dimension.
        name: How notes refer to the text.
        chosen: Whether it was chosen by default for a model that no text is shipped with.

    Raises:
        BadConfig (CG502): `num_tokens` or `length` below 1, or `shrinkage` outside [0, 1].
    """

    source: Source | None = None
    num_tokens: int | None = None
    length: int | None = None
    pack: bool = True
    include_first_token: bool = True
    seed: int = 0
    shrinkage: float | None = None
    name: str = "the text given"
    chosen: bool = False

    def __post_init__(self) -> None:
        for name in ("num_tokens", "length"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise BadConfig(f"{name} must be at least 1, got {value}.", where="corpus")
        if self.shrinkage is not None and not 0 <= self.shrinkage <= 1:
            raise BadConfig(f"shrinkage must lie in [0, 1], got {self.shrinkage}.", where="corpus")


def complete_corpus(lm: LanguageModel, corpus: Corpus | Source | None) -> Corpus:
    """Wrap a source as a `Corpus`; without a source, choose one.

    That is the corpus of the pocket models, short English documents about people, places and
    things, each its own row: where facts are written, near the start of a text and at the last
    token of a name, keys differ from those of running text. Where the tokenizer is not made for
    English, it is text that the model writes.
    """
    wrapped = corpus if isinstance(corpus, Corpus) else Corpus(corpus)
    if wrapped.source == OWN_TEXT:
        return replace(wrapped, name=_OWN_NAME)
    if wrapped.source is not None:
        return wrapped
    from corrigenda.almanac.corpus import texts

    if lm.name not in SHIPPED and not _reads_english(lm, list(texts(_DOCUMENTS_TO_TRY))):
        return replace(wrapped, source=OWN_TEXT, chosen=True, name=_OWN_NAME)
    chosen = lm.name not in SHIPPED
    return replace(wrapped, source=texts(), pack=False, chosen=chosen, name=_ALMANAC_NAME)


def _reads_english(lm: LanguageModel, texts: Sequence[str]) -> bool:
    """Tell whether a tokenizer is made for English: two characters a token, or more."""
    text = " ".join(texts)
    tokens = len(lm.tokenizer(text, verbose=False).input_ids)
    return len(text) >= _ENGLISH_CHARACTERS_PER_TOKEN * tokens


def read_documents(source: Source) -> Iterator[str]:
    """Stream the documents of a source; blank ones are skipped.

    Raises:
        BadConfig (CG502): a file or data set that cannot be read.
        MissingExtra (CG504): a data set is named and `datasets` is not installed.
    """
    for item in [Path(source)] if isinstance(source, str | Path) else source:
        texts = _read_file(item) if isinstance(item, Path) else (item,)
        yield from (_require_characters(text) for text in texts if text.strip())


def write_own_text(
    lm: LanguageModel, num_tokens: int, *, seed: int, progress: Progress | None, keep: bool
) -> list[str]:
    """Let the model write text, at least `num_tokens` long; cached.

    Each text continues one of `OPENINGS` for at most 128 tokens, drawn among the 50 likeliest.

    Raises:
        EmptyCorpus (CG602): the model ends every text at once.
    """
    settings = {
        "model": lm.recall_digest(), "dtype": str(lm.dtype), "num_tokens": num_tokens, "seed": seed,
        "openings": OPENINGS, "top_k": _TOP_K, "new_tokens": _NEW_TOKENS,
    }  # fmt: skip
    name = f"{cache.hash_settings(settings)}.jsonl"
    cached = cache.read_texts(name) if keep else None
    if cached is not None:
        return cached
    room = min(_NEW_TOKENS, lm.context_length - 8)
    texts: list[str] = []
    done = part = 0
    while done < num_tokens:
        count = min(_TEXTS_AT_ONCE, -(-(num_tokens - done) // room))
        prompts = [OPENINGS[index % len(OPENINGS)] for index in range(count)]
        new = sample(lm, prompts, max_new_tokens=room, top_k=_TOP_K, seed=seed + part)
        new = [prompt + text for prompt, text in zip(prompts, new, strict=True) if text.strip()]
        if not new:
            raise EmptyCorpus(
                f"{lm.name} ends every text at once, so it cannot write text for statistics.",
                hint="Give text: a file, a list of strings, or datasets:NAME.",
            )
        texts += new
        done += sum(len(ids) for ids in lm.tokenizer(new).input_ids)
        part += 1
        if progress is not None:
            progress("writing text", min(done, num_tokens), num_tokens)
    if keep:
        cache.write_texts(name, texts)
    return texts


def _read_file(path: Path) -> Iterator[str]:
    # A data set named on the command line arrives as a path.
    if str(path).startswith(_DATASETS):
        yield from _read_data_set(str(path).removeprefix(_DATASETS))
        return
    try:
        check_plain_file(path)
        with path.open(encoding="utf-8-sig") as file:
            for number, line in enumerate(file, start=1):
                is_json = path.suffix.lower() == ".jsonl" and line.strip()
                yield _parse_line(line, f"{path}:{number}") if is_json else line.rstrip("\r\n")
    except (OSError, UnicodeDecodeError, UnreadableText) as error:
        raise BadConfig(
            f"the text {path} cannot be read: {error}.",
            where="corpus",
            hint="Give a UTF-8 file, datasets:NAME, or a list of strings.",
        ) from error


def _parse_line(line: str, where: str) -> str:
    try:
        record = parse_json(line, strict=False)
    except UnreadableText as error:
        raise BadConfig(f"{error}.", where=where) from error
    text = record.get("text") if isinstance(record, dict) else record
    if not isinstance(text, str):
        raise BadConfig("a line must be a JSON string, or an object with `text`.", where=where)
    return text


def _require_characters(text: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        shown = ascii(text[max(0, error.start - 20) : error.end + 20])
        raise BadConfig(
            f"the text {shown} holds a lone surrogate, which is no character.",
            where="corpus",
            hint="Decode the text with errors='replace'.",
        ) from error
    return text


def _read_data_set(name: str) -> Iterator[str]:
    if importlib.util.find_spec("datasets") is None:
        raise MissingExtra(
            f'the data set "{name}" needs the package datasets.',
            hint="pip install 'corrigenda[corpus]'",
        )
    load_dataset = importlib.import_module("datasets").load_dataset
    path, _, rest = name.partition(":")
    config, _, split = rest.partition(":")
    try:
        rows = load_dataset(path, config or None, split=split or "train", streaming=True)
    except (ValueError, OSError) as error:  # what datasets raises for unknown names and splits
        raise BadConfig(
            f'the data set "{name}" cannot be read: {error}.', where="corpus"
        ) from error
    try:
        for row in rows:
            column = "text" if "text" in row else _find_text_column(row, name)
            yield row[column]
    except OSError as error:  # the connection, or a damaged part
        raise BadConfig(
            f'the data set "{name}" cannot be read further: {error}.', where="corpus"
        ) from error


def _find_text_column(row: dict[str, object], name: str) -> str:
    for column, value in row.items():
        if isinstance(value, str):
            return column
    raise BadConfig(f'the data set "{name}" has no column of text.', where="corpus")
