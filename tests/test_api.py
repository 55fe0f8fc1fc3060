"""The Python API: an edit is a value, and its report says what it did."""

from __future__ import annotations

import ast
import importlib
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import transformers

import corrigenda as cg
from corrigenda.assessment import Outcome
from corrigenda.benchmarks.benchmark import BENCHMARKS
from corrigenda.engines.locate.contexts import Contexts
from corrigenda.errors import (
    AmbiguousSubject,
    BadConfig,
    MalformedFacts,
    NotAModel,
    UnknownMethod,
)
from corrigenda.methods.registry import METHODS
from corrigenda.progress import show_progress
from corrigenda.prompt_answers import Role, begins_with_target, check_targets
from corrigenda.testing.tiny import tiny_model
from tests.support.tiny_on_disk import nearest_fact

SETTINGS = {
    "layer": 2,
    "use_moment": False,
    "contexts": Contexts(),
    "steps": 40,
    "clamp": 20.0,
    "weight_decay": 0.0,
    "kl_weight": 0.0,
}


@pytest.fixture(scope="module")
def lm() -> cg.LanguageModel:
    return tiny_model("llama")


@pytest.fixture(scope="module")
def fact(lm: cg.LanguageModel) -> cg.Fact:
    return nearest_fact(lm)


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("CORRIGENDA_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module")
def correction(lm: cg.LanguageModel, fact: cg.Fact, cache: None) -> cg.Assessment:
    return cg.correct(lm, fact, **SETTINGS)


def test_every_public_name_exists() -> None:
    assert set(cg.__all__) <= set(dir(cg))
    for name in cg.__all__:
        assert getattr(cg, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'corect'"):
        _ = cg.corect


def test_import_is_free_of_torch() -> None:
    program = "import sys, corrigenda; corrigenda.Fact; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", program], check=True)


def test_edit_is_a_value(lm: cg.LanguageModel, fact: cg.Fact) -> None:
    digest = lm.digest()
    before = cg.answer(lm, fact.prompt)
    with pytest.warns(UserWarning, match="not converged"):
        patch = cg.edit(lm, fact, "rome", **SETTINGS)
    assert lm.digest() == digest
    with patch.apply(lm):
        assert cg.answer(lm, fact.prompt).startswith(fact.target)
    assert lm.digest() == digest
    assert cg.answer(lm, [fact.prompt]) == [before]


def test_correction_says_what_the_edit_did(correction: cg.Assessment, fact: cg.Fact) -> None:
    assert correction.outcomes == (Outcome.SUCCEEDED,)
    assert correction.succeeded
    assert not correction.is_no_op
    assert [item.role for item in correction.answers] == [Role.PROMPT, Role.NEIGHBOUR]
    assert correction.share(Role.PROMPT) in (0.0, 1.0)
    assert correction.share(Role.PARAPHRASE) is None
    kept = correction.answers[1].kept
    assert correction.share(Role.NEIGHBOUR) == float(kept)
    (change,) = correction.changes
    assert change.rank == 1
    assert change.stored == sum(correction.patch.changes[cg.Site(2)].shape)
    assert correction.config["layer"] == 2


def test_size_of_the_change(lm: cg.LanguageModel, correction: cg.Assessment) -> None:
    before = lm.weight(cg.Site(2)).double().clone()
    with correction.patch.apply(lm):
        after = lm.weight(cg.Site(2)).double().clone()
    (change,) = correction.changes
    assert change.relative_norm == pytest.approx(
        float((after - before).norm() / before.norm()), rel=1e-4
    )


def test_facts_that_hold_are_left_out(
    lm: cg.LanguageModel, correction: cg.Assessment, fact: cg.Fact
) -> None:
    with correction.patch.apply(lm):
        assert check_targets(lm, [fact, replace(fact, target="nothing of the kind")]) == [
            True,
            False,
        ]
        with pytest.warns(UserWarning, match=f'CG107 .* "{fact.target}" already'):
            patch = cg.edit(lm, fact, **SETTINGS)
        again = cg.correct(lm, fact, **SETTINGS)
    assert patch.is_empty
    assert again.patch.is_empty
    assert again.outcomes == (Outcome.ALREADY_TRUE,)
    assert again.is_no_op
    assert not any(item.changed for item in again.answers)
    assert again.changes == ()


def test_an_alias_counts_as_the_target(
    lm: cg.LanguageModel, correction: cg.Assessment, fact: cg.Fact
) -> None:
    with correction.patch.apply(lm):
        assert check_targets(lm, [replace(fact, target="Nowhere", aliases=(fact.target,))]) == [
            True
        ]


def test_no_separator_is_read_off_the_continuation(lm: cg.LanguageModel) -> None:
    (reply,) = cg.ask(lm, ["The river is"])
    said = cg.Fact(prompt="The river is", target=reply.continuation[:8], separator="")
    assert check_targets(lm, [said, replace(said, target="nothing")]) == [True, False]


def test_ask(lm: cg.LanguageModel) -> None:
    (reply,) = cg.ask(lm, ["The river is"], top=3)
    assert len(reply.top) == 3
    assert reply.top[0][1] >= reply.top[1][1] >= reply.top[2][1] > 0
    assert reply.answer == cg.answer(lm, "The river is")
    with pytest.raises(BadConfig, match="no chat template"):
        cg.ask(lm, ["The river is"], chat=True)


def test_a_missing_subject_is_found_or_asked_for(lm: cg.LanguageModel, fact: cg.Fact) -> None:
    found = cg.correct(lm, replace(fact, subject=None), **SETTINGS)
    assert found.facts[0].subject == fact.subject
    assert any("(found)" in line for line in found.notices)
    with pytest.raises(AmbiguousSubject, match=r"(?s)^CG104 .*--subject"):
        cg.edit(lm, cg.Fact(prompt="the sky over Rome and Milan is", target="blue"), **SETTINGS)


def test_unknown_method_and_option_are_refused(lm: cg.LanguageModel, fact: cg.Fact) -> None:
    with pytest.raises(UnknownMethod, match='Did you mean "rome"'):
        cg.edit(lm, fact, "romee")
    with pytest.raises(BadConfig, match="learning_rat"):
        cg.edit(lm, fact, learning_rat=1.0)


def test_load_by_path_and_dtype(tmp_path: Path, lm: cg.LanguageModel) -> None:
    lm.model.save_pretrained(tmp_path)
    lm.tokenizer.save_pretrained(tmp_path)
    assert cg.load(tmp_path, dtype="bfloat16").dtype == torch.bfloat16
    assert cg.load(tmp_path, dtype=torch.float64).dtype == torch.float64
    with pytest.raises(BadConfig, match='Did you mean "float32"'):
        cg.load(tmp_path, dtype="flaot32")


def test_answers_begin_with_whole_words() -> None:
    fact = cg.Fact(prompt="a", target="Rom", aliases=("Roma",))
    assert begins_with_target("Rom, of course", fact)
    assert begins_with_target("Roma", fact)
    assert not begins_with_target("Romania", fact)
    assert not begins_with_target("in Rom", fact)


def test_editors_and_benchmarks_are_listed_without_importing_them() -> None:
    """The static list, for type checkers and `import *`, holds exactly what is registered."""
    classes = METHODS.class_names() | BENCHMARKS.class_names()
    assert set(classes.values()) == {*METHODS.names(), *BENCHMARKS.names()}
    others = set(vars(cg)["_HOMES"])
    assert set(cg.__all__) == others | set(classes)
    assert set(classes) <= set(dir(cg))
    source = Path(cg.__file__).read_text(encoding="utf-8")
    blocks = (
        node
        for node in ast.parse(source).body
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
    )
    typed = {
        name.asname or name.name: (node.module, name.name)
        for block in blocks
        for node in block.body
        if isinstance(node, ast.ImportFrom)
        for name in node.names
    }
    assert set(typed) == set(cg.__all__)
    for name, (module, attribute) in typed.items():
        assert getattr(importlib.import_module(module), attribute) is getattr(cg, name), name
    program = "import sys, corrigenda as cg; dir(cg); assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", program], check=True)


def test_a_mistyped_class_names_the_closest() -> None:
    with pytest.raises(AttributeError, match=r"no attribute 'Memmit'\. Did you mean .Memit"):
        _ = cg.Memmit


def test_an_editor_object_is_the_argument(lm: cg.LanguageModel, fact: cg.Fact) -> None:
    editor = cg.Rome(**SETTINGS)
    with pytest.warns(UserWarning, match="not converged"):
        by_object = cg.edit(lm, fact, editor)
    with pytest.warns(UserWarning, match="not converged"):
        by_name = cg.edit(lm, fact, "ROME", **SETTINGS)
    assert by_object == by_name
    assert cg.correct(lm, fact, editor).patch == by_object
    assert cg.fit(lm, editor).tensors == {}


@pytest.mark.parametrize("given", [{"layer": 2}, {"steps": 3}])
def test_options_next_to_an_object_are_refused(
    lm: cg.LanguageModel, fact: cg.Fact, given: dict[str, object]
) -> None:
    (name,) = given
    for function in (cg.edit, cg.correct):
        with pytest.raises(BadConfig, match=rf"(?s)^CG502 .*{name}.*Rome\({name}=\.\.\.\)"):
            function(lm, fact, cg.Rome(), **given)
    with pytest.raises(BadConfig, match="next to an editor object"):
        cg.fit(lm, cg.Rome(), **given)
    with pytest.raises(BadConfig, match=r"(?s)is called `editor`.*editor='rome'"):
        cg.edit(lm, fact, method="rome", **given)


@pytest.mark.parametrize("editor", [cg.Rome, None, 3, {"name": "rome"}])
def test_what_is_no_editor_is_refused(lm: cg.LanguageModel, fact: cg.Fact, editor: object) -> None:
    with pytest.raises(BadConfig, match=r"(?s)^CG502 .*an editor or the name of a method"):
        cg.edit(lm, fact, editor)


def test_runs_take_objects() -> None:
    for name in METHODS.names():
        editor = METHODS.get(name)()
        spec = cg.RunSpec(editor=editor, benchmark=cg.PocketEdit())
        # A seed that the object leaves open is the run's.
        seeded = {"seed": spec.seed} if "seed" in type(editor).model_fields else {}
        assert spec.build_editor() == editor.model_copy(update=seeded)
        assert spec.editor.title.startswith(name)
    spec = cg.RunSpec(editor=cg.Rome(layer=3), benchmark="pocketedit")
    assert spec.editor.title == "rome(layer=3)"
    assert spec.benchmark[0].name == "pocketedit"
    assert cg.RunSpec.model_validate(spec.model_dump(mode="json")) == spec
    with pytest.raises(BadConfig, match="benchmark"):
        cg.RunSpec(editor="rome", benchmark=3)


def test_models_in_memory_are_wrapped(lm: cg.LanguageModel) -> None:
    model, tokenizer = lm.model, lm.tokenizer
    wrapped = cg.wrap(model, tokenizer, name="mine")
    assert (wrapped.model, wrapped.name) == (model, "mine")
    assert cg.wrap(lm) is lm
    assert cg.wrap(torch.compile(model), tokenizer).model is model
    pipe = transformers.pipeline("text-generation", model=model, tokenizer=tokenizer)
    assert cg.wrap(pipe).model is model
    assert cg.answer(wrapped, "The river is") == cg.answer(lm, "The river is")


def test_an_adapted_model_is_wrapped(fact: cg.Fact) -> None:
    peft = pytest.importorskip("peft", reason="the adapter is peft's")
    torch.manual_seed(0)
    lm = tiny_model("llama")
    adapters = peft.LoraConfig(target_modules=["down_proj"], init_lora_weights=False, r=2)
    adapted = cg.wrap(peft.get_peft_model(lm.model, adapters), lm.tokenizer)
    digest, before = adapted.digest(), cg.answer(adapted, fact.prompt)
    patch = cg.edit(adapted, fact, cg.Rome(**SETTINGS | {"steps": 60}))
    with patch.apply(adapted):
        assert cg.answer(adapted, fact.prompt) != before
    assert (adapted.digest(), cg.answer(adapted, fact.prompt)) == (digest, before)


@pytest.mark.parametrize(
    ("given", "write"),
    [
        ("pocket", 'cg.load("pocket")'),
        (Path("a/folder"), 'cg.load("a/folder")'),
        ({"model": 1}, "cg.load("),
        (None, "cg.wrap(model, tokenizer)"),
        (torch.nn.Linear(1, 1), "cg.wrap(model, tokenizer)"),
        (cg.LanguageModel, "not its class"),
    ],
)
def test_what_is_no_model_is_refused_with_what_to_write(given: object, write: str) -> None:
    fact = cg.Fact(prompt="Rome is in", subject="Rome", target="Italy")
    uses = [
        lambda: cg.wrap(given),
        lambda: cg.ask(given, "Rome is in"),
        lambda: cg.answer(given, "Rome is in"),
        lambda: cg.fit(given),
        lambda: cg.edit(given, fact),
        lambda: cg.correct(given, fact),
        lambda: cg.assess(given, None, fact),
        lambda: cg.trace(given, "Rome is in"),
        lambda: cg.neurons(given, "Rome is in"),
        lambda: cg.transform(None, given),
        lambda: cg.perplexity_ratio(given, None, ["Rome is in Italy"]),
        lambda: cg.export(None, given, "folder"),
        lambda: cg.build_editor(given),
        lambda: cg.evaluate("pocket-quick", lm=given) if given is not None else cg.wrap(given),
    ]
    for use in uses:
        with pytest.raises(NotAModel, match=r"^CG307 ") as info:
            use()
        assert write in str(info.value)


def test_a_bare_model_and_a_pair_are_told_apart(lm: cg.LanguageModel) -> None:
    with pytest.raises(NotAModel, match="without its tokenizer"):
        cg.wrap(lm.model)
    with pytest.raises(NotAModel, match=r"cg\.wrap\(model, tokenizer\)"):
        cg.ask(lm.model, "Rome is in")
    with pytest.raises(NotAModel, match=r"cg\.wrap\(\*pair\)"):
        cg.ask((lm.model, lm.tokenizer), "Rome is in")
    with pytest.raises(NotAModel, match="a tokenizer was expected"):
        cg.wrap(lm.model, "pocket")
    for arguments in ((lm.model, lm.tokenizer), (lm.model,), ("pocket", lm.tokenizer)):
        with pytest.raises(NotAModel, match=r"cg\.wrap\(model, tokenizer\)"):
            cg.load(*arguments)


def test_one_prompt_gives_one_reply(lm: cg.LanguageModel) -> None:
    reply = cg.ask(lm, "The river is")
    assert isinstance(reply, cg.Reply)
    assert [reply] == cg.ask(lm, ["The river is"]) == cg.ask(lm, ("The river is",))
    assert str(reply) == reply.answer == cg.answer(lm, "The river is")
    assert cg.ask(lm, []) == []
    with pytest.raises(BadConfig, match="a prompt is text"):
        cg.ask(lm, [1])


def test_any_patch_is_assessed(
    lm: cg.LanguageModel, correction: cg.Assessment, fact: cg.Fact, tmp_path: Path
) -> None:
    digest = lm.digest()
    loaded = cg.load_patch(correction.patch.save(tmp_path / "p.safetensors"))
    again = cg.assess(lm, loaded)
    assert (again.facts, again.outcomes) == (correction.facts, correction.outcomes)
    assert (again.answers, again.changes) == (correction.answers, correction.changes)
    assert again.statuses == correction.statuses != ("",)
    assert again.config["layer"] == 2
    kept = cg.answer(lm, "The river is")
    other = cg.assess(lm, loaded, {"prompt": "The river is", "target": kept})
    assert other.outcomes[0] in (Outcome.ALREADY_TRUE, Outcome.FAILED)
    assert lm.digest() == digest
    with pytest.raises(BadConfig, match=r"(?s)names no facts.*Give the facts"):
        cg.assess(lm, cg.edit(lm, [], **SETTINGS))


def test_a_true_fact_that_a_patch_breaks_has_failed(
    lm: cg.LanguageModel, correction: cg.Assessment, fact: cg.Fact
) -> None:
    said = replace(fact, target=cg.answer(lm, fact.prompt), neighbours=())
    broken = cg.assess(lm, correction.patch, said)
    assert broken.outcomes == (Outcome.FAILED,)
    assert not broken.succeeded


def test_what_should_stay_is_judged_by_the_answer_alone(
    correction: cg.Assessment, fact: cg.Fact
) -> None:
    own = correction.answers[0]
    pairs = [
        (Role.NEIGHBOUR, "Berlin, which is a city", "Berlin. It is"),
        (Role.NEIGHBOUR, "Berlin", "Rome, Italy"),
        (Role.SAME_SUBJECT, "French and", "French, but"),
        (Role.SAME_SUBJECT, "French", "Latin"),
        (Role.SAME_SUBJECT, "the euro", "the lira"),
    ]
    answers = [
        replace(own, prompt=f"about {before}", role=role, before=before, after=after)
        for role, before, after in pairs
    ]
    changed = replace(correction, answers=(own, *answers))
    assert [item.kept for item in answers] == [True, False, True, False, False]
    assert changed.share("neighbour") == 1 / 2
    assert changed.share("same subject") == 1 / 3
    data = changed.to_json()
    assert data["neighbours_kept"] == 1 / 2
    assert data["same_subject_kept"] == 1 / 3
    assert [item["wanted"] for item in data["answers"][1:]] == [item.kept for item in answers]
    assert "neighbours kept 1/2, same subject kept 1/3" in repr(changed)


def test_other_facts_of_the_subject_are_asked(lm: cg.LanguageModel, fact: cg.Fact) -> None:
    asked = replace(fact, same_subject=("The Space Needle was built by",))
    found = cg.assess(lm, cg.edit(lm, fact, "rome", **SETTINGS), asked)
    assert [item.role for item in found.answers] == [*[Role.PROMPT, Role.NEIGHBOUR], "same subject"]
    assert found.share("same subject") == float(found.answers[2].kept)


def test_roles_are_plain_words(correction: cg.Assessment) -> None:
    assert correction.share("neighbour") == correction.share(Role.NEIGHBOUR)
    with pytest.raises(BadConfig, match='Did you mean "neighbour"'):
        correction.share("neighbor")


def test_an_assessment_is_shown_as_a_table(correction: cg.Assessment, fact: cg.Fact) -> None:
    summary, head, row = repr(correction).splitlines()
    assert summary.startswith("rome: facts true 1/1, neighbours kept ")
    assert head.split() == ["prompt", "target", "outcome", "before", "after"]
    assert fact.prompt in row
    assert "succeeded" in row
    shown = replace(correction, facts=(replace(fact, prompt=f"<{fact.prompt}"),))._repr_html_()
    assert f"<td>&lt;{fact.prompt}</td>" in shown
    many = replace(
        correction,
        facts=(fact,) * 12,
        outcomes=correction.outcomes * 12,
        answers=tuple(replace(correction.answers[0], fact=index) for index in range(12)),
    )
    assert repr(many).endswith("... 2 more")


def test_dictionaries_are_facts(lm: cg.LanguageModel, fact: cg.Fact) -> None:
    record = {"prompt": fact.prompt, "subject": fact.subject, "target": fact.target}
    assert cg.edit(lm, record, **SETTINGS) == cg.edit(lm, [record], **SETTINGS)
    for bad in ("The capital", 3, [3], [record, "x"], {"prompt": "a"}, None):
        with pytest.raises(MalformedFacts, match=r"^CG101 "):
            cg.edit(lm, bad, **SETTINGS)


def test_a_fact_goes_straight_into_the_analyses(lm: cg.LanguageModel, fact: cg.Fact) -> None:
    by_fact = cg.trace(lm, fact, samples=2)
    by_text = cg.trace(lm, fact.prompt, fact.subject, kinds="state", samples=2)
    found = cg.trace(lm, fact.prompt, samples=2)
    assert repr(by_fact) == repr(by_text) == repr(found) == by_fact.summary()
    drawn = by_fact.plot()
    assert "early site" in str(drawn)
    assert drawn._repr_html_().startswith("<pre")
    with pytest.raises(BadConfig, match='no kind "mpl"'):
        cg.trace(lm, fact, kinds=["mpl"])
    neurons = cg.neurons(lm, fact, paraphrases=[], steps=2)
    assert neurons.prompts == (fact.prompt,)
    assert repr(neurons) == neurons.summary()


def test_progress_is_shown_in_a_terminal_only(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def reports(progress: object = None) -> bool:
        with show_progress(progress) as report:
            if report is not None:
                report("fit", 1, 2)
        return report is not None

    monkeypatch.delenv("CORRIGENDA_PROGRESS", raising=False)
    assert not reports()
    assert reports(progress=True)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    assert reports()
    assert not reports(progress=False)
    monkeypatch.setenv("CORRIGENDA_PROGRESS", "0")
    assert not reports()
    calls: list[tuple[str, int, int]] = []
    assert reports(lambda *call: calls.append(call))
    assert calls == [("fit", 1, 2)]
    assert capsys.readouterr().out == ""


def test_progress_in_a_notebook_without_widgets_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shell = type("ZMQInteractiveShell", (), {})()
    monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace(get_ipython=lambda: shell))
    monkeypatch.setitem(sys.modules, "ipywidgets", None)
    monkeypatch.delenv("CORRIGENDA_PROGRESS", raising=False)
    with show_progress(None) as report:
        assert report is not None
        report("fit", 12, 24)
    assert "\rfit [############            ] 12/24" in capsys.readouterr().err


def test_edits_are_logged(
    lm: cg.LanguageModel, fact: cg.Fact, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("INFO", logger="corrigenda"):
        cg.edit(lm, fact, **SETTINGS)
    assert "rome: 1 of 1 facts edited" in caplog.text
