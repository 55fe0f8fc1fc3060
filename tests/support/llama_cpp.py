"""llama.cpp in this process, by the package `xllamacpp`."""

import contextlib
from pathlib import Path

import pytest


@contextlib.contextmanager
def llama_cpp(model, adapters=(), *, context=512):
    """A server of one slot and one thread on a GGUF file, with LoRA adapters of scale 1."""
    engine = pytest.importorskip("xllamacpp", reason="llama.cpp runs by xllamacpp")
    params = engine.CommonParams()
    params.model.path = str(model)
    params.n_ctx, params.n_parallel, params.verbosity = context, 1, -1
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1
    params.warmup = params.fit_params = False
    params.lora_adapters = [engine.CommonAdapterLoraInfo(str(Path(one)), 1.0) for one in adapters]
    yield engine.Server(params)


def complete(server, prompt, *, tokens=1, **more):
    """The greedy continuation of a text, or of token ids."""
    request = {"prompt": prompt, "max_tokens": tokens, "temperature": 0, **more}
    answer = server.handle_completions(request)
    if "choices" not in answer:
        raise AssertionError(str(answer))
    return answer["choices"][0]["text"]


def next_tokens(server, ids, *, count=8, **more):
    """Log probabilities of the likeliest next tokens, by token.

    None where the likeliest is an end or a part of a character, of which none are given.
    """
    request = {"prompt": ids, "max_tokens": 1, "temperature": 0, "logprobs": count, **more}
    choice = server.handle_completions({**request, "cache_prompt": False})["choices"][0]
    if choice["logprobs"] is None:
        return {}
    found = choice["logprobs"]["content"][0]["top_logprobs"]
    return {one["id"]: one["logprob"] for one in found}
