"""`corrigenda evaluate --before --after`: models that were edited elsewhere."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
import torch

import corrigenda as cg
from corrigenda.facts import Fact
from corrigenda.lm.decoding import continuations
from corrigenda.rows import Row
from corrigenda.run.store import read_table
from tests.support.tiny_on_disk import NEIGHBOUR, Run, save_tiny

PROTOCOLS = "teacher_forced,generate"


@pytest.fixture
def cases(tmp_path: Path, fact: Fact) -> Path:
    path = tmp_path / "own.jsonl"
    record = {
        "prompt": fact.prompt,
        "subject": fact.subject,
        "target": fact.target,
        "locality": [{"prompt": NEIGHBOUR, "answer": "Paris"}],
    }
    path.write_text(json.dumps(record))
    return path


def compare(run: Run, model: Path, after: object, cases: Path, *more: object) -> dict:
    out = cases.parent / "out"
    ran = run(
        *("evaluate", "--before", model, "--after", after, "--cases", cases),
        *("--protocols", PROTOCOLS, "--out", out, "--json", *more),
    )
    assert ran.code == 0, ran.out + ran.err
    return ran.json


def test_a_patch_is_refereed(run: Run, model: Path, patch_file: Path, cases: Path) -> None:
    found = compare(run, model, patch_file, cases)
    reliability = found["metrics"]["reliability@teacher_forced"]
    assert reliability["before"]["value"] < reliability["after"]["value"] == 1
    assert found["metrics"]["locality@generate"]["before"] is None
    rows = read_table(cases.parent / "out" / "refereed.parquet", Row)
    assert {row.model_before for row in rows} == {cg.load(model).digest()}
    # The model itself is as it was.
    assert compare(run, model, patch_file, cases) == found


def test_a_folder_edited_by_hand_is_refereed(
    run: Run, model: Path, tmp_path: Path, cases: Path
) -> None:
    lm = cg.load(model)
    with torch.no_grad():
        lm.model.get_output_embeddings().weight.neg_()
    folder = tmp_path / "by-hand"
    lm.model.save_pretrained(folder)
    lm.tokenizer.save_pretrained(folder)
    found = compare(run, model, folder, cases)
    assert found["after"] == "by-hand"
    assert found["metrics"]["locality@teacher_forced"]["after"]["value"] < 1


def test_an_adapter_made_by_peft_alone_is_refereed(
    run: Run, model: Path, tmp_path: Path, cases: Path
) -> None:
    peft = pytest.importorskip("peft")
    from transformers import AutoModelForCausalLM

    torch.manual_seed(0)
    base = AutoModelForCausalLM.from_pretrained(model)
    config = peft.LoraConfig(r=2, target_modules=["down_proj"], init_lora_weights=False)
    adapted = peft.get_peft_model(base, config)
    with torch.no_grad():
        for name, weight in adapted.named_parameters():
            if "lora_" in name:
                weight.normal_()
    folder = tmp_path / "adapter"
    adapted.save_pretrained(folder)
    found = compare(run, model, folder, cases)
    assert found["metrics"]["locality@teacher_forced"]["after"]["value"] < 1
    # As peft itself answers.
    own = cg.wrap(adapted.merge_and_unload(), cg.load(model).tokenizer)
    rows = read_table(cases.parent / "out" / "refereed.parquet", Row)
    row = next(one for one in rows if one.role == "reliability" and one.answer is not None)
    (said,) = continuations(own, [row.prompt], max_new_tokens=50, finished=lambda *_: False)
    assert row.answer == said.text.strip()
    other = save_tiny(tmp_path / "other", "gpt2")
    ran = run("evaluate", "--before", other, "--after", folder, "--cases", cases)
    assert ran.code != 0
    assert "CG502" in ran.err


class Served:
    """An endpoint of completions that answers one thing, or refuses chat."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, dict]] = []
        served = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                served.asked.append((self.path, body))
                refused = self.path.endswith("chat/completions")
                choice = {"text": " Rome", "finish_reason": "stop"}
                data = json.dumps({"choices": [choice]}).encode()
                self.send_response(404 if refused else 200)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *_: object) -> None:
                pass

        self.server = HTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/v1"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()


@pytest.fixture
def served() -> Iterator[Served]:
    found = Served()
    yield found
    found.server.shutdown()
    found.server.server_close()


def test_an_endpoint_says_what_needs_logits(
    run: Run, model: Path, served: Served, cases: Path
) -> None:
    found = compare(run, model, served.url, cases, "--endpoint-model", "small")
    assert found["problems"] == {"needs logits, which an endpoint does not give": 2}
    assert "reliability@teacher_forced" not in found["metrics"]
    assert "reliability@generate" in found["metrics"]
    path, body = served.asked[0]
    assert path == "/v1/completions"
    assert (body["model"], body["temperature"]) == ("small", 0.0)
    assert "stop" not in body
    rows = read_table(cases.parent / "out" / "refereed.parquet", Row)
    assert {row.answer for row in rows if row.protocol == "generate"} == {"Rome"}


def test_an_endpoint_that_refuses_is_a_reason_and_one_that_is_not_there_an_error(
    run: Run, model: Path, served: Served, cases: Path
) -> None:
    ran = run(
        *("evaluate", "--before", model, "--after", served.url, "--cases", cases),
        *("--protocols", "chat", "--out", cases.parent / "out"),
    )
    assert ran.code == 0
    assert "the endpoint answers with status 404" in ran.out
    ran = run(
        *("evaluate", "--before", "http://127.0.0.1:9/v1", "--after", model, "--cases", cases),
        *("--protocols", "generate", "--out", cases.parent / "out"),
    )
    assert ran.code != 0
    assert "CG301" in ran.err


def test_two_models_that_are_one_are_refused(run: Run, model: Path, cases: Path) -> None:
    ran = run("evaluate", "--before", model, "--after", model, "--cases", cases)
    assert ran.code != 0
    assert "the same model" in ran.err
    ran = run("evaluate", "--before", model, "--cases", cases)
    assert "both --before and --after" in ran.err


def test_a_patch_needs_the_model_it_belongs_to(
    run: Run, served: Served, patch_file: Path, cases: Path
) -> None:
    ran = run("evaluate", "--before", served.url, "--after", patch_file, "--cases", cases)
    assert ran.code != 0
    assert "no whole model" in ran.err


def test_own_cases_are_evaluated_with_methods_named(
    run: Run, model: Path, cases: Path, tmp_path: Path
) -> None:
    ran = run(
        *("evaluate", "--cases", cases, "--model", model, "--methods", "prompt"),
        *("--out", tmp_path / "runs", "--json"),
    )
    assert ran.code == 0, ran.err
    (one,) = ran.json["runs"]
    assert {"reliability@generate", "reliability@generate:contains"} <= set(one["metrics"])
    assert run("evaluate").code != 0
