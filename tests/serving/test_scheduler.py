"""Turns of several served models, and batches that are interrupted by others."""

from __future__ import annotations

import copy
import threading

import pytest

from corrigenda.errors import CorrigendaError
from corrigenda.lm.decoding import greedy
from corrigenda.lm.kv_cache import RunningRows
from corrigenda.lm.model import LanguageModel
from corrigenda.lm.spans import encode
from corrigenda.patch import Patch
from corrigenda.serving import scheduler as module
from corrigenda.serving.jobs import (
    AnswerEnd,
    AnswerEvent,
    AnswerFailure,
    AnswerJob,
    AnswerPiece,
    Asked,
    ServedModel,
)
from corrigenda.serving.refusals import Refusal
from corrigenda.serving.scheduler import Scheduler
from corrigenda.serving.settings import Limits
from tests.support.serving import weights

PROMPTS = ["The capital of France is", "The capital of Germany is", "The"]


class Collected:
    """Events of one job."""

    def __init__(self, model: ServedModel, text: str, max_tokens: int = 24) -> None:
        asked = Asked(text, None, (), max_tokens, (), 0.0, 1.0, 1, 1, None)
        self.events: list[AnswerEvent] = []
        self.done = threading.Event()
        self.job = AnswerJob(model, asked, self.add)

    def add(self, event: AnswerEvent) -> None:
        self.events.append(event)
        if not isinstance(event, AnswerPiece):
            self.done.set()

    @property
    def text(self) -> str:
        assert self.done.wait(60)
        assert isinstance(self.events[-1], AnswerEnd), self.events[-1]
        return "".join(event.text for event in self.events[:-1])


def served(name: str, *patches: Patch) -> ServedModel:
    return ServedModel(name, patches, 0)


@pytest.mark.parametrize("kind", ["tuned", "codebook", "in_context"])
def test_turns_of_one_step_change_no_answer(
    kind: str,
    pocket: LanguageModel,
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Patches are switched after every token, and batches of one model alternate too."""
    monkeypatch.setattr(module, "_TURN_SECONDS", 0.0)
    monkeypatch.setattr(module, "_SWITCHES_A_TURN", 0)
    patch: Patch = request.getfixturevalue(kind)
    lm = copy.deepcopy(pocket)
    models = [served("base"), served("edited", patch)]
    wanted = []
    for model in models:
        if model.patches:
            with patch.apply(pocket):
                wanted += greedy(pocket, PROMPTS, max_new_tokens=24, stop=())
        else:
            wanted += greedy(pocket, PROMPTS, max_new_tokens=24, stop=())
    scheduler = Scheduler(lm, Limits())
    asked = [Collected(model, prompt) for model in models for prompt in PROMPTS]
    scheduler.submit([one.job for one in asked])
    scheduler.start()
    try:
        assert [one.text for one in asked] == wanted
        assert scheduler.switch.num_switches > 20
    finally:
        scheduler.close()
    assert weights(lm) == weights(pocket)


def test_three_models_take_turns(
    pocket: LanguageModel, tuned: Patch, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No model waits for more than one turn of each other."""
    monkeypatch.setattr(module, "_TURN_SECONDS", 0.0)
    monkeypatch.setattr(module, "_SWITCHES_A_TURN", 0)
    scheduler = Scheduler(copy.deepcopy(pocket), Limits())
    order: list[str] = []
    models = [served("base"), served("first", tuned), served("second", tuned)]
    to = scheduler.switch.to

    def noted(model: ServedModel) -> None:
        order.append(model.name)
        to(model)

    monkeypatch.setattr(scheduler.switch, "to", noted)
    asked = [Collected(model, PROMPTS[0], 10) for model in models]
    scheduler.submit([one.job for one in asked])
    scheduler.start()
    try:
        assert all(one.text for one in asked)
    finally:
        scheduler.close()
    assert order[:24] == ["base", "first", "second"] * 8


def test_two_batches_of_one_prompt_routed_patch_keep_their_decisions(
    pocket: LanguageModel, codebook: Patch
) -> None:
    """Of two interleaved batches, each keeps what was decided about its own prompts."""
    lm = copy.deepcopy(pocket)
    with codebook.apply(lm):
        wanted = greedy(lm, PROMPTS[:2], max_new_tokens=6, stop=())
        prompts = [encode(lm, prompt).ids for prompt in PROMPTS[:2]]
        batches = [RunningRows(lm, [prompt]) for prompt in prompts]
        new: list[list[int]] = [[], []]
        for _ in range(6):
            for rows, added in zip(batches, new, strict=True):
                token = int(rows.logits().argmax())
                added.append(token)
                rows.advance([token], [0])
        texts = [lm.tokenizer.decode(added) for added in new]
    assert texts == wanted
    assert " Rome" in texts[0]
    assert " Berlin" in texts[1]


def test_rows_read_again_are_continued_as_before(pocket: LanguageModel, codebook: Patch) -> None:
    lm = copy.deepcopy(pocket)
    prompts = [encode(lm, prompt).ids for prompt in PROMPTS]
    with codebook.apply(lm):
        (wanted,) = [greedy(lm, PROMPTS, max_new_tokens=8, stop=())]
    rows = RunningRows(lm, prompts)
    new: list[list[int]] = [[] for _ in prompts]
    for _ in range(8):
        with codebook.apply(lm):
            chosen = rows.logits().argmax(1).tolist()
            rows.advance(chosen, range(len(prompts)))
        rows.read_again()
        for added, token in zip(new, chosen, strict=True):
            added.append(token)
    assert [lm.tokenizer.decode(added) for added in new] == wanted


def test_cancelled_answers_emit_nothing_more(pocket: LanguageModel) -> None:
    scheduler = Scheduler(copy.deepcopy(pocket), Limits())
    base = served("base")
    waiting, running = Collected(base, PROMPTS[0]), Collected(base, PROMPTS[1])
    scheduler.submit([waiting.job, running.job])
    scheduler.cancel([waiting.job])
    assert scheduler.num_waiting == 1
    scheduler.start()
    assert running.text
    scheduler.close()
    assert waiting.events == []


def test_one_bad_prompt_fails_alone(pocket: LanguageModel, in_context: Patch) -> None:
    """Too long as it is, or only with what a patch writes before it."""
    lm = copy.deepcopy(pocket)
    words = " the" * 505
    scheduler = Scheduler(lm, Limits())
    edited = served("edited", in_context)
    asked = [Collected(edited, text) for text in (PROMPTS[0], "The" + " the" * 600, "The" + words)]
    scheduler.submit([one.job for one in asked])
    scheduler.start()
    try:
        assert asked[0].text[:5] == " Rome"
        for one in asked[1:]:
            assert one.done.wait(60)
            failure = one.events[-1]
            assert isinstance(failure, AnswerFailure)
            assert isinstance(failure.error, CorrigendaError)
            assert failure.error.code == "CG105"
    finally:
        scheduler.close()


def test_a_batch_that_fails_ends_no_other(
    pocket: LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    scheduler = Scheduler(copy.deepcopy(pocket), Limits(max_rows=1))
    base = served("base")
    plain = RunningRows.logits
    calls = iter(range(1000))

    def failing(rows: RunningRows) -> object:
        if next(calls) == 1:
            raise RuntimeError("out of memory")
        return plain(rows)

    monkeypatch.setattr(RunningRows, "logits", failing)
    asked = [Collected(base, prompt) for prompt in PROMPTS[:2]]
    scheduler.submit([one.job for one in asked])
    scheduler.start()
    assert asked[0].done.wait(60)
    assert isinstance(asked[0].events[-1], AnswerFailure)
    assert asked[1].text[:7] == " Berlin"
    assert scheduler.is_alive
    scheduler.close()


def test_after_the_end_nothing_is_taken(pocket: LanguageModel, tuned: Patch) -> None:
    lm = copy.deepcopy(pocket)
    scheduler = Scheduler(lm, Limits(max_waiting=1))
    base = served("base")
    with pytest.raises(Refusal, match="at most 1 may"):
        scheduler.submit([Collected(base, "a").job, Collected(base, "b").job])
    scheduler.start()
    scheduler.check(served("edited", tuned)).result(60)
    scheduler.close()
    for ask in (
        lambda: scheduler.submit([Collected(base, "a").job]),
        lambda: scheduler.call(lambda: None),
    ):
        with pytest.raises(Refusal, match="shutting down"):
            ask()
    assert weights(lm) == weights(pocket)
