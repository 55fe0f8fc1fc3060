"""Fluency, consistency, essence: worked examples, the ceiling, what a missing extra says."""

from __future__ import annotations

import dataclasses
import importlib.util
import math

import pytest

from corrigenda.cases import Protocol
from corrigenda.errors import MissingExtra
from corrigenda.metrics import consistency as consistency_module
from corrigenda.metrics import fluency as fluency_module
from corrigenda.metrics.consistency import consistency, essence, similarities, weighted_cosine
from corrigenda.metrics.estimate import AnswerValue, over_cases
from corrigenda.metrics.fluency import (
    ceiling,
    fluency,
    fluency_change,
    n_gram_entropy,
    reference_text,
    split_words,
)
from corrigenda.metrics.registry import metric
from corrigenda.rows import Row
from tests.support.rows import FED, said

TEXT = {"expected": [], "role": "fluency"}


def test_entropy() -> None:
    bigrams, trigrams = 1.5, math.log2(3)
    assert trigrams == pytest.approx(1.584963, abs=5e-7)
    assert n_gram_entropy("a b a b c") == pytest.approx((bigrams + 2 * trigrams) / 3)
    assert n_gram_entropy("a b a b c") == pytest.approx(1.556642, abs=5e-7)
    shown = metric("fluency@greedy").scale * fluency([said("1", "a b a b c", **TEXT)]).value
    assert shown == pytest.approx(155.66, abs=5e-3)
    assert n_gram_entropy("a b a") == pytest.approx(1 / 3)
    assert n_gram_entropy("") == n_gram_entropy("one") == 0
    assert n_gram_entropy("the the the the") == 0


def test_ceiling_of_a_hundred_words() -> None:
    assert ceiling(100) * 100 == pytest.approx(661.96, abs=0.05)
    distinct = " ".join(f"w{i}" for i in range(100))
    assert n_gram_entropy(distinct) == pytest.approx(ceiling(100))


def test_a_published_fluency_exceeds_the_ceiling_of_its_length() -> None:
    """794.15 was printed for texts of a hundred tokens: it needs some 245 words."""
    least = next(n for n in range(3, 1000) if ceiling(n) * 100 >= 794.15)
    assert ceiling(100) * 100 < 794.15
    assert 240 <= least <= 250


def test_words_are_those_of_the_treebank() -> None:
    assert split_words("It isn't here (yet). Go!") == [
        *("It", "is", "n't", "here", "(", "yet", ")", ".", "Go", "!")
    ]


def test_only_the_continuation_is_scored_unless_legacy() -> None:
    rows = [said("1", " a b c", prompt="a b a b c d e", **TEXT)]
    assert fluency(rows).value == pytest.approx(n_gram_entropy("a b c"))
    assert fluency(rows, legacy=True).n == 0
    sampled = [dataclasses.replace(row, protocol=Protocol.SAMPLED) for row in rows]
    legacy = fluency(sampled, legacy=True)
    assert legacy.value == pytest.approx(n_gram_entropy("a b a b c d e a b c"))
    assert legacy.metric == "fluency_legacy@sampled"
    assert fluency(sampled, protocol=Protocol.SAMPLED).metric == "fluency@sampled"
    assert fluency_change(rows).metric == "fluency_change@greedy"
    assert reference_text("A\n\n\n", "\u00e9") == "A\ne\u0301"


def test_change_of_fluency_is_paired() -> None:
    rows = [said("1", "a b c d", answer_before="a b a b", **TEXT)]
    expected = n_gram_entropy("a b c d") - n_gram_entropy("a b a b")
    assert fluency_change(rows).value == pytest.approx(expected)


def test_whole_data_set_of_knowedit() -> None:
    """Means over cases: GE of 5.8 and 5.0 bits are printed as 540."""
    pooled = over_cases("fluency@greedy", [AnswerValue("1", 5.8), AnswerValue("2", 5.0)])
    assert 100 * pooled.value == pytest.approx(540)
    texts = ["a b c d", "a b a b c"]
    rows = [said(str(i), text, **TEXT) for i, text in enumerate(texts)]
    assert fluency(rows).value == pytest.approx(sum(map(n_gram_entropy, texts)) / 2)


def test_cosine_of_weighted_counts() -> None:
    assert weighted_cosine([1, 0, 1], [0, 1, 2], [2, 1, 1.5]) == pytest.approx(0.569210, abs=5e-7)
    assert weighted_cosine([0, 0], [1, 1], [1, 1]) == 0


def test_similarity_is_that_cosine_with_frequencies_of_the_corpus() -> None:
    from sklearn.feature_extraction.text import CountVectorizer

    corpus = ["Paris is a city", "Rome is a city", "a river runs"]
    texts, references = ["Paris, the city"], ["city of Rome; city"]
    counts = CountVectorizer().fit(corpus)
    seen = counts.transform(corpus).toarray()
    idf = [math.log((1 + 3) / (1 + (column > 0).sum())) + 1 for column in seen.T]
    expected = weighted_cosine(
        counts.transform(texts).toarray()[0], counts.transform(references).toarray()[0], idf
    )
    assert similarities(texts, references, corpus) == [pytest.approx(expected)]


def test_consistency_joins_the_texts_of_a_case() -> None:
    snippets = [["Rome is a city", "Rome has seven hills"]]
    rows = [
        said("1", "Rome is", snippets, role="consistency"),
        said("1", "a city with seven hills", snippets, role="consistency", probe=1),
        said("2", "qqq", snippets, role="consistency"),
        said("3", "Rome", [], role="consistency"),
    ]
    found = consistency(rows)
    assert found.by_case["1"] > 0.8
    assert found.by_case["2"] == 0
    assert found.skipped == {"no reference texts": 1}


@pytest.mark.parametrize(("legacy", "value"), [(True, 4.4817), (False, 7.3891)])
def test_essence(legacy: bool, value: float) -> None:
    row = Row(case="1", role="essence", protocol=FED, log_probs=[-1.0, -2.0, -3.0])
    assert essence([row], legacy=legacy).value == pytest.approx(value, abs=5e-5)


def test_missing_libraries_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    fluency_module._load_tokenizer.cache_clear()
    with pytest.raises(MissingExtra, match=r"CG504.*nltk[\s\S]*corrigenda\[metrics\]"):
        fluency([said("1", "a b", **TEXT)])
    with pytest.raises(MissingExtra, match=r"CG504.*scikit-learn"):
        consistency_module.similarities(["a"], ["b"], ["c"])
