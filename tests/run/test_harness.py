"""Tasks of the harness on the model in memory: its own numbers, and those of the edited model."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from corrigenda.abilities import harness
from corrigenda.errors import BadConfig
from corrigenda.lm.interception import RewrittenPrompt
from corrigenda.lm.model import LanguageModel
from corrigenda.metrics.metric import RunRecords
from corrigenda.metrics.registry import evaluate
from corrigenda.rows import Measurement, Stage
from corrigenda.run import tasks
from corrigenda.run.spec import HealthSpec
from tests.run.conftest import Do, make
from tests.run.test_tasks import ITEMS, write

pytest.importorskip("lm_eval", reason="tasks of the harness need lm-eval (extra `harm`)")

CHOICE = """
task: sense
dataset_path: json
dataset_kwargs: {data_files: {test: %s}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{prompt}}"
doc_to_choice: choices
doc_to_target: answer
metric_list: [{metric: acc}, {metric: acc_norm}]
metadata: {version: 1.0}
"""
TEXT = """
task: prose
dataset_path: json
dataset_kwargs: {data_files: {test: %s}}
test_split: test
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{prompt}}"
metric_list: [{metric: word_perplexity}]
metadata: {version: 1.0}
"""
WRITTEN = """
task: written
dataset_path: json
dataset_kwargs: {data_files: {test: %s}}
test_split: test
output_type: generate_until
generation_kwargs: {until: ["\\n"], max_gen_toks: 4}
doc_to_text: "{{prompt}}"
doc_to_target: "{{choices[answer]}}"
metric_list: [{metric: exact_match}]
metadata: {version: 1.0}
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Three tasks on the same items, with a data set cache of this test's own."""
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    data = json.dumps(str(write(tmp_path / "items.jsonl", ITEMS)))
    place = tmp_path / "tasks"
    place.mkdir()
    for name, text in (("sense", CHOICE), ("prose", TEXT), ("written", WRITTEN)):
        (place / f"{name}.yaml").write_text(text % data, encoding="utf-8")
    return place


def health(folder: Path, *names: str) -> HealthSpec:
    tasks = [{"name": name, "kind": "harness", "file": str(folder)} for name in names]
    return HealthSpec(tasks=tasks)  # type: ignore[arg-type]  # as TOML gives them


def harness_tasks(folder: Path, *names: str) -> tuple[harness.HarnessTask, ...]:
    return tasks.harness_tasks(health(folder, *names))


def by_name(found: list[Measurement], name: str) -> dict[str, float]:
    return {one.case: one.values[0] for one in found if one.name == name}


def test_scores_are_those_of_the_harness(folder: Path, lm: LanguageModel) -> None:
    """RewrittenPrompt through its own model of the same Hugging Face model."""
    from lm_eval.evaluator import evaluate as evaluated
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    digest = lm.digest()
    found = harness.scores(lm, harness_tasks(folder, "sense", "prose", "written"))
    assert lm.digest() == digest
    manager = TaskManager(include_path=str(folder), include_defaults=False)
    own = evaluated(
        lm=HFLM(pretrained=lm.model, tokenizer=lm.tokenizer, max_length=128),
        task_dict=manager.load(["sense", "prose", "written"]),
        bootstrap_iters=0,
    )
    assert own is not None
    for metric in ("acc", "acc_norm"):
        items = by_name(found, f"task/sense.{metric}")
        assert items == {f"sense {one['doc_id']}": one[metric] for one in own["samples"]["sense"]}
    assert by_name(found, "task/prose.word_perplexity")["prose all"] == pytest.approx(
        own["results"]["prose"]["word_perplexity,none"], rel=1e-4
    )
    written = by_name(found, "task/written.exact_match")
    assert sum(written.values()) == 3 * own["results"]["written"]["exact_match,none"]


def test_the_edited_model_is_scored_beside_the_unedited(do: Do, folder: Path) -> None:
    spec = make(health={"tasks": health(folder, "sense", "prose").model_dump()["tasks"]})
    recorded = do(spec)
    assert "lm_eval" in recorded.manifest.versions
    for name, items in (("sense.acc", 3), ("prose.word_perplexity", 1)):
        own = [one for one in recorded.measurements if one.name == f"task/{name}"]
        for stage in Stage:
            assert sum(one.stage == stage for one in own) == 3 * items
    prose = [one for one in recorded.measurements if one.name == "task/prose.word_perplexity"]
    before = {one.values[0] for one in prose if one.stage == Stage.BEFORE}
    assert len(before) == 1
    assert not before & {one.values[0] for one in prose if one.stage == Stage.AFTER}
    found = {one.metric: one for one in evaluate(RunRecords(recorded.rows, recorded.measurements))}
    assert found["task/sense.acc"].n == 9
    assert found["task_retention/prose.word_perplexity"].value > 0


def test_prompts_that_are_rewritten_are_asked_so(folder: Path, lm: LanguageModel) -> None:
    """The harness's likelihoods go through edits of prompts, as all questions do."""

    from lm_eval.api.instance import Instance

    class Prefixed:
        def rewrite(self, lm: LanguageModel, prompts: list[str]) -> list[RewrittenPrompt]:
            return [RewrittenPrompt(f"In truth, {prompt}") for prompt in prompts]

    model = harness.model_for(lm, None)

    def likelihood(prompt: str) -> float:
        asked = Instance("loglikelihood", {}, (prompt, " cold"), 0)
        return model.loglikelihood([asked])[0][0]

    plain = likelihood("Snow is")
    with lm.interceptors.activate(Prefixed()):
        rewritten = likelihood("Snow is")
    assert rewritten != pytest.approx(plain, abs=1e-4)
    assert rewritten == pytest.approx(likelihood("In truth, Snow is"), abs=1e-4)


def test_a_task_that_is_not_known_is_told(folder: Path, lm: LanguageModel) -> None:
    with pytest.raises(BadConfig, match='no task "absent"'):
        harness.scores(lm, harness_tasks(folder, "absent"))


def test_a_run_is_another_where_the_tasks_are(folder: Path) -> None:
    first = tasks.harness_digest(health(folder, "sense"))
    file = folder / "sense.yaml"
    file.write_text(file.read_text(encoding="utf-8") + "\n# other\n", encoding="utf-8")
    assert tasks.harness_digest(health(folder, "sense")) != first
