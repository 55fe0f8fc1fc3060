"""Scores of newer benchmarks against examples computed by hand, as their cards show them."""

from __future__ import annotations

import math

import pytest

from corrigenda.cases import Against, Protocol
from corrigenda.errors import MalformedRows
from corrigenda.metrics import registry
from corrigenda.metrics.appending import choose_answers, measure_disturbance
from corrigenda.metrics.consistency import consistency
from corrigenda.metrics.fluency import fluency
from corrigenda.metrics.metric import RunRecords
from corrigenda.metrics.natural import read_verdict
from corrigenda.metrics.overlap import bleu, rouge, word_f1
from corrigenda.rows import Row
from tests.support.rows import FED, GREEDY, RANK

NATURAL = Protocol.GENERATE


def value(rows: list[Row], name: str) -> float:
    (found,) = registry.evaluate(RunRecords(rows), [name])
    return found.value


def said(case: str, text: str, expected: str, **more) -> Row:
    more.setdefault("role", "reliability")
    return Row(case=case, protocol=NATURAL, answer=text, expected=[[expected]], **more)


def test_fluency() -> None:
    """Bigrams ab 2, ba, bc: 1.5 bits; trigrams aba, bab, abc: 1.585; (1/3) and (2/3) of them."""
    row = Row(case="1", role="fluency", protocol=GREEDY, answer="a b a b c")
    assert fluency([row]).value == pytest.approx(1.5 / 3 + 2 * math.log2(3) / 3)
    assert fluency([row]).value == pytest.approx(1.556642, abs=1e-6)


def test_consistency() -> None:
    """One text with half of the reference's two words, by their weights in two references."""
    row = Row(
        case="1",
        role="consistency",
        protocol=GREEDY,
        answer="rome",
        expected=[["rome rome oslo"]],
    )
    # Of one reference all words weigh the same: (1, 0) against (2, 1).
    assert consistency([row]).value == pytest.approx(2 / math.sqrt(5))


def test_wild_exact_match_and_locality() -> None:
    """Cut "Eagles"; "eagles band won"; a repetition: 1, 0, 0. Ids 5 9 2, then 5 9 7: 0 and 2/3."""
    texts = ("Eagles.", "The Eagles (band) won", "Eagles Eagles Eagles")
    rows = [said(str(i), text, "The Eagles") for i, text in enumerate(texts)]
    assert value(rows, "reliability@generate:wild") == pytest.approx(1 / 3)
    verdicts = ("A", "A", "B")
    judged = [
        said(str(i), text, "The Eagles", verdict=verdict)
        for i, (text, verdict) in enumerate(zip(texts, verdicts, strict=True))
    ]
    assert value(judged, "reliability@generate:judge") == pytest.approx(2 / 3)
    # Exactly right: the first alone. Contained: all three. The judge agrees with 2, and with 2.
    assert value(judged, "judge_agreement@generate:exact") == pytest.approx(2 / 3)
    assert value(judged, "judge_agreement@generate:contains") == pytest.approx(2 / 3)
    kept = Row(
        case="1",
        role="locality/question",
        protocol=NATURAL,
        against=Against.UNEDITED,
        answer="the sea",
        answer_before="the seas",
        predicted=[5, 9, 7],
        predicted_before=[5, 9, 2],
    )
    assert value([kept], "locality@generate") == 0
    assert value([kept], "locality@generate:tokens") == pytest.approx(2 / 3)


def test_whoever_writes_on_is_not_exact() -> None:
    """Right under teacher forcing, wrong as an answer."""
    forced = Row(
        case="1",
        role="reliability",
        protocol=FED,
        expected=[["Rome"]],
        token_ids=[4],
        predicted=[4],
    )
    natural = said("1", "Rome and the sea and the land", "Rome", probe=1, ended=False)
    rows = [forced, natural]
    assert value(rows, "reliability@teacher_forced") == 1
    assert value(rows, "reliability@generate") == 0
    assert value(rows, "reliability@generate:contains") == 1
    assert value(rows, "reliability@generate:f1") == pytest.approx(2 / 8)
    assert value(rows, "not_ended@generate") == 1
    assert value(rows, "answer_words@generate") == 7


def test_an_empty_answer_is_wrong_everywhere() -> None:
    row = said("1", "", "Norway", ended=True)
    for measure in ("", ":contains", ":wild", ":f1", ":rouge_l", ":bleu"):
        assert value([row], f"reliability@generate{measure}") == 0, measure
    assert value([row], "hallu_efficacy@generate") == 0


def test_without_a_judge_there_is_no_metric() -> None:
    rows = [said("1", "Rome", "Rome")]
    found = {one.metric for one in registry.evaluate(RunRecords(rows))}
    assert "reliability@generate" in found
    assert not any("judge" in name for name in found)
    (judged,) = registry.evaluate(RunRecords(rows), ["reliability@generate:judge"])
    assert (judged.n, judged.skipped) == (0, {"no judge was asked": 1})


@pytest.mark.parametrize(
    ("text", "right"),
    [("A", True), ("(B)", False), ("Yes, it does", True), ("incorrect", False), ("hm", None)],
)
def test_verdicts(text: str, right: bool | None) -> None:
    assert read_verdict(text) is right


def test_a_verdict_that_cannot_be_read_is_counted() -> None:
    rows = [said("1", "Rome", "Rome", verdict="hm"), said("2", "Rome", "Rome", verdict="A")]
    (found,) = registry.evaluate(RunRecords(rows), ["reliability@generate:judge"])
    assert (found.n, found.value) == (1, 1)
    assert found.skipped == {"the verdict cannot be read": 1}


def test_hallueditbench() -> None:
    """Five forms 1, 1, 0, 1, 1: .8; topics (1, 0) and (1): .75; one answer in the other: 1."""
    forms = {
        "rephrased": ("It is Norway", "Norway"),
        "yes": ("Yes", "Yes"),
        "no": ("Yes", "No"),
        "choice": ("B", "B"),
        "reversed": ("nightcore", "nightcore"),
    }
    rows = [
        said("1", text, expected, role=f"generalization/{kind}", probe=place, tags=["topic=P"])
        for place, (kind, (text, expected)) in enumerate(forms.items())
    ]
    assert value(rows, "hallu_generalization@generate") == pytest.approx(0.8)
    facts = [
        said("1", "Norway", "Norway", tags=["topic=P"]),
        said("2", "No", "Norway", tags=["topic=P"]),
        said("3", "in Norway", "Norway", tags=["topic=Q"]),
    ]
    assert value(facts, "hallu_efficacy@generate") == pytest.approx(0.75)
    kept = Row(
        case="1",
        role="locality/question",
        protocol=NATURAL,
        against=Against.UNEDITED,
        answer="electronic",
        answer_before="electronic dance music",
        tags=["topic=P"],
    )
    assert value([kept], "hallu_locality@generate") == 1
    assert value([kept], "locality@generate:contained") == 1
    # No letter of a word is a choice, and a judge may save what the rules do not see.
    wrong = said("1", "a bad answer", "A", role="generalization/choice", tags=["topic=P"])
    assert value([wrong], "hallu_generalization@generate") == 0
    saved = said("1", "Kingdom of the fjords", "Norway", verdict="A")
    assert value([saved], "hallu_efficacy@generate") == 1


def test_unke() -> None:
    """Unigrams 1 of 3 and of 6, no bigram; a record with parts 1/3 and 1 has 2/3."""
    text, reference = "he served for over ten years", "over a decade"
    found = rouge(text, reference, "rouge1")
    assert (found.recall, found.precision, found.f1) == pytest.approx((1 / 3, 1 / 6, 2 / 9))
    assert rouge(text, reference, "rouge2").recall == 0
    assert rouge(text, reference, "rougeL").recall == pytest.approx(1 / 3)
    rows = [
        said("1", text, reference, role="portability/part", verdict="A"),
        said("1", "Two.", "two", role="portability/part", probe=1, verdict="B"),
    ]
    assert value(rows, "portability@generate:rouge_l") == pytest.approx(2 / 3)
    assert value(rows, "portability@generate:judge") == 0.5
    # Recall rewards length, F1 does not.
    long = f"{reference} " + "noise " * 100
    assert rouge(long, reference, "rougeL").recall == 1
    assert rouge(long, reference, "rougeL").f1 < 0.1


def test_bleu_of_words_and_of_characters() -> None:
    """Half of four words: 1-grams 2/4, 2-grams 1/3, then .1 of 2 and of 1, at equal length."""
    text, reference = "a b x y", "a b c d"
    expected = (2 / 4 * 1 / 3 * 0.1 / 2 * 0.1 / 1) ** 0.25
    assert bleu(text, reference) == pytest.approx(expected)
    assert bleu(reference, reference, characters=True) == 1
    assert bleu("a b c d e f", "a b c d e g", characters=True) > bleu("a b c d e f", "a b c d e g")
    assert word_f1("", "") == 1


def test_peak() -> None:
    """As on the card: q .4775, r .444, p 1, u 1.167: forgetting .768, noising 1."""
    found = measure_disturbance([0.5, 0.4], [0.1, 0.2], [0.3, 0.1], [0.2, 0.15])
    assert found.forgetting == pytest.approx(1 - (1 - 0.5250 / 1.0994) * 0.2 / 0.45, abs=1e-3)
    assert found.noising == 1
    same = measure_disturbance([0.5, 0.4], [0.1, 0.2], [0.5, 0.4], [0.1, 0.2])
    assert same == (0, 0)
    scaled = measure_disturbance([0.5, 0.4], [0.1, 0.2], [0.25, 0.2], [0.05, 0.1])
    assert scaled.forgetting == pytest.approx(0.5)
    swapped = measure_disturbance([0.5, 0.4], [0.1, 0.2], [0.1, 0.1], [0.5, 0.4])
    assert swapped == (1, 1)


def peak(case: str, before: list[float], after: list[float], new: float, **more) -> Row:
    more.setdefault("tags", ["right=2", "hard=2", "random=1"])
    return Row(
        case=case,
        role="reliability",
        protocol=RANK,
        against=Against.BEFORE,
        log_probs=[math.log(new)],
        rival_log_probs_before=[[math.log(one)] for one in before],
        rival_log_probs=[[math.log(one)] for one in after],
        **more,
    )


def test_peak_from_rows() -> None:
    row = peak("1", [0.5, 0.4, 0.1, 0.2, 0.3], [0.3, 0.1, 0.2, 0.15, 0.3], new=0.2)
    assert value([row], "additivity_forgetting@rank") == pytest.approx(0.768, abs=1e-3)
    assert value([row], "additivity_noising@rank") == 1
    # .2 beats .1, the least probable right one.
    assert value([row], "appended@rank") == 1
    lost = peak("2", [0.1, 0.1, 0.4, 0.5, 0.3], [0.1] * 5, new=0.2)
    (found,) = registry.evaluate(RunRecords([row, lost]), ["additivity_noising@rank"])
    assert found.n == 1
    assert "tell right from wrong" in next(iter(found.skipped))
    assert choose_answers([0.5, 0.01], [0.02] * 4 + [0.001], [0.2]) == ((0,), (0, 1, 2, 3, 4), (0,))
    with pytest.raises(MalformedRows, match="5 rivals, but the tags count 3"):
        value([peak("1", [0.1] * 5, [0.1] * 5, 0.2, tags=["right=3"])], "appended@rank")


def test_peak_neighbours_have_answers_of_their_own() -> None:
    def neighbour(case: str, own: list[float], new: list[float]) -> Row:
        (own_before, own_after), (new_before, new_after) = own, new
        return Row(
            case=case,
            role="locality/neighborhood",
            protocol=RANK,
            against=Against.BEFORE,
            log_probs=[math.log(own_after)],
            log_probs_before=[math.log(own_before)],
            rival_log_probs=[[math.log(new_after)]],
            rival_log_probs_before=[[math.log(new_before)]],
        )

    rows = [
        neighbour("1", [0.5, 0.4], [0.1, 0.2]),
        neighbour("2", [0.5, 0.1], [0.1, 0.2]),
        neighbour("3", [0.1, 0.9], [0.5, 0.2]),
    ]
    (found,) = registry.evaluate(RunRecords(rows), ["answers_kept@rank"])
    assert (found.value, found.n) == (0.5, 2)


def choice(case: str, role: str, right: bool, probe: int = 0, lengths: int = 1) -> Row:
    own, rival = (-1.0, -2.0) if right else (-2.0, -1.0)
    return Row(
        case=case,
        role=role,
        probe=probe,
        protocol=RANK,
        against=Against.BEFORE,
        log_probs=[own] * lengths,
        rival_log_probs=[[rival], [-9.0], [-9.0]],
    )


def test_taxi() -> None:
    """Membership right, sound right, baby name wrong, legs right: 1, 1/2, 1, 2/3."""
    rows = [
        choice("Siamese -> dog", "reliability", True),
        choice("Siamese -> dog", "property/changed", True, 1),
        choice("Siamese -> dog", "property/changed", False, 2),
        choice("Siamese -> dog", "property/unchanged", True, 3),
    ]
    assert value(rows, "taxi_success@rank") == 1
    assert value(rows, "taxi_consistency@rank") == 0.5
    assert value(rows, "taxi_invariance@rank") == 1
    assert value(rows, "taxi_score@rank") == pytest.approx(2 / 3)
    assert value(rows, "taxi_chance@rank") == 0.25
    # Questions weigh the same, not edits: (1 + 0 + 1 + 0) / 4, not (2/3 + 0) / 2.
    rows.append(choice("Persian -> dog", "property/changed", False))
    assert value(rows, "taxi_score@rank") == 0.5


def test_taxi_sums_favour_short_choices() -> None:
    row = choice("1", "property/changed", True, lengths=3)
    assert value([row], "taxi_consistency@rank") == 0
    assert value([row], "taxi_consistency@rank:mean") == 1


def test_wise() -> None:
    """p .5, .25, .5: loss .924, perplexity 2.52; p .9, .85, .3, .81: three of four."""
    target = Row(
        case="1",
        role="reliability",
        protocol=FED,
        token_ids=[1, 2, 3],
        predicted=[1, 2, 3],
        log_probs=[math.log(one) for one in (0.5, 0.25, 0.5)],
    )
    assert value([target], "target_perplexity@teacher_forced") == pytest.approx(2.52, abs=0.01)
    text = Row(
        case="1",
        role="unseen_text",
        protocol=FED,
        log_probs=[math.log(one) for one in (0.9, 0.85, 0.3, 0.81)],
    )
    assert value([text], "unseen_share@teacher_forced") == 0.75
