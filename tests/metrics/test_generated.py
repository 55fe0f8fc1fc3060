"""Generated answers to items of other tasks, judged as they should be and as published."""

from __future__ import annotations

import importlib.util

import pytest

from corrigenda.errors import MalformedRows, MissingExtra
from corrigenda.metrics.metric import RunRecords
from corrigenda.metrics.registry import evaluate, metric
from corrigenda.metrics.selection import as_before
from corrigenda.metrics.tasks import judging
from corrigenda.metrics.tasks.answers import (
    NO_CHOICES,
    NOT_PUBLISHED,
    PUBLISHED,
    answer_change,
    answer_retention,
    answer_score,
)
from corrigenda.metrics.tasks.judging import mean_rouge, read_choice, read_entities, read_number
from corrigenda.rows import Row
from tests.support.rows import GREEDY, RANK

LETTERS = ["A", "B", "C", "D"]
YES = ["no", "yes"]


def item(
    kind: str,
    text: str,
    expected: list[list[str]],
    *,
    number: int = 0,
    unit: str = "batch 0",
    before: str | None = "",
    about: str = "",
    tags: tuple[str, ...] = (PUBLISHED,),
    **more: object,
) -> Row:
    """A free answer, in a published wording."""
    own = [f"kind={kind}", *([f"about={about}"] if about else []), *tags]
    return Row(
        case=f"{unit}: t {number}",
        role=f"task/{more.pop('task', 't')}",
        protocol=GREEDY,
        answer=text,
        answer_before=before,
        expected=expected,
        tags=own,
        **more,  # type: ignore[arg-type]  # by name
    )


def labelled(kind: str, text: str, answer: int, choices: list[str], **more: object) -> Row:
    """An answer that should be one of several choices."""
    rivals = choices[:answer] + choices[answer + 1 :]
    tags = (PUBLISHED, f"answer={answer}")
    return item(kind, text, [[choices[answer]]], rivals=rivals, tags=tags, **more)  # type: ignore[arg-type]  # by name


def scores(rows: list[Row]) -> tuple[float, float]:
    """As it should be, and as published."""
    return answer_score(rows).value, answer_score(rows, legacy=True).value


def test_a_number_that_holds_the_right_digits_is_not_the_right_number() -> None:
    rows = [
        item("gsm8k", text, [["12"]], number=number)
        for number, text in enumerate((" 120.", " 12.", " $12, so", " 7, not 12"))
    ]
    assert scores(rows) == (0.5, 1.0)
    assert scores([item("gsm8k", " 1200", [["1,200"]])]) == (1.0, 0.0)


def test_answers_that_cannot_be_read_are_wrong_and_were_left_out() -> None:
    for kind, choices in (
        ("rte", ["True", "False"]),
        ("sst2", ["negative", "positive"]),
        ("boolq", YES),
    ):
        texts = (f" {choices[1]}", f" {choices[0]}", " The", "\n")
        rows = [labelled(kind, text, 1, choices, number=i) for i, text in enumerate(texts)]
        assert scores(rows) == (0.25, 0.5)
        assert answer_score(rows[2:]).value == 0
        assert str(answer_score(rows[2:], legacy=True).value) == "nan"


def test_a_letter_within_a_word_is_no_answer() -> None:
    texts = (" And", " A", " (A)", " B or A", " a")
    rows = [labelled("mutual", text, 0, LETTERS, number=i) for i, text in enumerate(texts)]
    assert scores(rows) == (0.4, 0.8)


def test_a_label_within_the_answer_is_not_what_it_says() -> None:
    choices = ["No", "Yes"]
    texts = (" No, Yes", " Yes", " Yesterday")
    rows = [labelled("cola", text, 1, choices, number=i) for i, text in enumerate(texts)]
    assert scores(rows) == (pytest.approx(1 / 3), 1.0)


def test_the_published_letter_stands_before_the_end_of_a_line() -> None:
    texts = (" B", " B\n\n", " B)")
    rows = [labelled("mmlu", text, 1, LETTERS, number=i) for i, text in enumerate(texts)]
    assert scores(rows) == (1.0, pytest.approx(1 / 3))


def test_entailed_is_true_whatever_the_order_of_likelihoods() -> None:
    choices = ["True", "False"]
    for answer, text in enumerate((" True", " False")):
        row = labelled("nli", text, answer, choices)
        assert scores([row]) == (1.0, 1.0)
        assert judging.read_place(text, row) == judging.read_place(text, row, legacy=True) == answer


def spans(*texts: str, unit: str = "batch 0") -> list[Row]:
    gold = [["Rome", "the eternal city"]]
    return [item("nq", text, gold, number=i, unit=unit) for i, text in enumerate(texts)]


def test_any_span_of_words_was_a_right_answer() -> None:
    assert scores(spans(" It is the Eternal City, of course.")) == (0.0, 1.0)
    assert scores(spans(" The Eternal City.\nWho")) == (1.0, 1.0)
    assert scores(spans(" Rome, Italy")) == (0.0, 1.0)


def test_an_answer_with_a_right_word_at_several_places_counted_several_times() -> None:
    assert scores(spans(" not Rome but Rome again")) == (0.0, 2.0)


def test_after_an_answer_of_several_words_later_texts_were_searched_from_their_start_only() -> None:
    later = " it is Rome again"
    found = " it is the eternal city again"
    assert scores(spans(later)) == (0.0, 1.0)
    assert scores(spans(found, later)) == (0.0, 0.5)
    assert scores(spans(later, found)) == (0.0, 1.0)
    # Rows of another unit of work are another evaluation; the order of rows does not matter.
    assert scores([*spans(found), *spans(later, unit="batch 1")]) == (0.0, 1.0)
    assert scores(spans(found, later)[::-1]) == (0.0, 0.5)


def test_summaries_lost_their_last_thirteen_characters() -> None:
    summary = "Ann buys a small green boat"
    rows = [item("samsum", f" {summary}\nBob sells", [[summary]])]
    whole, trimmed = scores(rows)
    assert whole == 1.0
    kept = f" {summary}\nBob sells"[:-13]
    assert trimmed == mean_rouge(kept, summary) < 1
    assert scores([item("samsum", " Ann buys", [[summary]])])[1] == 0


def test_summaries_need_an_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    mean_rouge.cache_clear()
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    with pytest.raises(MissingExtra, match=r"corrigenda\[metrics\]"):
        answer_score([item("samsum", " Ann", [["Ann"]])])


def named(about: str, text: str, *there: str, number: int) -> Row:
    return item("conll", text, [[one] for one in there], about=about, number=number)


def test_entities_that_are_not_there_cost_something_and_did_not() -> None:
    """Said: Ann, Bob, Rome, Rome; there: Ann Lee, Bob, Rome. F1 = 2 * 2 / (4 + 3)."""
    rows = [
        named("person", " Ann, Bob", "Ann Lee", "Bob", number=0),
        named("location", " Rome", "Rome", number=1),
        named("organization", " Rome", number=2),
        named("miscellaneous", " none", number=3),
    ]
    fixed, published = scores(rows)
    assert fixed == pytest.approx(4 / 7)
    # Of persons one of two, of places all; the types without any entity have no share.
    assert published == pytest.approx((1 / 2 + 1) / 2)
    assert answer_score(rows).by_case == {}


def test_what_an_answer_says() -> None:
    assert read_choice("\n(c)", LETTERS) == -1
    assert read_choice(" C: because", LETTERS) == 2
    assert read_choice("", LETTERS) == read_choice(" ...", YES) == -1
    assert read_number("none") is None
    assert read_number(" -3.50 and") == read_number("-3.5")
    assert read_entities(" None.\nAnn") == {}


def test_f1_and_correlation_are_those_of_scikit_learn() -> None:
    """Answers that cannot be read are a class of their own, -1, which no item is of."""
    from sklearn.metrics import f1_score, matthews_corrcoef

    answers = [0, 1, 1, 0, 2, 3, 1, 0, 2]
    texts = [" A", " B", " x", " B", " C", "", " B", " A", " D"]
    said = [0, 1, -1, 1, 2, -1, 1, 0, 3]
    pairs = enumerate(zip(texts, answers, strict=True))
    rows = [labelled("mutual", text, answer, LETTERS, number=i) for i, (text, answer) in pairs]
    f1 = f1_score(answers, said, average="weighted")
    correlation = matthews_corrcoef(answers, said)
    assert answer_score(rows, measure="f1").value == pytest.approx(f1)
    assert answer_score(rows, measure="correlation").value == pytest.approx(correlation)
    assert answer_score(rows).value == pytest.approx(5 / 9)
    legacy = answer_score(rows, measure="f1", legacy=True)
    assert legacy.metric == "legacy_task_f1@greedy"
    assert legacy.value == pytest.approx(f1)


def test_change_and_retention_are_paired_and_averaged_over_tasks() -> None:
    rows = [
        labelled("boolq", " yes", 1, YES, number=i, before=" yes" if i < 2 else " no", task="a")
        for i in range(4)
    ]
    rows += [item("gsm8k", " 3", [["4"]], before=" 4", task="b")]
    assert answer_change(rows, "a").value == 0.5
    assert answer_retention(rows, "a").value == 2
    assert answer_retention(rows).value == 1
    assert answer_change(rows).value == -0.25
    assert answer_score(rows, "a").by_case["a/batch 0: t 2"] == 1
    assert answer_score(as_before(rows), "a").n == 0


def test_only_published_wordings_are_judged_as_published() -> None:
    ours = item("gsm8k", " 120", [["12"]], tags=())
    theirs = item("gsm8k", " 120", [["12"]], number=1)
    found = answer_score([ours, theirs], legacy=True)
    assert (found.n, found.value, found.skipped) == (1, 1.0, {NOT_PUBLISHED: 1})
    both = answer_score([ours, theirs], measure="f1")
    assert (both.n, both.skipped) == (0, {NO_CHOICES: 2})
    assert answer_score([item("gsm8k", " 12", [["12"]], before=None)]).n == 0


def test_published_judges_are_asked_for_by_name_and_listed_as_such() -> None:
    rows = [
        labelled("rte", " what", 0, ["True", "False"]),
        labelled("rte", " True", 0, ["True", "False"], number=1),
    ]
    found = {one.metric: one.value for one in evaluate(RunRecords(rows))}
    assert found["task_score/t@greedy"] == found["task_score@greedy"] == 0.5
    assert not any("legacy" in name or "rank" in name for name in found)
    assert {"task_f1/t@greedy", "task_correlation/t@greedy"} <= set(found)
    (asked,) = evaluate(RunRecords(rows), ["legacy_task_score/t@greedy"])
    assert asked.value == 1
    assert metric("legacy_task_score/t@greedy").legacy
    assert metric("legacy_task_score@greedy").legacy
    assert not metric("task_score/t@greedy").legacy
    assert metric("task_score/t@greedy").protocol == GREEDY
    assert metric("task_f1/t@rank").protocol == RANK


def test_a_row_must_say_how_it_is_judged() -> None:
    with pytest.raises(MalformedRows, match="of which kind"):
        answer_score([item("riddles", " x", [["x"]])])
    with pytest.raises(MalformedRows, match="expected to be nothing"):
        answer_score([item("nq", " x", [])])
