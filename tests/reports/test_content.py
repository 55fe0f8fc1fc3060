"""What a report shows of runs: groups, the best of a line, curves, errors, generations."""

import json
import re
from dataclasses import replace

import pytest

from corrigenda.cases import Protocol
from corrigenda.errors import MissingData
from corrigenda.metrics.estimate import Estimate
from corrigenda.metrics.registry import metric
from corrigenda.reports import numbers, plain
from corrigenda.reports.comparison import compare, randomisation_test
from corrigenda.reports.content import report
from corrigenda.reports.page import page
from corrigenda.run.spec import Intervals

RELIABILITY, LOCALITY = "reliability@greedy", "locality@greedy"


@pytest.fixture
def two(recorded):
    return [
        recorded("rome", lambda case, _: True, lambda case, _: case != 0),
        recorded("ft-m", lambda case, _: case < 2, lambda case, _: True),
    ]


def line(group, name):
    return next(one for one in group.lines if one.metric.name == name)


def test_runs_on_the_same_cases_stand_in_one_table(two):
    made = report(two)
    assert len(made.groups) == 1
    group = made.groups[0]
    assert group.labels == ("rome (r-rome)", "ft-m")
    taken, kept = line(group, RELIABILITY), line(group, LOCALITY)
    assert [one.value for one in taken.estimates] == [1.0, pytest.approx(1 / 3)]
    assert [one.value for one in kept.estimates] == [pytest.approx(5 / 6), 1.0]
    assert taken.best == {0}
    assert kept.best == {1}
    assert taken.before.value == 0.0
    assert kept.before is None


def test_runs_on_other_data_form_a_group_of_their_own(two, recorded):
    other = recorded("rome", lambda *_: True, lambda *_: True, benchmark="zsre")
    titles = [group.title for group in report([*two, other]).groups]
    assert len(titles) == 2
    assert "zsre" in titles[1]


def test_error_types_sum_to_one_and_tell_how(two):
    errors = report(two).groups[0].errors
    assert [one.label for one in errors] == ["rome (r-rome)", "ft-m"]
    assert errors[0].shares["success"] == 1.0
    assert errors[1].shares["irrelevant"] == pytest.approx(4 / 6)
    assert sum(errors[1].shares.values()) == pytest.approx(1.0)


def test_generations_stand_side_by_side(two):
    shown = report(two, case="c3").groups[0].side_by_side
    assert shown.case == "c3"
    first = shown.asked[0]
    assert first.before == " Paris"
    assert first.answers == (" Rome.", " Los York & sons | x_y")
    with pytest.raises(MissingData, match="c99"):
        report(two, case="c99")


def test_a_sequence_has_curves_and_a_matrix(recorded):
    moments = (1, 3, 6)
    lasting = recorded("memit", lambda *_: True, lambda *_: True, moments=moments)
    fading = recorded("rome", lambda case, t: case >= t - 2, lambda *_: True, moments=moments)
    group = report([lasting, fading]).groups[0]
    chart = next(one for one in group.charts if RELIABILITY in one.title)
    assert [curve.edits for curve in chart.curves] == [moments, moments]
    shown = [round(one.value, 3) for one in chart.curves[1].estimates]
    assert shown == [1.0, 0.667, 0.333]
    assert [one.label for one in group.matrices] == ["memit", "rome (r-rome)"]
    assert group.matrices[1].matrix.values.shape == (3, 6)


def test_what_is_missing_is_told(recorded):
    run = recorded("rome", lambda *_: True, lambda *_: True, skipped=2)
    assert report([run]).groups[0].problems == (("rome (r-rome)", "CG105", 2),)


def test_intervals_are_found_as_the_first_run_says_or_as_wanted(recorded):
    """Every case is asked twice and wrong once: only answers within cases can vary."""
    moments = (1, 3, 6)
    run = recorded("memit", lambda *_: True, lambda *_: True, moments=moments)
    run = run._replace(
        rows=[row for row in run.rows if row.family == "reliability" for row in twice(row)]
    )
    own = Intervals(level=0.99, hierarchical=True)
    said = run._replace(spec=run.spec.model_copy(update={"intervals": own}))
    for made in (report([run], intervals=own), report([said])):
        assert made.bootstrap == own.bootstrap()
        taken = line(made.groups[0], RELIABILITY).estimates[0]
        assert taken.low < 0.5 < taken.high
        (chart,) = (one for one in made.groups[0].charts if RELIABILITY in one.title)
        shown = [taken, *chart.curves[0].estimates, line(made.groups[0], RELIABILITY).before]
        assert {one.bootstrap for one in shown} == {own.bootstrap()}
        assert chart.curves[0].estimates[-1].low == taken.low
    plain_one = line(report([run]).groups[0], RELIABILITY).estimates[0]
    assert plain_one.low == plain_one.high == 0.5
    (compared,) = compare(said, said, [RELIABILITY])
    assert compared.difference.bootstrap == own.bootstrap()._replace(hierarchical=False)


def twice(row):
    other = replace(row, probe=row.probe + 100, answer=" Oslo")
    return row, other


def test_no_run_is_refused():
    with pytest.raises(MissingData):
        report([])


def test_markdown_and_latex_escape_and_mark_the_best(two):
    made = report(two)
    text = plain.markdown(made)
    row = next(one for one in text.splitlines() if one.startswith(f"| `{RELIABILITY}`"))
    assert "**100**" in row
    assert "@misc{rome2022" in text
    assert "note = {method rome (r-rome)}" in text
    assert "| rome (r-rome) | rome (r-rome) |" in text
    tex = plain.latex(made)
    assert r"\textbf{100}" in tex
    assert tex.count(r"\begin{tabular}") == 1
    assert re.search(r"[^\\]_", tex.replace(r"\_", "")) is None


def test_json_holds_every_number(two):
    data = json.loads(plain.as_json(report(two)))
    metrics = {one["metric"]: one for one in data["groups"][0]["metrics"]}
    assert metrics[RELIABILITY]["runs"]["ft-m"]["value"] == pytest.approx(1 / 3)
    assert metrics[RELIABILITY]["runs"]["ft-m"]["n"] == 6
    assert metrics[RELIABILITY]["best"] == ["rome (r-rome)"]


def test_the_page_stands_alone_and_escapes(recorded):
    pytest.importorskip("matplotlib", reason="the extra `report` is not installed")
    moments = (1, 3, 6)
    runs = [
        recorded("memit", lambda *_: True, lambda *_: True, moments=moments),
        recorded("rome", lambda case, t: case >= t - 2, lambda *_: True, moments=moments),
    ]
    made = report(runs, title="A <b>bold</b> title")
    text = page(made)
    assert text == page(made)
    assert "A &lt;b&gt;bold&lt;/b&gt; title" in text
    assert "Los York &amp; sons" in text
    assert text.count("<svg") == len(made.groups[0].charts) + 1 + 1 + 2
    without_namespaces = re.sub(r'xmlns(:\w+)?="[^"]*"|<pre>.*</pre>', "", text, flags=re.DOTALL)
    assert "<script" not in text
    assert not re.search(r'(src|href)="https?:', without_namespaces)


def test_comparison_is_paired(two):
    found = {one.metric.name: one for one in compare(*two)}
    taken = found[RELIABILITY]
    assert taken.difference.value == pytest.approx(2 / 3)
    assert taken.difference.n == 6
    assert taken.p_value == pytest.approx(2 / 2**4)
    assert found["cost/edit_seconds"].p_value == 1.0


def test_runs_without_a_common_case_are_not_compared(recorded):
    one = recorded("rome", lambda *_: True, lambda *_: True)
    other = recorded("memit", lambda *_: True, lambda *_: True)
    alone = other._replace(rows=[])
    with pytest.raises(MissingData, match="no case in common"):
        compare(one, alone)


def test_random_signs_agree_with_all_signs():
    differences = [1.0, 0.5, 0.25, -0.5, 1.0, 1.0, 0.75, -0.25, 0.5, 1.0]
    exact = randomisation_test(differences)
    drawn = randomisation_test(differences, flips=1000)
    assert drawn == pytest.approx(exact, abs=0.03)
    assert randomisation_test([1.0] * 200) < 1e-3
    assert randomisation_test([1.0, -1.0] * 100) == pytest.approx(1.0, abs=0.05)


def test_equal_values_are_both_best_and_one_alone_is_not():
    def estimate(value):
        return Estimate(metric="x", value=value, low=value, high=value, n=2, items=2)

    wanted = metric(RELIABILITY)
    assert numbers.best(wanted, [estimate(0.5), estimate(0.5), None]) == {0, 1}
    assert numbers.best(wanted, [estimate(0.5), None]) == frozenset()
    fluency = metric("fluency@greedy")
    same = [estimate(5.0), estimate(6.2)]
    assert numbers.best(fluency, same, estimate(6.0)) == {1}
    assert numbers.best(fluency, same) == frozenset()
    assert fluency.protocol is Protocol.GREEDY


def test_kinds_and_benchmarks_have_tables_of_their_own(two):
    def split(run):
        rows = [
            replace(
                row,
                role="locality/neighborhood"
                if row.probe == 1 and row.case in ("c0", "c1")
                else row.role,
                tags=[f"benchmark={'first' if row.case < 'c3' else 'second'}"],
            )
            for row in run.rows
        ]
        return run._replace(rows=rows)

    group = report([split(run) for run in two]).groups[0]
    parts = {part.title: part for part in group.parts}
    assert set(parts) == {"first", "second", f"{LOCALITY}, kind by kind"}
    first = dict(zip(parts["first"].names, parts["first"].lines, strict=True))
    assert [one.value for one in first[RELIABILITY].estimates] == [1.0, pytest.approx(2 / 3)]
    kinds = parts[f"{LOCALITY}, kind by kind"]
    assert kinds.names == ("locality/neighborhood", "locality/relation_specificity")
    assert [one.value for one in kinds.lines[0].estimates] == [0.5, 1.0]
    assert [one.value for one in kinds.lines[1].estimates] == [1.0, 1.0]
    made = report([split(run) for run in two])
    assert "### first" in plain.markdown(made)
    assert plain.latex(made).count(r"\begin{tabular}") == 4
