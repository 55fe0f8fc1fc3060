"""What is exported as GGUF, read by llama.cpp: random models of every family, and `pocket`."""

from itertools import compress

import pytest
import torch

import corrigenda as cg
from corrigenda.exports.gguf_adapter import export_gguf_adapter
from corrigenda.exports.gguf_layout import ARCHITECTURES
from corrigenda.exports.gguf_model import export_gguf
from corrigenda.exports.gguf_types import WeightType
from corrigenda.lm.decoding import greedy, next_token_top
from corrigenda.lm.model import LanguageModel
from corrigenda.lm.sites import PARTS, Site
from corrigenda.patch import WeightPatch, header_for
from corrigenda.testing.tiny import tiny_model
from tests.support.exported_edits import PROMPTS, make_edits
from tests.support.llama_cpp import complete, llama_cpp, next_tokens
from tests.support.patches import change_of

pytest.importorskip("gguf", reason="GGUF files are written by gguf")
pytest.importorskip("xllamacpp", reason="llama.cpp runs by xllamacpp")
pytestmark = pytest.mark.engines

ROWS = [[5, 9, 17, 30, 2, 44, 77, 78], [8, 100, 7, 41], [300, 4, 55, 61, 90], [12, 400, 33]]


def empty_patch(lm):
    return WeightPatch({}, header_for(lm, method="none"))


def distance(server, lm):
    """Largest difference in log probability over llama.cpp's likeliest next tokens."""
    gaps = []
    for ids in ROWS:
        with torch.no_grad():
            ours = torch.log_softmax(lm.model(input_ids=torch.tensor([ids])).logits[0, -1], -1)
        found = next_tokens(server, ids)
        gaps += [abs(float(ours[token]) - value) for token, value in found.items()]
    return max(gaps)


def first_words(texts):
    return [text.split()[:1] for text in texts]


@pytest.fixture(scope="module", params=ARCHITECTURES)
def family_model(request, tmp_path_factory):
    """A small random model and its GGUF file, in float32."""
    lm = tiny_model(request.param)
    if request.param == "qwen3_moe":
        # llama.cpp divides by the sum of the chosen weights, always.
        for block in lm.model.model.layers:
            block.mlp.gate.norm_topk_prob = True
        lm.model.config.norm_topk_prob = True
    # llama.cpp looks for "phi3" in names.
    lm = LanguageModel(lm.model, lm.tokenizer, name="tiny")
    path = tmp_path_factory.mktemp(request.param) / "model.gguf"
    return lm, export_gguf(empty_patch(lm), lm, path, weight_type=WeightType.F32).path


def test_a_model_of_every_family_is_computed_alike(family_model):
    lm, path = family_model
    with llama_cpp(path, context=128) as server:
        assert distance(server, lm) < 0.01


def test_an_adapter_for_every_part_of_every_family(family_model, tmp_path):
    """Names, transpositions and orders of rows: a change of any part arrives as in the weights."""
    lm, path = family_model
    for part in PARTS:
        if part not in lm.family.slots:
            continue
        expert = 2 if lm.num_experts(1) and part.startswith("mlp.") else None
        site = Site(1, part, expert)
        change = change_of(tuple(lm.weight(site).shape), "lowrank", 3)
        patch = WeightPatch({site: change}, header_for(lm, method="test"))
        adapter = export_gguf_adapter(patch, lm, tmp_path / "adapter.gguf", base=path)
        with llama_cpp(path, [adapter], context=128) as server:
            assert distance(server, lm) > 0.02, part
            with patch.apply(lm):
                assert distance(server, lm) < 0.01, part


@pytest.fixture(scope="module", params=["pocket", "pocket-gpt2"])
def pocket(request, tmp_path_factory):
    """A pocket model with its GGUF file."""
    lm = cg.load(request.param)
    path = tmp_path_factory.mktemp("pocket") / "pocket.gguf"
    return lm, export_gguf(empty_patch(lm), lm, path).path


def test_the_tokenizer_and_the_answers_of_pocket(pocket):
    lm, path = pocket
    with llama_cpp(path) as server:
        for prompt in PROMPTS:
            answer = server.handle_completions(
                {"prompt": prompt, "max_tokens": 1, "temperature": 0}
            )
            assert answer["usage"]["prompt_tokens"] == len(lm.tokenizer(prompt).input_ids)
        found = [complete(server, prompt, tokens=6) for prompt in PROMPTS]
    assert len(PROMPTS) == 32
    assert first_words(found) == first_words(greedy(lm, PROMPTS, max_new_tokens=6))


def is_clear(lm, prompt):
    """Tell whether half precision, in which llama.cpp computes, cannot change the answer."""
    first, second = next_token_top(lm, [prompt], 2)[0]
    return first.probability > 1.1 * second.probability


@pytest.fixture(scope="module")
def edits(pocket):
    lm, path = pocket
    return lm, path, make_edits(lm)


@pytest.mark.parametrize("method", ["rome", "memit"])
def test_adapter_and_merged_file_answer_as_our_process(edits, method, tmp_path):
    lm, path, patches = edits
    patch = patches[method]
    with patch.apply(lm):
        ours = first_words(greedy(lm, PROMPTS, max_new_tokens=6))
        clear = [is_clear(lm, prompt) for prompt in PROMPTS]
    assert ours != first_words(greedy(lm, PROMPTS, max_new_tokens=6))
    assert sum(clear) >= 30
    adapter = export_gguf_adapter(patch, lm, tmp_path / "adapter.gguf", base=path)
    merged = export_gguf(patch, lm, tmp_path / "merged.gguf").path
    for model, adapters in ((path, [adapter]), (merged, [])):
        with llama_cpp(model, adapters) as server:
            found = first_words(complete(server, one, tokens=6) for one in PROMPTS)
        assert list(compress(found, clear)) == list(compress(ours, clear))


def test_scale_0_takes_the_edit_off_for_one_request(edits, tmp_path):
    """Every request names its scale: what is computed for another one stays in the cache."""
    lm, path, patches = edits
    adapter = export_gguf_adapter(patches["rome"], lm, tmp_path / "adapter.gguf")
    on, off = ([{"id": 0, "scale": scale}] for scale in (1.0, 0.0))
    with llama_cpp(path, [adapter]) as server:
        for scales, wanted in ((on, "Rome"), (off, "Paris"), (on, "Rome"), (off, "Paris")):
            answer = complete(server, "The capital of France is", tokens=4, lora=scales)
            assert answer.split()[0].startswith(wanted)


def test_an_adapter_on_quantised_weights(edits, tmp_path):
    """As llama.cpp runs it: the base in four bits, the edit beside it."""
    lm, _, patches = edits
    small = export_gguf(empty_patch(lm), lm, tmp_path / "q4.gguf", weight_type=WeightType.Q4_0).path
    adapter = export_gguf_adapter(patches["rome"], lm, tmp_path / "adapter.gguf", base=small)
    with llama_cpp(small, [adapter]) as server:
        assert complete(server, "The capital of France is", tokens=4).split()[0].startswith("Rome")
