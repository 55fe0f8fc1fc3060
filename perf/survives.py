"""Measure what quantising leaves of edits of SmolLM2, merged and as adapters.

    python perf/survives.py [--facts 16] [--methods rome memit ...] [--model NAME] [--write]

Each method edits facts that the model knows, several at a time as it was made for: ROME one by one,
the others all at once. Efficacy, paraphrases and neighbours are asked with the weights as they are,
then quantised by the package gguf or fine-tuned a little (cg.assess_after). With --write the table
goes into docs/measured-real.md. Ends with one line of JSON.
"""

import argparse
import gc
import time
from pathlib import Path

from figures import publish

import corrigenda as cg
from corrigenda.assessment import Assessment
from corrigenda.exports.survival import Survival, TreatedCopy, ask_facts, parse_form
from corrigenda.lm.model import LanguageModel
from corrigenda.patch.protocols import Patch

Shares = dict[str, float]

PAGE = Path(__file__).parents[1] / "docs" / "measured-real.md"
BEGIN, END = "<!-- survives: begin -->", "<!-- survives: end -->"
TYPES = ("bf16", "q8_0", "q4_1", "q4_0", "fine-tuned")
METHODS = ("rome", "memit", "alphaedit", "ft-m", "lora")
# Country, its capital, and the wrong one to write.
CAPITALS = (
    *(("France", "Rome"), ("Japan", "Seoul"), ("Germany", "Vienna"), ("Spain", "Lisbon")),
    *(("Italy", "Athens"), ("Russia", "Kiev"), ("China", "Tokyo"), ("Egypt", "Tripoli")),
    *(("Canada", "Boston"), ("India", "Karachi"), ("Poland", "Prague"), ("Greece", "Sofia")),
    *(("Cuba", "Lima"), ("Peru", "Bogota"), ("Kenya", "Lagos"), ("Norway", "Stockholm")),
)
OTHERS = ("Portugal", "Austria", "Sweden", "Turkey")


def list_facts(count: int) -> list[cg.Fact]:
    return [
        cg.Fact(
            prompt=f"The capital of {country} is",
            subject=country,
            target=target,
            paraphrases=(f"{country}'s capital city is", f"The capital city of {country} is"),
            neighbours=tuple(f"The capital of {one} is" for one in OTHERS),
        )
        for country, target in CAPITALS[:count]
    ]


def make_patches(
    lm: LanguageModel, method: str, facts: list[cg.Fact], options: dict[str, object]
) -> list[tuple[Patch, list[cg.Fact]]]:
    """Return the patches of a method: one for each fact, or one for all."""
    one_by_one = method == "rome"
    groups = [[fact] for fact in facts] if one_by_one else [facts]
    return [(cg.edit(lm, group, method, progress=False, **options), group) for group in groups]


def average(assessments: list[Assessment]) -> Shares:
    """Return shares over all prompts of several assessments."""
    found = {}
    for role in ("prompt", "paraphrase", "neighbour"):
        asked = [(one.share(role), len(one.facts)) for one in assessments]
        total = sum(count for _, count in asked)
        found[role] = round(sum(share * count for share, count in asked) / total, 4)
    return found


def measure(
    lm: LanguageModel, method: str, facts: list[cg.Fact], options: dict[str, object]
) -> dict[str, Shares]:
    made = make_patches(lm, method, facts, options)
    lines = {"as loaded": average([cg.assess(lm, patch, group) for patch, group in made])}
    by_case: dict[str, list[Survival]] = {}
    copied = TreatedCopy(lm)
    for patch, group in made:
        whole = ask_facts(lm, group)
        for name in TYPES:
            for one in copied.assess(patch, parse_form(name), group, whole):
                by_case.setdefault(one.treatment, []).append(one)
    for name, found in by_case.items():
        kept = sum(one.unedited_kept or 0.0 for one in found) / len(found)
        shares = average([one.assessment for one in found])
        lines[name] = shares | {"unedited": round(kept, 4)}
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--facts", type=int, default=len(CAPITALS), help="how many facts")
    parser.add_argument("--methods", nargs="+", default=METHODS)
    parser.add_argument("--model", default="smollm2", help="a name or a folder")
    parser.add_argument("--layer", type=int, help="block that ROME and its kin edit")
    parser.add_argument("--text", type=Path, help="text for the statistics")
    parser.add_argument("--write", action="store_true", help="write the table into the page")
    options = parser.parse_args()
    lm = cg.load(options.model)
    facts = list_facts(options.facts)
    result = {
        "model": lm.name,
        "facts": len(facts),
    }
    for method in options.methods:
        located = method in ("rome", "memit", "alphaedit")
        chosen = {"layer": options.layer} if located and options.layer is not None else {}
        if located and options.text is not None:
            chosen["corpus"] = [options.text]
        start = time.process_time()
        result[method] = measure(lm, method, facts, chosen)
        result[f"{method}_seconds"] = round(time.process_time() - start, 1)
        gc.collect()
    if options.write:
        write_table(result, options.methods)
    publish(result)


def write_table(result: dict[str, object], methods: list[str]) -> None:
    """Put the table between the markers of the page."""
    lines = [
        "| method | weights | efficacy | paraphrases | neighbours kept | kept unedited |",
        "|---|---|---|---|---|---|",
        *(
            f"| {method} | {name} | {one['prompt']:.2f} | {one['paraphrase']:.2f} | "
            f"{one['neighbour']:.2f} | {one.get('unedited', 1.0):.2f} |"
            for method in methods
            for name, one in result[method].items()
        ),
    ]
    text = PAGE.read_text(encoding="utf-8") if PAGE.is_file() else ""
    if BEGIN not in text:
        text += f"\n## What quantising leaves\n\n{BEGIN}\n{END}\n"
    head, rest = text.split(BEGIN)
    tail = rest.split(END)[1]
    note = f"{result['facts']} facts, model {result['model']}."
    table = "\n".join([BEGIN, note, "", *lines, END])
    PAGE.write_text(f"{head}{table}{tail}", encoding="utf-8")


if __name__ == "__main__":
    main()
