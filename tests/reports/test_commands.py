"""`corrigenda report` and `corrigenda compare` on runs kept in a folder."""

import json

import pytest
from typer.testing import CliRunner

import corrigenda as cg
from corrigenda.cli.main import app
from corrigenda.errors import BadConfig, MissingData
from corrigenda.testing.tiny import tiny_model


@pytest.fixture
def runs(recorded):
    return [
        recorded("rome", lambda *_: True, lambda case, _: case != 0),
        recorded("ft-m", lambda case, _: case < 2, lambda *_: True),
    ]


@pytest.fixture
def corrigenda(runs):
    kept = str(runs[0].folder.parent)

    def call(*words):
        return CliRunner().invoke(app, [*words, "--runs", kept])

    return call


def test_tables_are_printed_and_written(corrigenda, runs, tmp_path):
    ids = [run.manifest.run for run in runs]
    shown = corrigenda("report", *ids)
    assert shown.exit_code == 0, shown.output
    assert "reliability@greedy" in shown.output
    for ending, begins in ((".md", "# "), (".tex", r"\begin{table}"), (".json", "{")):
        file = tmp_path / f"out{ending}"
        assert corrigenda("report", *ids, "-o", str(file)).exit_code == 0
        assert file.read_text(encoding="utf-8").startswith(begins)


def test_the_beginning_of_an_id_is_enough(corrigenda, runs):
    shown = corrigenda("report", runs[0].manifest.run[:8], "--json")
    data = json.loads(shown.output)
    assert data["groups"][0]["runs"][0]["run"] == runs[0].manifest.run


def test_only_the_metrics_wanted(corrigenda, runs):
    shown = corrigenda("report", runs[0].manifest.run, "--metric", "locality@greedy", "--json")
    metrics = json.loads(shown.output)["groups"][0]["metrics"]
    assert [one["metric"] for one in metrics] == ["locality@greedy"]


def test_intervals_are_those_wanted(corrigenda, runs):
    run = runs[0].manifest.run
    wanted = ("report", run, "--metric", "reliability@greedy")
    shown = corrigenda(*wanted, "--level", "0.99", "--hierarchical")
    assert shown.exit_code == 0, shown.output
    assert "99 % interval over cases and their answers" in " ".join(shown.output.split())
    data = json.loads(corrigenda(*wanted, "--level", "0.99", "--json").output)
    assert data["intervals"] == {
        "seed": 0,
        "resamples": 1000,
        "level": 0.99,
        "hierarchical": False,
    }
    refused = corrigenda(*wanted, "--level", "99")
    assert refused.exit_code == 2
    assert "CG502" in refused.output


def test_a_page(corrigenda, runs, tmp_path):
    pytest.importorskip("matplotlib", reason="the extra `report` is not installed")
    file = tmp_path / "out.html"
    assert corrigenda("report", runs[0].manifest.run, "-o", str(file)).exit_code == 0
    assert file.read_text(encoding="utf-8").startswith("<!DOCTYPE html>")


def test_runs_are_compared(corrigenda, runs):
    ids = [run.manifest.run for run in runs]
    data = json.loads(corrigenda("compare", *ids, "--json").output)
    found = {one["metric"]: one for one in data["metrics"]}
    assert found["reliability@greedy"]["difference"]["value"] == pytest.approx(2 / 3)
    assert found["reliability@greedy"]["p_value"] == pytest.approx(0.125)
    assert "difference" in corrigenda("compare", *ids).output


def test_what_cannot_be_done_is_said(corrigenda, runs, tmp_path):
    run = runs[0].manifest.run
    odd = corrigenda("report", run, "-o", str(tmp_path / "out.docx"))
    assert odd.exit_code == 2
    assert "CG502" in odd.output
    assert "CG604" in corrigenda("report", "nothing").output
    assert "CG604" in corrigenda("report", run, "--case", "c99").output


def test_reports_and_comparisons_are_values_in_python(runs, tmp_path):
    folder = runs[0].folder.parent
    ids = [run.manifest.run for run in runs]
    document = cg.report(ids, folder=folder, metrics="reliability@greedy")
    assert "reliability@greedy" in repr(document)
    assert "<td>reliability@greedy</td>" in document._repr_html_()
    assert document.to_json() == cg.report(runs, metrics=["reliability@greedy"]).to_json()
    assert document.save(tmp_path / "r.md").read_text(encoding="utf-8").startswith("# ")
    with pytest.raises(BadConfig, match="names no form of report"):
        document.save(tmp_path / "r.doc")
    with pytest.raises(BadConfig, match="no level"):
        cg.report(ids, folder=folder, level=2.0)
    with pytest.raises(MissingData, match="at least one run"):
        cg.report([])
    found = cg.compare(runs[0], ids[1][:8], folder=folder)
    assert [line.metric.name for line in found] == [row[0] for row in found.table()[1:]]
    assert repr(found).splitlines()[0].split()[:4] == ["metric", "rome", "(r-rome)", "ft-m"]
    assert found.legend in found._repr_html_()
    assert len(found.to_json()["metrics"]) == len(found)


def test_an_evaluation_is_a_table_of_its_runs(tmp_path):
    lm = tiny_model("gpt2")
    specs = [
        cg.RunSpec(
            editor=cg.FtM(layer=layer, epochs=1),
            benchmark={"name": "pocketedit", "limit": 1, "options": {"world": "small"}},
            ask={"max_new_tokens": 2, "roles": ["reliability"]},
        )
        for layer in range(2)
    ]
    found = cg.evaluate(specs, lm=lm, folder=tmp_path)
    assert [run.spec.editor.title for run in found.runs] == [
        "ft-m(epochs=1, layer=0)",
        "ft-m(epochs=1, layer=1)",
    ]
    assert all(run.spec.model == lm.name for run in found.runs)
    assert "reliability@greedy" in repr(found)
    assert found.to_json()["runs"][0]["metrics"]
    assert found._repr_html_().count("<tr>") == len(found.table())
    assert cg.report(found).content.groups
    assert not found.has_errors
    with pytest.raises(BadConfig, match="a recipe or runs were expected"):
        cg.evaluate([])


def test_an_evaluation_shows_the_unedited_model_of_one_model_and_one_set_of_cases(tmp_path):
    lm = tiny_model("gpt2")
    options = {"world": "small"}

    def spec(seed):
        return cg.RunSpec(
            editor=cg.FtM(layer=0, epochs=1),
            benchmark={"name": "pocketedit", "limit": 1, "options": options | {"seed": seed}},
            ask={"max_new_tokens": 2, "roles": ["reliability"]},
        )

    found = cg.evaluate(spec(1), lm=lm, folder=tmp_path)
    heads, *rows = found.table()
    assert heads[:4] == ("metric", "", "n", "unedited")
    reliability = next(row for row in rows if row[0] == "reliability@greedy")
    assert reliability[3].split()[0] == "0"
    assert "unedited" in found._repr_html_()
    assert found.to_json()["unedited"]["reliability@greedy"]["value"] == 0
    several = cg.evaluate([spec(1), spec(2)], lm=lm, folder=tmp_path)
    assert {row[3] for row in several.table()[1:]} == {"-"}
