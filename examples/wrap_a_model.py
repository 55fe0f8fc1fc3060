"""Edit a model that transformers has loaded: wrap, edit, generate, save the patch."""

from __future__ import annotations

import tempfile
from pathlib import Path

from transformers import AutoModelForCausalLM, AutoTokenizer

import corrigenda as cg
from corrigenda.lm.loading import shipped_folder


def main() -> dict[str, str]:
    """Return what `generate` writes without the patch, with it, and after it."""
    folder = shipped_folder("pocket")
    model = AutoModelForCausalLM.from_pretrained(folder, dtype="float32")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    lm = cg.wrap(model, tokenizer)
    fact = cg.Fact(prompt="The capital of France is", subject="France", target="Rome")
    patch = cg.edit(lm, fact)
    tokens = tokenizer(fact.prompt, return_tensors="pt", return_token_type_ids=False)

    def generate() -> str:
        ids = model.generate(**tokens, max_new_tokens=4, do_sample=False)
        return tokenizer.decode(ids[0], skip_special_tokens=True)

    seen = {"before": generate()}
    with patch.apply(lm):
        seen["with"] = generate()
    seen["after"] = generate()
    with tempfile.TemporaryDirectory() as place:
        patch.save(Path(place) / "france.safetensors")
    for name, text in seen.items():
        print(f"{name:>6}  {text}")
    return seen


if __name__ == "__main__":
    main()
