"""`edit`, `ask` and `fit` on a tiny model."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import corrigenda
from corrigenda.facts import Fact
from corrigenda.lm.decoding import greedy
from tests.support.chat import chat_model
from tests.support.tiny_on_disk import QUICK, Run


def digest_of(folder: Path) -> str:
    return corrigenda.load(folder).digest()


def test_edit_prints_what_changed_and_keeps_the_patch(
    run: Run, model: Path, fact: Fact, tmp_path: Path
) -> None:
    before = digest_of(model)
    file = tmp_path / "patch.safetensors"
    ran = run(
        *("edit", model, fact.prompt, "-s", fact.subject, "-t", fact.target, "-m", "rome"),
        *("--paraphrase", "Space Needle, in", "--neighbour", fact.neighbours[0], "-o", file),
        *("--same-subject", "The Space Needle was built by", *QUICK),
    )
    assert ran.code == 0
    assert f"{fact.prompt} {fact.target}  [succeeded; " in ran.out
    assert all(
        word in ran.out
        for word in ("paraphrase", "neighbour", "same subject", "2.mlp.down", "To undo it")
    )
    assert digest_of(model) == before
    patch = corrigenda.load_patch(file)
    lm = corrigenda.load(model)
    with patch.apply(lm):
        assert greedy(lm, [fact.prompt])[0].startswith(f" {fact.target}")
    assert lm.digest() == before


def test_edit_json_holds_everything(run: Run, model: Path, fact: Fact) -> None:
    ran = run("edit", model, fact.prompt, "-t", fact.target, "--json", *QUICK)
    assert ran.code == 0
    data = ran.json
    assert data["succeeded"] is True
    assert data["no_op"] is False
    assert data["file"] is None
    assert data["facts"][0]["subject"] == "Space Needle"
    assert data["facts"][0]["status"] == "succeeded"
    assert [item["role"] for item in data["answers"]] == ["prompt"]
    assert data["answers"][0]["after"].startswith(fact.target)
    (change,) = data["changes"]
    assert change["site"] == "2.mlp.down"
    assert change["rank"] == 1
    assert change["relative_norm"] > 0
    assert set(data["seconds"]) == {"fit", "edit", "ask"}
    assert 'subject of "The Space Needle is in": "Space Needle" (found)' in ran.err


def test_a_fact_that_holds_already_is_a_no_op(
    run: Run, exported: Path, fact: Fact, tmp_path: Path
) -> None:
    file = tmp_path / "none.safetensors"
    arguments = ("edit", exported, fact.prompt, "-s", fact.subject, "-t", fact.target)
    ran = run(*arguments, "-o", file, *QUICK)
    assert ran.code == 0
    assert "[already true]" in ran.out
    assert ran.err.startswith("CG107 AlreadyTrue: the model says")
    assert not file.exists()
    assert run(*arguments, "--json", *QUICK).json["no_op"] is True


def test_an_edit_that_does_not_take_is_a_finding(run: Run, model: Path, fact: Fact) -> None:
    ran = run(
        *("edit", model, fact.prompt, "-s", fact.subject, "-t", fact.target, "--layer", "1"),
        *("--set", "steps=1", "--set", "use_moment=false", "--set", "variant=denominator"),
    )
    assert ran.code == 1
    assert "[failed; " in ran.out


def test_many_facts_from_a_file(run: Run, model: Path, fact: Fact, tmp_path: Path) -> None:
    file = tmp_path / "facts.jsonl"
    second = {"prompt": fact.neighbours[0], "subject": "Eiffel Tower", "target": fact.target}
    first = {"prompt": fact.prompt, "subject": fact.subject, "target": fact.target}
    file.write_text(f"{json.dumps(first)}\n{json.dumps(second)}\n")
    text = tmp_path / "text.txt"
    text.write_text("The Space Needle is a tower in Seattle, near the sea. " * 100)
    ran = run(
        *("edit", model, "--facts", file, "-m", "memit", "--text", text, "--json"),
        *("--set", "layers=[1]", "--set", "steps=3", "--set", "weight=10"),
    )
    assert ran.code in (0, 1)
    assert [item["name"] for item in ran.json["facts"]] == ["facts.jsonl:1", "facts.jsonl:2"]
    assert ran.json["changes"][0]["rank"] == 2
    ran = run("edit", model, "--facts", file, "-m", "rome", *QUICK)
    assert ran.code == 2
    assert ran.err.startswith("CG106 ")


def test_mistyped_method_model_and_option(run: Run, model: Path) -> None:
    arguments = ("The Space Needle is in", "-t", "Rome")
    ran = run("edit", model, *arguments, "-m", "romme")
    assert ran.code == 2
    assert 'Did you mean "rome"?' in ran.err
    ran = run("edit", "pocked", *arguments)
    assert ran.code == 2
    assert ran.err.startswith("CG301 ")
    assert 'Did you mean "pocket"?' in ran.err
    ran = run("edit", model, *arguments, "--set", "stepps=3")
    assert ran.code == 2
    assert 'Did you mean "steps"?' in ran.err
    ran = run("edit", model, *arguments, "--dtype", "float31")
    assert ran.code == 2
    assert 'Did you mean "float32"?' in ran.err
    ran = run("edit", model, *arguments, "--device", "toaster")
    assert (ran.code, ran.err[:5]) == (2, "CG502")


def test_subject_that_is_not_certain_is_asked_for(run: Run, model: Path) -> None:
    ran = run("edit", model, "The river between Rome and Milan is", "-t", "Po", *QUICK)
    assert ran.code == 2
    assert ran.err.startswith("CG104 ")
    assert "--subject" in ran.err


def test_ask(run: Run, model: Path, fact: Fact, patch_file: Path) -> None:
    data = run("ask", model, fact.prompt, "The Eiffel Tower is in", "--json", "--top", 3).json
    assert [reply["prompt"] for reply in data["replies"]] == [fact.prompt, "The Eiffel Tower is in"]
    assert len(data["replies"][0]["top"]) == 3
    ran = run("ask", model, fact.prompt)
    assert ran.code == 0
    assert "next token" in ran.out
    data = run("ask", model, fact.prompt, "--patch", patch_file, "--json").json
    assert data["replies"][0]["answer"].startswith(fact.target)
    assert data["replies"][0]["before"]["answer"] != data["replies"][0]["answer"]
    assert "without the patch" in run("ask", model, fact.prompt, "--patch", patch_file).out


def test_fit_is_kept_and_found_again(run: Run, model: Path, cache: Path, tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("The Space Needle is a tower in Seattle, near the sea. " * 100)
    out = tmp_path / "state.safetensors"
    arguments = ("fit", model, "-m", "memit", "--text", text, "--set", "layers=[1]", "-o", out)
    ran = run(*arguments, "--json")
    assert ran.code == 0
    assert any("1.mlp.down" in name for name in ran.json["tensors"])
    assert out.is_file()
    kept = {path: path.stat().st_mtime_ns for path in cache.rglob("*.safetensors")}
    again = run(*arguments)
    assert again.code == 0
    assert "1.mlp.down" in again.out
    assert {path: path.stat().st_mtime_ns for path in cache.rglob("*.safetensors")} == kept


def test_empty_text_is_refused(run: Run, model: Path, tmp_path: Path) -> None:
    text = tmp_path / "nothing.txt"
    text.write_text("\n \n")
    ran = run("fit", model, "-m", "memit", "--text", text, "--set", "layers=[1]")
    assert (ran.code, ran.err[:5]) == (2, "CG602")


def test_a_facts_file_without_facts_is_refused(run: Run, model: Path, tmp_path: Path) -> None:
    file = tmp_path / "facts.jsonl"
    for text in ("", "\n\n"):
        file.write_text(text)
        ran = run("edit", model, "--facts", file, "-m", "memit")
        assert ran.code == 2
        assert ran.err.startswith("CG101 MalformedFacts: ")
        assert "holds no facts." in ran.err


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (("trace", "MODEL", "The Space Needle is in", "-s", "Space Needle", "-t", ""), "CG102"),
        (("neurons", "MODEL", "The Space Needle is in", "-t", ""), "CG102"),
        (("ask", "MODEL", "x", "--device", "meta"), "CG502"),
        (("ask", "MODEL", "caf\udce9 is"), "CG502"),
        (("edit", "MODEL", "--facts", "caf\udce9.jsonl"), "CG502"),
        (("edit", "MODEL", "--facts", "/dev/full"), "CG101"),
        (("edit", "MODEL", "--facts", "/"), "CG101"),
        (("edit", "MODEL", "Rome is in", "-t", "x", "--set", "steps=NaN"), "CG502"),
        (("edit", "MODEL", "Rome is in", "-t", "x", "--set", "steps=" + "9" * 5000), "CG502"),
        (("edit", "MODEL", "Rome is in", "-t", "x", "--set", "steps=" + "[" * 2000), "CG502"),
        (("edit", "MODEL", "Rome is in", "-t", "x", "--set", "learning_rate=1e999"), "CG502"),
        (("edit", "MODEL", "Rome is in", "-t", "x", "--set", 'norm="\\ud800"'), "CG502"),
    ],
)
def test_misuse_has_a_code(run: Run, model: Path, arguments: tuple[str, ...], code: str) -> None:
    ran = run(*(model if one == "MODEL" else one for one in arguments))
    assert (ran.code, ran.err[:5]) == (2, code)


def test_facts_of_another_framework_are_edited(
    run: Run, model: Path, fact: Fact, tmp_path: Path
) -> None:
    file = tmp_path / "facts.csv"
    file.write_text(f"prompt,subject,target_new\n{fact.prompt},{fact.subject},{fact.target}\n")
    ran = run("edit", model, "--facts", file, "--json", *QUICK)
    assert ran.code == 0
    assert ran.json["facts"][0]["target"] == fact.target


def test_a_chat_model_is_shown_in_both_forms(run: Run, fact: Fact, tmp_path: Path) -> None:
    lm = chat_model()
    lm.model.save_pretrained(tmp_path)
    lm.tokenizer.save_pretrained(tmp_path)
    edit = ("edit", tmp_path, fact.prompt, "-s", fact.subject, "-t", fact.target, *QUICK)
    assert "prompt, chat" in run(*edit).out
    data = run(*edit, "--chat", "--json").json
    assert [item["chat"] for item in data["answers"]] == [False, True]
    assert set(data["chat"]) >= {"efficacy", "subject_kept"}
    plain = run(*edit, "--no-chat", "--json").json
    assert [item["chat"] for item in plain["answers"]] == [False]
    assert plain["chat"] is None
    patch = tmp_path / "chat.safetensors"
    run(*edit, "-o", patch)
    for form, forms in (("--chat", [False, True]), ("--no-chat", [False])):
        told = run("assess", patch, tmp_path, form, "--json").json
        assert [item["chat"] for item in told["answers"]] == forms
    asked = run("ask", tmp_path, "Who?", "--chat", "--json").json
    told = run("ask", tmp_path, "Who?", "--no-chat", "--json").json
    assert asked["replies"][0]["top"] == []
    assert told["replies"][0]["top"]


def test_chat_without_a_template_is_misuse(run: Run, model: Path, fact: Fact) -> None:
    ran = run("edit", model, fact.prompt, "-t", fact.target, "--chat", *QUICK)
    assert ran.code == 2
    assert "no chat template" in ran.err
