"""What a report shows of runs: groups, the best of a line, curves, errors, generations."""

import json
import re
from dataclasses import replace

import pytest

from corrigenda.benchmarks.benchmark import BENCHMARKS
from corrigenda.cases import Protocol
from corrigenda.errors import MissingData
from corrigenda.methods.registry import METHODS
from corrigenda.metrics.estimate import Estimate
from corrigenda.metrics.registry import metric
from corrigenda.reports import figures, numbers, plain
from corrigenda.reports.citations import read_citations
from corrigenda.reports.comparison import compare, randomisation_test
from corrigenda.reports.content import build_report
from corrigenda.reports.page import render_page
from corrigenda.reports.sections import Chart, Curve
from corrigenda.rows import Measurement
from corrigenda.run import summary
from corrigenda.run.spec import Intervals
from tests.support.recorded import record_run
from tests.support.records import COUNTERFACT, RECENT, write

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
    made = build_report(two)
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
    titles = [group.title for group in build_report([*two, other]).groups]
    assert len(titles) == 2
    assert "zsre" in titles[1]


def test_error_types_sum_to_one_and_tell_how(two):
    errors = build_report(two).groups[0].errors
    assert [one.label for one in errors] == ["rome (r-rome)", "ft-m"]
    assert errors[0].shares["success"] == 1.0
    assert errors[1].shares["irrelevant"] == pytest.approx(4 / 6)
    assert sum(errors[1].shares.values()) == pytest.approx(1.0)


def test_generations_stand_side_by_side(two):
    shown = build_report(two, case="c3").groups[0].side_by_side
    assert shown.case == "c3"
    first = shown.probes[0]
    assert first.before == (" Paris", False)
    assert first.answers == ((" Rome.", True), (" Los York & sons | x_y", False))
    assert [one.mark for one in first.answers] == ["+", "-"]
    neighbour = shown.probes[1]
    assert neighbour.before == (" Berlin", None)
    assert [one.right for one in neighbour.answers] == [True, True]
    with pytest.raises(MissingData, match="c99"):
        build_report(two, case="c99")


def test_a_sequence_has_curves_and_a_matrix(recorded):
    moments = (1, 3, 6)
    lasting = recorded("memit", lambda *_: True, lambda *_: True, moments=moments)
    fading = recorded("rome", lambda case, t: case >= t - 2, lambda *_: True, moments=moments)
    group = build_report([lasting, fading]).groups[0]
    chart = next(one for one in group.charts if RELIABILITY in one.title)
    assert [curve.edits for curve in chart.curves] == [moments, moments]
    shown = [round(one.value, 3) for one in chart.curves[1].estimates]
    assert shown == [1.0, 0.667, 0.333]
    assert [one.label for one in group.matrices] == ["memit", "rome (r-rome)"]
    assert group.matrices[1].matrix.values.shape == (3, 6)


def test_edits_asked_right_after_are_a_curve_of_their_own(recorded):
    """Each edit holds until the next one, and all are asked at 3 and 6 alone."""
    run = recorded("rome", lambda case, t: case == t - 1, lambda *_: True, moments=range(1, 7))
    newest = [
        row
        for row in run.rows
        if row.edits in (3, 6) or (row.position == row.edits and row.family == "reliability")
    ]
    (group,) = build_report([run._replace(rows=newest)]).groups
    chart = next(one for one in group.charts if RELIABILITY in one.title)
    (curve,), (at_once,) = chart.curves, chart.immediate
    assert curve.edits == at_once.edits == (1, 3, 6)
    assert [one.value for one in curve.estimates] == pytest.approx([1, 1 / 3, 1 / 6])
    assert [(one.value, one.n) for one in at_once.estimates] == [(1, 1), (1, 3), (1, 6)]
    kept = next(one for one in group.charts if LOCALITY in one.title)
    assert kept.curves[0].edits == (3, 6)
    assert not kept.immediate
    data = plain.convert_report(build_report([run._replace(rows=newest)]))
    shown = next(one for one in data["groups"][0]["curves"] if RELIABILITY in one["title"])
    assert [point["edits"] for point in shown["immediate"]["rome (r-rome)"]] == [1, 3, 6]


def test_what_is_missing_is_told(recorded):
    run = recorded("rome", lambda *_: True, lambda *_: True, skipped=2)
    assert build_report([run]).groups[0].problems == (("rome (r-rome)", "CG105", 2),)


def test_what_benchmarks_left_out_is_told(recorded):
    run = recorded("rome", lambda *_: True, lambda *_: True)
    counts = {
        "zsre": {
            "counts": {"records": 5},
            "dropped": {"the subject is not in the prompt": 2},
            "skipped": {},
            "flagged": {"no-op": 1},
            "unknown_fields": {"requested_rewrite": 5},
        }
    }
    told = run._replace(manifest=run.manifest.model_copy(update={"counts": counts}))
    made = build_report([told])
    assert made.groups[0].exclusions == (
        ("zsre", "records dropped: the subject is not in the prompt", 2),
        ("zsre", "cases flagged: no-op", 1),
        ("zsre", "records with the unknown field: requested_rewrite", 5),
    )
    assert "- zsre: 1 cases flagged: no-op" in plain.render_markdown(made)
    assert {"benchmark": "zsre", "reason": "cases flagged: no-op", "count": 1} in (
        plain.convert_report(made)["groups"][0]["exclusions"]
    )
    assert build_report([run]).groups[0].exclusions == ()


def test_intervals_are_found_as_the_first_run_says_or_as_wanted(recorded):
    """Every case is asked twice and wrong once: only answers within cases can vary."""
    moments = (1, 3, 6)
    run = recorded("memit", lambda *_: True, lambda *_: True, moments=moments)
    run = run._replace(
        rows=[row for row in run.rows if row.family == "reliability" for row in twice(row)]
    )
    own = Intervals(level=0.99, hierarchical=True)
    said = run._replace(spec=run.spec.model_copy(update={"intervals": own}))
    for made in (build_report([run], intervals=own), build_report([said])):
        assert made.bootstrap == own.bootstrap()
        taken = line(made.groups[0], RELIABILITY).estimates[0]
        assert taken.low < 0.5 < taken.high
        (chart,) = (one for one in made.groups[0].charts if RELIABILITY in one.title)
        shown = [taken, *chart.curves[0].estimates, line(made.groups[0], RELIABILITY).before]
        assert {one.bootstrap for one in shown} == {own.bootstrap()}
        assert chart.curves[0].estimates[-1].low == taken.low
    plain_one = line(build_report([run]).groups[0], RELIABILITY).estimates[0]
    assert taken.low < plain_one.low < 0.5 < plain_one.high < taken.high
    (compared,) = compare(said, said, [RELIABILITY])
    assert compared.difference.bootstrap == own.bootstrap()._replace(hierarchical=False)


def twice(row):
    other = replace(row, probe=row.probe + 100, answer=" Oslo")
    return row, other


def test_no_run_is_refused():
    with pytest.raises(MissingData):
        build_report([])


def test_markdown_and_latex_escape_and_mark_the_best(two):
    made = build_report(two)
    text = plain.render_markdown(made)
    row = next(one for one in text.splitlines() if one.startswith(f"| `{RELIABILITY}`"))
    assert "**100**" in row
    assert "@misc{rome2022" in text
    assert "note = {method rome (r-rome)}" in text
    assert "| rome (r-rome) | rome (r-rome) |" in text
    tex = plain.render_latex(made)
    assert r"\textbf{100}" in tex
    assert tex.count(r"\begin{tabular}") == 1
    assert re.search(r"[^\\]_", tex.replace(r"\_", "")) is None


def test_json_holds_every_number(two):
    data = json.loads(plain.render_json(build_report(two)))
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
    made = build_report(runs, title="A <b>bold</b> title")
    text = render_page(made)
    assert text == render_page(made)
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
    assert numbers.find_best(wanted, [estimate(0.5), estimate(0.5), None]) == {0, 1}
    assert numbers.find_best(wanted, [estimate(0.5), None]) == frozenset()
    fluency = metric("fluency@greedy")
    same = [estimate(5.0), estimate(6.2)]
    assert numbers.find_best(fluency, same, estimate(6.0)) == {1}
    assert numbers.find_best(fluency, same) == frozenset()
    assert fluency.protocol is Protocol.GREEDY
    # Nearest to that of the unedited model, which is 1 whatever the model.
    near = [estimate(0.4), estimate(1.1), estimate(3.0)]
    assert numbers.find_best(metric("perplexity_ratio@teacher_forced"), near) == {1}
    for name in ("leak@greedy", RELIABILITY):
        assert numbers.find_best(metric(name), [estimate(0.0), estimate(0.0)]) == frozenset()
    some = [estimate(0.0), estimate(0.0), estimate(0.5)]
    assert numbers.find_best(metric("leak@greedy"), some) == {0, 1}


def test_a_residual_that_is_always_0_is_shown_only_if_wanted(recorded):
    run = recorded("memit", lambda *_: True, lambda *_: True)
    name = "graph_residual"
    measured = [Measurement(case=str(i), name="restoration/graph", values=[2, 0]) for i in "12"]
    run = run._replace(measurements=measured)
    assert name not in [one.metric.name for one in summary.make_lines([run])]
    assert name in [one.metric.name for one in summary.make_lines([run], [name])]


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

    group = build_report([split(run) for run in two]).groups[0]
    parts = {part.title: part for part in group.parts}
    assert set(parts) == {"first", "second", f"{LOCALITY}, kind by kind"}
    first = dict(zip(parts["first"].names, parts["first"].lines, strict=True))
    assert [one.value for one in first[RELIABILITY].estimates] == [1.0, pytest.approx(2 / 3)]
    kinds = parts[f"{LOCALITY}, kind by kind"]
    assert kinds.names == ("locality/neighborhood", "locality/relation_specificity")
    assert [one.value for one in kinds.lines[0].estimates] == [0.5, 1.0]
    assert [one.value for one in kinds.lines[1].estimates] == [1.0, 1.0]
    made = build_report([split(run) for run in two])
    assert "### first" in plain.render_markdown(made)
    assert plain.render_latex(made).count(r"\begin{tabular}") == 4


def test_each_work_of_a_card_is_an_entry_of_its_own(recorded):
    always = lambda *_: True  # noqa: E731
    report = build_report([recorded("rome", always, always), recorded("ft", always, always)])
    entries = {one.key: one for one in report.citations}
    assert {"rome2022", "rome2024", "ft2020", "ft2023"} <= set(entries)
    # The baseline's card names a work of the other card again: one entry, for both.
    assert entries["rome2022"].about == "method rome (r-rome), method ft"
    assert "ft2022" not in entries
    assert "author = {Gupta and Baskaran and Anumanchipalli}" in entries["rome2024"].bibtex
    assert "Gupta" not in entries["rome2022"].bibtex
    assert "note = {FT-W}" in entries["ft2023"].bibtex
    assert entries["rome2022"].url
    assert not entries["rome2024"].url


@pytest.mark.parametrize(
    ("registry", "name"),
    [(METHODS, name) for name in METHODS.names()]
    + [(BENCHMARKS, name) for name in BENCHMARKS.names()],
)
def test_every_work_of_every_card_has_authors_a_title_and_a_year(registry, name):
    for one in read_citations(name, name, registry.card(name)):
        fields = dict(re.findall(r"^  (\w+) = \{(.*)\},$", one.bibtex, re.MULTILINE))
        assert {"author", "title", "year"} <= set(fields), one
        assert ";" not in one.bibtex
        assert not fields["title"].endswith(")")


def test_answers_of_every_protocol_are_marked(tmp_path):
    first = record_run("counterfact", write(tmp_path / "c.json", [COUNTERFACT]))
    failing = [
        replace(row, log_probs=[-3.0, -3.0]) if row.role == "generalization" else row
        for row in first.rows
    ]
    shown = build_report([first, first._replace(rows=failing)]).groups[0].side_by_side
    roles = {one.role: one for one in shown.probes}
    assert set(roles) == {"reliability", "generalization", "locality/neighborhood", "fluency"}
    assert roles["reliability"].answers == (("Asia (p 0.905)", True),) * 2
    assert roles["generalization"].answers == (
        ("Asia (p 0.905)", True),
        ("Africa (p 0.368)", False),
    )
    assert roles["locality/neighborhood"].expected == "Africa"
    assert {one.right for one in roles["fluency"].answers} == {None}
    assert [one.protocol for one in shown.probes][:2] == ["rank", "rank"]
    fed = record_run("knowedit-recent", write(tmp_path / "r.json", [RECENT]))
    shown = build_report([fed]).groups[0].side_by_side
    assert shown.probes[0].answers == (("2 of 2 tokens", True),)
    data = plain.convert_report(build_report([fed]))
    assert data["groups"][0]["side_by_side"]["probes"][0]["answers"]


def test_the_page_marks_what_is_right_and_wrong(two):
    pytest.importorskip("matplotlib", reason="the extra `report` is not installed")
    text = render_page(build_report(two, case="c3"))
    assert '<td class="text right"><span class="mark">\u2713</span>  Rome.</td>' in text
    assert '<td class="text wrong"><span class="mark">\u2717</span>' in text


def test_a_long_title_of_a_figure_is_broken_over_lines_and_a_dollar_sign_is_one():
    pytest.importorskip("matplotlib", reason="the extra `report` is not installed")
    share = Estimate(metric=RELIABILITY, value=0.5, low=0.4, high=0.6, n=3, items=3)
    title = "KL divergence of the next token from the unedited model (divergence/next@greedy:exact)"
    svg = figures.draw_curves(Chart(title, 100.0, (Curve("a $x_{ b", (1, 2), (share, share)),)))
    shown = [one.strip() for one in re.findall(r">([^<>]+)</t(?:ext|span)>", svg)]
    lines = [one for one in shown if one and one in title and len(one) > 5]
    assert " ".join(lines) == title
    assert all(len(one) <= 60 for one in lines)
    assert "a $x_{ b" in shown


def test_markdown_shows_what_models_and_files_say_as_text(two):
    made = build_report(two, title="a *b* <script>\n# c")
    group = replace(
        made.groups[0],
        labels=("x|y", "`code`"),
        problems=(("x|y", "[link](http://a)\n- item", 2),),
    )
    text = plain.render_markdown(replace(made, groups=(group,)))
    assert text.splitlines()[0] == r"# a \*b\* &lt;script> # c"
    assert r"- x\|y: 2 x \[link\](http://a) - item" in text
    assert r"| unedited | x\|y | \`code\` |" in text
    assert "<script>" not in text
