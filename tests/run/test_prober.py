"""Many questions at once give what one at a time gives."""

from __future__ import annotations

import random

import pytest
import torch

from corrigenda.cases import Probe, Protocol
from corrigenda.lm import scoring
from corrigenda.lm.kv_cache import Decoder
from corrigenda.lm.model import LanguageModel
from corrigenda.lm.scoring import Fed, rate
from corrigenda.lm.sites import Tokens
from corrigenda.lm.spans import encode
from corrigenda.run.prober import Answer, Query, ask, compute_divergences, make_query
from corrigenda.testing.tiny import tiny_model

PROMPTS = ("The Space Needle is in", "Rome is", "Who wrote the book about the sea? It was")
FED, RANK, GREEDY = Protocol.TEACHER_FORCED, Protocol.RANK, Protocol.GREEDY


@pytest.fixture(scope="module")
def lm() -> LanguageModel:
    return tiny_model("gpt2", dtype=torch.float64, layers=2)


def plain_log_probs(lm: LanguageModel, ids: list[int]) -> torch.Tensor:
    """One row, without cache, padding or batch."""
    tokens = Tokens(torch.tensor([ids]), torch.ones(1, len(ids), dtype=torch.long))
    return lm.logits(tokens)[0].log_softmax(-1)


def plain_continuation(lm: LanguageModel, prompt: str, length: int) -> list[int]:
    ids = list(encode(lm, prompt).ids)
    start = len(ids)
    for _ in range(length):
        ids.append(int(plain_log_probs(lm, ids)[-1].argmax()))
    return ids[start:]


def one(lm: LanguageModel, question: Query) -> Answer:
    return ask(lm, [question]).given[question]


@pytest.mark.parametrize("family", ["gpt2", "llama", "opt", "mistral"])
def test_rated_rows_are_those_of_one_at_a_time(
    family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows that share a prompt, a long beginning, or nothing, shared or not."""
    lm = tiny_model(family, dtype=torch.float64, layers=2)
    draw = random.Random(0)
    shown = draw.choices(range(3, 500), k=30)
    rows: list[Fed] = []
    for number in range(6):
        prompt = [*(shown if number % 2 else []), *draw.choices(range(3, 500), k=4 + number)]
        for length in draw.choices(range(1, 4), k=3):
            target = draw.choices(range(3, 500), k=length)
            reads = range(len(prompt) - 1, len(prompt) - 1 + length)
            rows.append(Fed(prompt + target[:-1], reads, tuple(target)))
        rows.append(Fed(prompt, range(len(prompt) - 1, len(prompt))))
    wanted = [plain_log_probs(lm, row.ids)[list(row.reads)] for row in rows]
    for share in (True, False):
        monkeypatch.setattr(scoring, "_SPARED_SHARE", 0.0)
        found = rate(lm, rows, whole=range(len(rows)), share=share)
        for row, truth, result in zip(rows, wanted, found, strict=True):
            assert result.distributions is not None
            torch.testing.assert_close(result.distributions, truth, rtol=0, atol=1e-10)
            assert list(result.argmax_ids) == truth.argmax(1).tolist()
            chosen = [float(truth[i, label]) for i, label in enumerate(row.labels)]
            assert result.log_probs == pytest.approx(chosen, abs=1e-10)


def test_shared_beginnings_are_run_once(lm: LanguageModel) -> None:
    """Guards the test above, and counts the tokens that are spared."""
    draw = random.Random(1)
    shown = draw.choices(range(3, 500), k=60)
    rows = [Fed([*shown, *draw.choices(range(3, 500), k=5)], range(64, 65), (7,)) for _ in range(6)]
    seen: list[int] = []
    hook = lm.model.register_forward_pre_hook(
        lambda _, __, kwargs: seen.append(kwargs["input_ids"].numel()), with_kwargs=True
    )
    try:
        rate(lm, rows)
        shared = sum(seen)
        seen.clear()
        rate(lm, rows, share=False)
    finally:
        hook.remove()
    assert shared == 60 + 6 * 5
    assert sum(seen) == 6 * 65


def test_prompts_are_read_whole_while_they_are_watched(lm: LanguageModel) -> None:
    """A patch that is routed on the prompt decides at its last token, not at that of a part."""
    shown = list(range(10, 70))
    targets = ((7, 8, 9), (7, 9, 5), (8, 8, 8))
    rows = [
        Fed([*shown, prompt, *target[:-1]], range(60, 63), target)
        for prompt in (100, 101, 102)
        for target in targets
    ]
    ends: list[list[int]] = []

    def decide(at: torch.Tensor) -> torch.Tensor:
        ends.append(at.tolist())
        return at

    def watch(*_: object) -> None:
        lm.prompt_ends.decide_once("test", decide)

    with lm.prompt_ends.follow():
        hook = lm.model.register_forward_pre_hook(watch)
        try:
            rate(lm, rows)
        finally:
            hook.remove()
    assert [end for some in ends for end in some] == [60] * 3


def test_all_protocols_give_what_one_at_a_time_gives(lm: LanguageModel) -> None:
    fed = [Query(prompt, FED, "Paris, France") for prompt in PROMPTS]
    rank = [Query(prompt, RANK, "Paris", ("London", "a town")) for prompt in PROMPTS]
    greedy = [
        Query(prompt, GREEDY, "Paris", max_new_tokens=3 + number, is_text=True)
        for number, prompt in enumerate(PROMPTS)
    ]
    given = ask(lm, [*fed, *rank, *greedy]).given
    for question in (*fed, *rank):
        row = encode(lm, question.prompt, target=str(question.target))
        truth = plain_log_probs(lm, row.ids[:-1])[list(row.reads)]
        answer = given[question]
        assert answer.token_ids == list(row.target_ids)
        chosen = [float(truth[i, label]) for i, label in enumerate(row.target_ids)]
        assert answer.log_probs == pytest.approx(chosen, abs=1e-10)
        if question.protocol == FED:
            assert answer.predicted == truth.argmax(1).tolist()
        else:
            assert answer.rival_log_probs is not None
            assert [len(one) for one in answer.rival_log_probs] == [
                len(encode(lm, question.prompt, target=rival).target_ids)
                for rival in question.rivals
            ]
    for question in greedy:
        ids = plain_continuation(lm, question.prompt, question.max_new_tokens)
        assert given[question].predicted == ids
        assert given[question].answer == Decoder(lm)([5], ids)


def test_separators_and_texts_without_prompt(lm: LanguageModel) -> None:
    joined = one(lm, Query("The sea", FED, "food", separator=""))
    assert joined.token_ids == list(encode(lm, "The sea", target="food", separator="").target_ids)
    text = "Rome is a city."
    ids = lm.tokenizer(text).input_ids
    answer = one(lm, Query("", FED, text, separator=""))
    assert answer.token_ids == ids[1:]
    truth = plain_log_probs(lm, ids)
    chosen = [float(truth[i, label]) for i, label in enumerate(ids[1:])]
    assert answer.log_probs == pytest.approx(chosen, abs=1e-10)


def test_a_question_that_cannot_be_asked_harms_no_other(lm: LanguageModel) -> None:
    long = "word " * 200
    fine = Query(PROMPTS[0], FED, "Paris")
    given = ask(
        lm,
        [
            Query(long, FED, "Paris"),
            fine,
            Query(long, GREEDY, "Paris", max_new_tokens=2),
            Query(PROMPTS[0], RANK, "Paris", (long,)),
            Query(PROMPTS[0], FED),
        ],
    ).given
    reasons = [answer.skipped for answer in given.values()]
    assert reasons == [
        "CG105 PromptTooLong",
        "",
        "CG105 PromptTooLong",
        "CG105 PromptTooLong",
        "no expected answer",
    ]
    assert given[fine] == one(lm, fine)


def test_divergence_is_that_of_whole_distributions(lm: LanguageModel) -> None:
    questions = [
        Query(PROMPTS[0], GREEDY, max_new_tokens=1, divergence=True),
        Query(PROMPTS[1], FED, "Paris, France", divergence=True),
    ]
    first = ask(lm, questions)
    other = tiny_model("gpt2", dtype=torch.float64, layers=2, seed=1)
    second = ask(other, questions)
    for question in questions:
        p, q = first.distributions[question], second.distributions[question]
        forward, backward = compute_divergences(p, q)
        assert forward == pytest.approx((p.exp() * (p - q)).sum(1).tolist())
        assert backward == pytest.approx((q.exp() * (q - p)).sum(1).tolist())
        assert compute_divergences(p, p)[0] == [0.0] * len(p)
    answer = first.given[questions[1]]
    assert len(first.distributions[questions[1]]) == len(answer.token_ids or [])


class Fixed:
    """Answers in the model's place."""

    def __init__(self, text: str) -> None:
        self.text = text

    def answers(self, lm: LanguageModel, prompts: list[str]) -> list[str | None]:
        return [self.text for _ in prompts]


@pytest.mark.parametrize(
    ("text", "marker", "wanted"),
    [
        ("Paris.\nLondon", "", " Paris."),
        ("\nParis\nLondon", "", " \nParis"),
        ("Step one.\nAnswer: Paris\nmore", "Answer:", " Paris"),
        ("Answer:\nParis\nmore", "Answer:", "\nParis"),
        ("no mark\nin it", "Answer:", ""),
    ],
)
def test_a_greedy_answer_is_a_line_and_stands_behind_its_marker(
    text: str, marker: str, wanted: str, lm: LanguageModel
) -> None:
    question = Query("Where?", GREEDY, "Paris", max_new_tokens=4, marker=marker)
    with lm.interceptors.activate(Fixed(text)):
        answer = one(lm, question)
    assert answer.answer == wanted
    assert answer.predicted


def test_the_marker_keeps_the_first_line_from_ending_the_answer(
    lm: LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[bool] = []

    def continuations(*_: object, finished: object, **__: object) -> list[object]:
        assert callable(finished)
        for text in (" a\n", " a\nAnswer: b", " a\nAnswer: b\n"):
            said.append(finished(0, text))
        return []

    monkeypatch.setattr("corrigenda.run.prober.continuations", continuations)
    with pytest.raises(ValueError, match="zip"):
        ask(lm, [Query("Where?", GREEDY, max_new_tokens=4, marker="Answer:")])
    assert said == [False, False, True]


def test_a_probe_decides_what_is_asked() -> None:
    probe = Probe(
        prompt="Rome is", expected=(("a city", "a town"), ("old",)), role="fluency", protocol=GREEDY
    )
    question = make_query(probe, 20)
    assert (question.target, question.max_new_tokens, question.is_text) == ("a city", 20, True)
    ranked = Probe(prompt="Rome is", rivals=("b",), role="reliability", protocol=FED)
    assert make_query(ranked, 20).rivals == ()


def test_turns_follow_the_models_own_answers(lm: LanguageModel) -> None:
    plain = Query("Rome is", GREEDY, max_new_tokens=4)
    talk = plain._replace(turns=("Are you sure? Rome is", "Once more: Rome is"))
    short = Query("The Space Needle is in", GREEDY, max_new_tokens=3)
    given = ask(lm, [talk, short, plain]).given
    said = "Rome is"
    for turn in (*talk.turns, ""):
        answer = one(lm, Query(said, GREEDY, max_new_tokens=4)).answer
        assert answer is not None
        said += f"{answer.rstrip()}\n{turn}"
    assert given[talk].answer == answer
    assert given[short] == one(lm, short)
    assert given[plain] == one(lm, plain)


def test_a_dialogue_that_outgrows_the_context_is_skipped(lm: LanguageModel) -> None:
    long = Query("Rome is", GREEDY, max_new_tokens=4, turns=("so " * lm.context_length,))
    assert one(lm, long).skipped.startswith("CG105")
    assert one(lm, long).answer is None


def test_sampled_texts_are_as_long_as_published_ones(lm: LanguageModel) -> None:
    """A hundred tokens with the prompt, the same in any company, and not the likeliest ones."""
    probes = [Probe(prompt=prompt, role="fluency", protocol=Protocol.SAMPLED) for prompt in PROMPTS]
    questions = [make_query(probe, 20) for probe in probes]
    given = ask(lm, questions).given
    for question in questions:
        answer = given[question]
        assert answer.predicted is not None
        assert len(answer.predicted) == 100 - len(encode(lm, question.prompt).ids)
        assert one(lm, question) == answer
        assert answer.predicted[:20] != plain_continuation(lm, question.prompt, 20)
