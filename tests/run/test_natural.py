"""Natural answers and their judges: what is asked, when it ends, what is recorded."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

import corrigenda as cg
from corrigenda.cases import Probe, Protocol
from corrigenda.errors import BadConfig, JudgeFailed
from corrigenda.metrics import registry
from corrigenda.metrics.metric import RunRecords
from corrigenda.reports import content
from corrigenda.rows import Row
from corrigenda.run import runner
from corrigenda.run.judges import Judge
from corrigenda.run.named_recipe import find_recipe, read_judge
from corrigenda.run.prober import ask
from corrigenda.run.queries import make_query
from corrigenda.run.spec import RunSpec
from corrigenda.run.tables import JudgeSpec, NaturalForm

OWN = [
    {
        "prompt": "The capital of France is",
        "subject": "France",
        "target": "Rome",
        "before": "Paris",
        "paraphrases": ["The capital city of France is"],
        "locality": ["The capital of Germany is"],
    },
    {"prompt": "The capital of Spain is", "subject": "Spain", "target": "Oslo"},
]


@pytest.fixture(autouse=True)
def _cache_folder(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("CORRIGENDA_CACHE", str(tmp_path_factory.mktemp("cache")))


@pytest.fixture(scope="module")
def pocket():
    return cg.load("pocket")


class Stub:
    """An endpoint of chat completions that says what a function says."""

    def __init__(self) -> None:
        self.asked: list[dict] = []
        self.status = 200
        self.reply = "A"
        stub = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                length = int(self.headers["Content-Length"])
                stub.asked.append(json.loads(self.rfile.read(length)))
                body = {"choices": [{"message": {"content": stub.reply}}]}
                data = json.dumps(body if stub.reply != "broken" else {}).encode()
                self.send_response(stub.status)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *_: object) -> None:
                pass

        self.server = HTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/v1"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()


@pytest.fixture
def stub() -> Iterator[Stub]:
    found = Stub()
    yield found
    found.server.shutdown()
    found.server.server_close()


def says(prompt: str) -> str:
    """A judge that is right where the expected answer is part of the given one."""
    lines = dict(line.split(": ", 1) for line in prompt.split("\n") if ": " in line)
    return "A" if lines["Expected answer"] in lines["Given answer"] else "B"


def fails(prompt: str) -> str:
    raise RuntimeError("no time")


def natural(prompt: str, **more) -> Probe:
    return Probe(
        prompt=prompt,
        expected=(("Paris",),),
        role="reliability",
        protocol=Protocol.GENERATE,
        **more,
    )


def test_a_natural_answer_is_whole_and_as_long_as_it_may_be(pocket) -> None:
    prompt = "The capital of France is"
    short, long = (
        make_query(natural(prompt), 3, natural=NaturalForm(max_new_tokens=n)) for n in (2, 30)
    )
    given = ask(pocket, [short, long]).given
    assert given[long].answer.startswith(given[short].answer)
    assert len(given[short].predicted) == 2
    assert given[short].ended is False
    # The expected answer is not tokenised, so its length cannot decide anything.
    assert given[long].token_ids is None
    assert given[long].answer == given[long].answer.strip()


def test_an_answer_ends_at_a_stop_and_says_so(pocket) -> None:
    probe = natural("The capital of France is")
    plain = make_query(probe, 20)
    cut = make_query(probe, 20, natural=NaturalForm(stop=(".", "\n")))
    given = ask(pocket, [plain, cut]).given
    whole, short = given[plain].answer, given[cut].answer
    assert short == whole.split(".")[0].split("\n")[0].strip()
    assert given[cut].ended


def test_words_around_a_prompt_are_those_of_generate_alone() -> None:
    form = NaturalForm(wording="Question: {} Answer:", system="Be short.")
    plain = make_query(natural("Who {is} it?"), 20, natural=form)
    assert plain.prompt == "Question: Who {is} it? Answer:"
    assert (plain.chat, plain.system) == (False, "")
    chat = make_query(
        Probe(prompt="Who?", role="reliability", protocol=Protocol.CHAT), 20, natural=form
    )
    assert (chat.prompt, chat.chat, chat.system) == ("Who?", True, "Be short.")
    greedy = make_query(
        Probe(prompt="Who?", role="reliability", protocol=Protocol.GREEDY), 20, natural=form
    )
    assert (greedy.prompt, greedy.stop, greedy.max_new_tokens) == ("Who?", (), 20)


def test_a_model_without_chat_template_says_so(pocket) -> None:
    query = make_query(Probe(prompt="Who?", role="reliability", protocol=Protocol.CHAT), 20)
    assert ask(pocket, [query]).given[query].skipped == "CG502 BadConfig"


def row(answer: str, **more) -> Row:
    return Row(
        case="1",
        role="reliability",
        protocol=Protocol.GENERATE,
        prompt="The capital of France is",
        expected=[["Rome", "Roma"], ["Italy"]],
        answer=answer,
        answer_before="Paris",
        **more,
    )


def test_an_endpoint_is_asked_once_and_recorded(stub: Stub) -> None:
    judge = Judge(read_judge(stub.url, "small", temperature=0.2))
    first = row("Rome in Italy")
    (judged, greedy, skipped) = judge.add_verdicts(
        [first, row("x", probe=1, skipped="no"), row("{answer}", probe=2)]
    )
    assert (judged.verdict, judged.verdict_before) == ("A", "A")
    assert judged.judge == "endpoint small, temperature 0.2"
    assert "Expected answer: Rome or Roma and Italy" in judged.judge_prompt
    assert "Given answer: Rome in Italy" in judged.judge_prompt
    assert greedy.verdict is None
    # What an answer holds is text, not a place to fill in.
    assert "Given answer: {answer}" in skipped.judge_prompt
    assert len(stub.asked) == 3
    assert stub.asked[0]["temperature"] == 0.2
    assert stub.asked[0]["model"] == "small"
    again = Judge(read_judge(stub.url, "small", temperature=0.2))
    assert again.add_verdicts([first])[0] == judged
    assert len(stub.asked) == 3
    Judge(read_judge(stub.url, "small")).add_verdicts([first])
    assert len(stub.asked) == 5


def test_an_endpoint_that_fails_stops_the_run(stub: Stub) -> None:
    judge = Judge(read_judge(stub.url, "small"))
    stub.status = 500
    with pytest.raises(JudgeFailed, match=r"CG611(.|\n)*status 500"):
        judge.ask(["a"])
    stub.status, stub.reply = 200, "broken"
    with pytest.raises(JudgeFailed, match="does not answer as chat completions do"):
        judge.ask(["a"])
    stub.reply = "B"
    assert judge.ask(["a"]) == {"a": "B"}


def test_functions_are_judges_and_are_not_cached() -> None:
    judge = Judge(read_judge(f"{__name__}:says"))
    assert judge.add_verdicts([row("Rome or Roma and Italy")])[0].verdict == "A"
    with pytest.raises(JudgeFailed, match="no time"):
        Judge(read_judge(f"{__name__}:fails")).ask(["a"])
    with pytest.raises(BadConfig, match="cannot be found"):
        Judge(read_judge(f"{__name__}:nobody"))


def test_judges_are_told_apart_by_what_is_written() -> None:
    assert read_judge("pocket").kind == "model"
    assert read_judge("folder/of:model").kind == "model"
    with pytest.raises(BadConfig, match="--judge-model"):
        read_judge("http://127.0.0.1:1/v1")
    with pytest.raises(ValueError, match="url"):
        JudgeSpec(kind="endpoint", name="a")
    with pytest.raises(ValueError, match="lacks"):
        JudgeSpec(kind="model", name="a", prompt="Is it right?")


def test_a_local_model_is_a_judge() -> None:
    judge = Judge(JudgeSpec(kind="model", name="pocket", max_new_tokens=2))
    (said,) = judge.ask(["The capital of France is"]).values()
    assert said.strip()


def test_a_run_of_own_cases_shows_what_teacher_forcing_is_worth(tmp_path: Path, pocket) -> None:
    path = tmp_path / "own.jsonl"
    path.write_text("\n".join(map(json.dumps, OWN)))
    recipe = find_recipe(
        None,
        cases=path,
        methods=["prompt", "ft-m"],
        protocols=["teacher_forced", "greedy", "generate"],
        judge=read_judge(f"{__name__}:says"),
    )
    specs = [
        one.model_copy(update={"ask": one.ask.model_copy(update={"natural_tokens": 6})})
        for one in recipe.runs(model="pocket")
    ]
    runs = runner.run_all(specs, lm=pocket, folder=tmp_path / "runs")
    rows = [one for one in runs[1].rows if one.protocol == Protocol.GENERATE]
    judged = [one for one in rows if one.verdict is not None]
    assert {one.role for one in judged} == {"reliability", "generalization"}
    assert all(one.judge == f"function {__name__}:says, temperature 0" for one in judged)
    records = RunRecords(runs[1].rows, runs[1].measurements)
    found = {one.metric: one for one in registry.evaluate(records)}
    assert {"reliability@generate", "reliability@generate:judge", "locality@generate"} <= {*found}
    assert "judge_agreement@generate:contains" in found
    (report,) = content.build_report(runs).groups
    table = next(part for part in report.parts if part.title.startswith("How much"))
    assert table.title == "How much of reliability is teacher forcing"
    assert table.names[0] == "teacher forced: share of tokens"
    assert table.names[-1] == "natural: a judge says so"
    shown = {one.name: one.values[0] for one in runs[0].measurements}
    assert shown["cost/prompt_tokens"] > 5
    assert {one.name: one.values[0] for one in runs[1].measurements}["cost/prompt_tokens"] == 0
    # The same command reads what is finished.
    assert runner.run_all(specs, lm=pocket, folder=tmp_path / "runs")[1].rows == runs[1].rows


def test_without_a_judge_no_row_has_a_verdict(tmp_path: Path, pocket) -> None:
    path = tmp_path / "own.jsonl"
    path.write_text(json.dumps(OWN[1]))
    spec = RunSpec(
        editor="prompt",
        model="pocket",
        benchmark={"name": "cases", "path": str(path)},
        ask={"natural_tokens": 3},
    )
    recorded = runner.run(spec, lm=pocket, folder=tmp_path / "runs")
    assert [one.verdict for one in recorded.rows] == [None]
    assert recorded.rows[0].ended is not None


def test_names_of_recipes_and_benchmarks(tmp_path: Path) -> None:
    assert find_recipe("qaedit").title.startswith("QAEdit: answers")
    assert find_recipe("taxi").benchmark[0].name == "taxi"
    assert find_recipe("taxi", methods=["rome"]).methods[0].name == "rome"
    with pytest.raises(BadConfig, match="Did you mean"):
        find_recipe("qaedt")
    with pytest.raises(BadConfig, match="nothing to evaluate"):
        find_recipe(None)
    with pytest.raises(BadConfig, match="both"):
        find_recipe("taxi", cases=tmp_path / "a.jsonl")
    with pytest.raises(BadConfig, match='no protocol "natural"'):
        find_recipe("taxi", protocols=["natural"])
