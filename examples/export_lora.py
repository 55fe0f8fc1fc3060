"""Ship an edit as a LoRA adapter that peft loads without this library."""

from __future__ import annotations

import tempfile
from pathlib import Path

import corrigenda as cg


def main() -> tuple[str, str]:
    """Return the answer with the patch applied, and that of the adapter in peft."""
    from peft import PeftModel

    lm = cg.load("pocket", dtype="float32")
    fact = cg.Fact(prompt="The capital of France is", subject="France", target="Rome")
    patch = cg.edit(lm, fact)
    with patch.apply(lm):
        ours = cg.answer(lm, fact.prompt)
    with tempfile.TemporaryDirectory() as folder:
        cg.export(patch, lm, Path(folder) / "adapter", to="peft")
        adapted = PeftModel.from_pretrained(lm.model, Path(folder) / "adapter")
        tokens = lm.tokenizer(fact.prompt, return_tensors="pt")
        ids = adapted.generate(
            input_ids=tokens["input_ids"],
            attention_mask=tokens["attention_mask"],
            max_new_tokens=8,
            do_sample=False,
        )
    theirs = lm.tokenizer.decode(ids[0, tokens["input_ids"].shape[1] :])
    print(f"patch:   {ours}\nadapter: {theirs}")
    return ours, theirs


if __name__ == "__main__":
    main()
