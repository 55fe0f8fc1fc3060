"""Answers of a real server to the client of OpenAI are those of the library."""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor

import openai
import pytest
from openai import AsyncOpenAI, OpenAI

import corrigenda as cg
from corrigenda.lm.decoding import greedy
from corrigenda.lm.model import LanguageModel
from corrigenda.patch import Patch
from corrigenda.serving import scheduler
from tests.support.serving import Serving

PROMPT = "The capital of France is"
OTHERS = ["The capital of Germany is", "The capital of Italy is", "The currency of Japan is"]
NAMES = ("tuned", "codebook", "in-context", "answering")


@pytest.fixture(scope="module")
def client(server: Serving) -> OpenAI:
    return server.client()


@pytest.fixture(scope="module")
def patches(tuned: Patch, codebook: Patch, in_context: Patch, answering: Patch) -> dict[str, Patch]:
    return dict(zip(NAMES, (tuned, codebook, in_context, answering), strict=True))


def complete(client: OpenAI, model: str, prompt: str, **options: object) -> str:
    reply = client.completions.create(
        **{"model": model, "prompt": prompt, "temperature": 0, "stop": "\n", **options}
    )
    return reply.choices[0].text


def streamed_chat(client: OpenAI, model: str, content: str, **options: object) -> list:
    return list(
        client.chat.completions.create(
            **{
                "model": model,
                "messages": [{"role": "user", "content": content}],
                "temperature": 0,
                "max_tokens": 16,
                "stream": True,
                **options,
            }
        )
    )


def text_of(chunks: list) -> str:
    return "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)


def test_models_are_listed_with_the_unedited_one_first(client: OpenAI) -> None:
    listed = client.models.list().data
    assert [one.id for one in listed] == ["pocket", *NAMES]
    assert client.models.retrieve("tuned").parent == "pocket"
    with pytest.raises(openai.NotFoundError, match="pocket, tuned"):
        client.models.retrieve("gpt")


@pytest.mark.parametrize("name", ["pocket", *NAMES])
def test_greedy_text_is_that_of_ask(
    client: OpenAI, pocket: LanguageModel, patches: dict[str, Patch], name: str
) -> None:
    patch = patches.get(name)
    for prompt in (PROMPT, OTHERS[0]):
        if patch is None:
            wanted = cg.ask(pocket, prompt).continuation
        else:
            with patch.apply(pocket):
                wanted = cg.ask(pocket, prompt).continuation
        assert complete(client, name, prompt, max_tokens=16) == wanted
    assert (wanted if name == "pocket" else complete(client, name, PROMPT))[:5] != " Paris"


@pytest.mark.parametrize("name", ["pocket", "tuned", "codebook", "in-context"])
def test_streamed_chat_is_the_greedy_text(
    client: OpenAI, pocket: LanguageModel, patches: dict[str, Patch], name: str
) -> None:
    patch = patches.get(name)
    chunks = streamed_chat(client, name, PROMPT, stream_options={"include_usage": True})
    options = {"max_new_tokens": 16, "stop": (), "chat": True}
    if patch is None:
        (wanted,) = greedy(pocket, [PROMPT], **options)
    else:
        with patch.apply(pocket):
            (wanted,) = greedy(pocket, [PROMPT], **options)
    assert text_of(chunks) == wanted
    assert ("Paris" in wanted) == (name == "pocket")
    assert chunks[0].choices[0].delta.role == "assistant"
    assert chunks[-2].choices[0].finish_reason in ("stop", "length")
    assert chunks[-1].choices == []
    usage = chunks[-1].usage
    assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens > 0


def test_only_the_last_question_is_rewritten(client: OpenAI) -> None:
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": OTHERS[0]},
        {"role": "assistant", "content": " Berlin."},
        {"role": "user", "content": [{"type": "text", "text": PROMPT}]},
    ]
    reply = client.chat.completions.create(
        model="in-context", messages=messages, temperature=0, max_completion_tokens=4
    )
    assert reply.choices[0].message.content.startswith(" Rome")


def test_streamed_completion_has_every_piece_once(client: OpenAI, pocket: LanguageModel) -> None:
    chunks = client.completions.create(
        model="pocket", prompt=PROMPT, max_tokens=20, temperature=0, stream=True
    )
    pieces = [chunk.choices[0].text for chunk in chunks]
    (wanted,) = greedy(pocket, [PROMPT], max_new_tokens=20, stop=())
    assert "".join(pieces) == wanted
    assert len(pieces) > 10


def test_stop_string_across_tokens_is_cut_and_never_shown(client: OpenAI) -> None:
    whole = complete(client, "pocket", PROMPT, max_tokens=24, stop=None)
    stop = whole[8:20]
    chunks = list(
        client.completions.create(
            model="pocket", prompt=PROMPT, max_tokens=24, temperature=0, stop=[stop], stream=True
        )
    )
    assert "".join(chunk.choices[0].text for chunk in chunks) == whole[: whole.find(stop)]
    assert chunks[-1].choices[0].finish_reason == "stop"


def test_several_prompts_and_choices_are_in_order(client: OpenAI) -> None:
    reply = client.completions.create(
        model="pocket", prompt=[PROMPT, OTHERS[0]], n=2, temperature=0, max_tokens=3
    )
    assert [choice.index for choice in reply.choices] == [0, 1, 2, 3]
    assert [choice.text[:6] for choice in reply.choices] == [" Paris", " Paris", " Berli", " Berli"]
    single = client.completions.create(model="pocket", prompt=PROMPT, max_tokens=3, temperature=0)
    assert reply.usage.prompt_tokens == 2 * single.usage.prompt_tokens
    assert reply.usage.completion_tokens == sum(3 for _ in reply.choices)


def test_seed_repeats_a_draw_and_answers_differ(client: OpenAI) -> None:
    options = {"temperature": 1.5, "max_tokens": 12, "n": 3, "model": "pocket"}
    first, again, other = (
        [
            choice.text
            for choice in client.completions.create(prompt="The", seed=seed, **options).choices
        ]
        for seed in (1, 1, 2)
    )
    assert first == again != other
    assert len(set(first)) == 3


def test_log_probabilities_are_those_of_score(client: OpenAI, pocket: LanguageModel) -> None:
    reply = client.completions.create(
        model="pocket", prompt=PROMPT, max_tokens=2, temperature=0, logprobs=3
    )
    found = reply.choices[0].logprobs
    (best,) = cg.ask(pocket, [PROMPT])
    import math

    assert [tuple(one) for one in found.top_logprobs[0].items()] == [
        (token, pytest.approx(math.log(p), abs=1e-4)) for token, p in best.top[:3]
    ]
    assert found.token_logprobs[0] == pytest.approx(math.log(best.top[0][1]), abs=1e-4)
    chunks = streamed_chat(client, "pocket", PROMPT, logprobs=True, top_logprobs=2, max_tokens=3)
    tokens = [t for c in chunks if c.choices[0].logprobs for t in c.choices[0].logprobs.content]
    assert "".join(token.token for token in tokens) == text_of(chunks)
    assert all(len(token.top_logprobs) == 2 for token in tokens)
    assert bytes(tokens[0].bytes).decode() == tokens[0].token


def test_two_names_at_once_get_their_own_answers(
    server: Serving, pocket: LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Answers under two names, whose turns alternate at every token; each is what it is alone."""
    monkeypatch.setattr(scheduler, "_TURN_SECONDS", 0.0)
    monkeypatch.setattr(scheduler, "_SWITCHES_A_TURN", 0.0)
    alone = {
        name: complete(server.client(), name, PROMPT, max_tokens=40, stop=None)
        for name in ("pocket", "tuned")
    }
    before = server.scheduler.switch.num_switches
    barrier = threading.Barrier(4)

    def ask(name: str) -> str:
        own = server.client()
        barrier.wait()
        return complete(own, name, PROMPT, max_tokens=40, stop=None)

    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(ask, ["pocket", "tuned"] * 2))
    assert found == [alone["pocket"], alone["tuned"]] * 2
    assert alone["pocket"][:6] == " Paris"
    assert alone["tuned"][:5] == " Rome"
    assert server.scheduler.switch.num_switches - before > 10


def test_two_hundred_requests_at_once_lose_none(server: Serving) -> None:
    prompts = [PROMPT, *OTHERS]
    names = ["pocket", "tuned", "codebook", "in-context"]
    wanted = {
        (name, prompt): complete(server.client(), name, prompt, max_tokens=3)
        for name in names
        for prompt in prompts
    }
    asked = [(names[i % 4], prompts[(i // 4) % 4]) for i in range(200)]

    async def ask_all() -> list[str]:
        # Clients share a processor with the server: a connection may take them a while.
        own = AsyncOpenAI(
            base_url=f"{server.address}/v1", api_key="none", max_retries=0, timeout=300.0
        )

        async def ask(name: str, prompt: str) -> str:
            reply = await own.completions.create(
                model=name, prompt=prompt, max_tokens=3, temperature=0, stop="\n"
            )
            return reply.choices[0].text

        async with own:
            return await asyncio.gather(*(ask(*one) for one in asked))

    assert asyncio.run(ask_all()) == [wanted[one] for one in asked]
    assert server.scheduler.num_waiting == server.scheduler.num_running == 0
