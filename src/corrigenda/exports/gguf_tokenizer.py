"""A fast tokenizer as the metadata of a GGUF file."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from corrigenda.errors import NotExportable
from corrigenda.lm.model import LanguageModel

if TYPE_CHECKING:
    import gguf

_BLANK = "\u2581"
_UNUSED_SCORE = -1e6


def add_tokenizer(writer: gguf.GGUFWriter, lm: LanguageModel) -> None:
    """Add vocabulary, merges, special tokens and chat template.

    Byte-level BPE becomes the model "gpt2" of GGUF, SentencePiece-style BPE with byte tokens the
    model "llama", whose scores follow the order of the merges.

    Raises:
        NotExportable (CG405): another kind of tokenizer, or one that splits text in a way that
            has no name in llama.cpp.
    """
    tokenizer = lm.tokenizer
    described: dict[str, Any] = json.loads(tokenizer.backend_tokenizer.to_str())
    model = described["model"]
    if model["type"] != "BPE":
        raise _refuse(f"its tokenizer is of the kind {model['type']}", lm)
    names = _list_tokens(lm, model["vocab"], described["added_tokens"])
    types = _list_types(names, described["added_tokens"], model)
    merges = [_split_merge(one) for one in model["merges"]]
    if model.get("byte_fallback"):
        writer.add_tokenizer_model("llama")
        writer.add_token_list(names)
        writer.add_token_scores(_score(names, merges))
        writer.add_token_types(types)
        writer.add_add_space_prefix(_puts_blank(described))
    else:
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre(_name_splitting(described, lm))
        writer.add_token_list(names)
        writer.add_token_types(types)
        writer.add_token_merges([f"{left} {right}" for left, right in merges])
    _add_special(writer, lm)
    if isinstance(tokenizer.chat_template, str):
        writer.add_chat_template(tokenizer.chat_template)


def _refuse(reason: str, lm: LanguageModel) -> NotExportable:
    return NotExportable(
        f"{reason}, for which this writer has no form in GGUF.",
        where=lm.name,
        hint="Give a GGUF file of the unedited model to copy it from: --base MODEL.gguf.",
    )


def _list_tokens(
    lm: LanguageModel, vocabulary: Mapping[str, int], added: Sequence[Mapping[str, Any]]
) -> list[str]:
    """Return a name for every row of the embedding, also for rows that no token has."""
    size = lm.model.get_input_embeddings().get_parameter("weight").shape[0]
    names = [f"[PAD{number}]" for number in range(size)]
    for name, number in vocabulary.items():
        names[number] = name
    for token in added:
        names[token["id"]] = token["content"]
    return names


def _list_types(
    names: Sequence[str], added: Sequence[Mapping[str, Any]], model: Mapping[str, Any]
) -> list[int]:
    import gguf

    kinds = gguf.TokenType
    known = set(model["vocab"]) | {token["content"] for token in added}
    special = {token["content"]: token["special"] for token in added}
    types: list[int] = []
    for name in names:
        if name not in known:
            types.append(kinds.UNUSED)
        elif name == model.get("unk_token"):
            types.append(kinds.UNKNOWN)
        elif name in special:
            types.append(kinds.CONTROL if special[name] else kinds.USER_DEFINED)
        elif model.get("byte_fallback") and len(name) == 6 and name.startswith("<0x"):
            types.append(kinds.BYTE)
        else:
            types.append(kinds.NORMAL)
    return types


def _split_merge(merge: str | Sequence[str]) -> tuple[str, str]:
    left, right = merge.split(" ") if isinstance(merge, str) else merge
    return left, right


def _score(names: Sequence[str], merges: Sequence[tuple[str, str]]) -> list[float]:
    """Return scores of which the higher is merged first, as the earlier merge is."""
    ranks: dict[str, int] = {}
    for rank, (left, right) in enumerate(merges):
        ranks.setdefault(left + right, rank)
    return [-float(ranks[name]) - 1 if name in ranks else _UNUSED_SCORE for name in names]


def _puts_blank(described: Mapping[str, Any]) -> bool:
    """Return whether a text gets a blank in front."""
    splitter, normalizer = described["pre_tokenizer"] or {}, described["normalizer"] or {}
    steps = [normalizer, *normalizer.get("normalizers", [])]
    return splitter.get("prepend_scheme", "never") != "never" or any(
        step.get("type") == "Prepend" for step in steps
    )


def _name_splitting(described: Mapping[str, Any], lm: LanguageModel) -> str:
    """Return llama.cpp's name for the way in which text is split before merging."""
    if described["normalizer"] not in (None, {"type": "NFC"}):
        raise _refuse("its tokenizer normalises text", lm)
    splitter = described["pre_tokenizer"] or {}
    steps = splitter.get("pretokenizers", [splitter])
    kinds = [step.get("type") for step in steps]
    last = steps[-1]
    if last.get("type") == "ByteLevel" and not last["add_prefix_space"]:
        if kinds == ["ByteLevel"] and last["use_regex"]:
            return "gpt-2"
        if kinds == ["Digits", "ByteLevel"] and last["use_regex"] and steps[0]["individual_digits"]:
            return "smollm"
        if kinds == ["Split", "ByteLevel"] and not last["use_regex"]:
            pattern = steps[0]["pattern"].get("Regex", "")
            found = [name for name, sign in _NUMBERS.items() if sign in pattern]
            if pattern.startswith("(?i:'s|'t|'re|'ve|'m|'ll|'d)|") and len(found) == 1:
                return found[0]
    raise _refuse("its tokenizer splits text in a way that has no name in llama.cpp", lm)


# The patterns of Llama 3 and Qwen 2 differ in how many digits stay together.
_NUMBERS = {"llama-bpe": r"|\p{N}{1,3}|", "qwen2": r"|\p{N}|"}


def _add_special(writer: gguf.GGUFWriter, lm: LanguageModel) -> None:
    tokenizer = lm.tokenizer
    for number, add in (
        (tokenizer.bos_token_id, writer.add_bos_token_id),
        (tokenizer.eos_token_id, writer.add_eos_token_id),
        (tokenizer.unk_token_id, writer.add_unk_token_id),
        (tokenizer.pad_token_id, writer.add_pad_token_id),
    ):
        if isinstance(number, int):
            add(number)
    ids = tokenizer("a").input_ids
    writer.add_add_bos_token(ids[0] == tokenizer.bos_token_id)
    writer.add_add_eos_token(len(ids) > 1 and ids[-1] == tokenizer.eos_token_id)
