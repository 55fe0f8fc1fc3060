"""Many edits in batches, one after the other: what stays of all edits so far, at checkpoints.

    python perf/many_edits.py [--model pocket] [--edits 2000] [--batch 100] [--only memit,encore]

Half the facts have real subjects, half invented ones; each batch is edited on top of those before.
At each checkpoint a sample of all edits so far is asked: efficacy and paraphrases (the new object
is said), neighbours and other facts of the subjects (the answer of the unedited model is kept), and
the mean perplexity of text over that of the unedited model. Seconds are of `edit`, per fact, in the
batches since the last checkpoint. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import statistics
from contextlib import ExitStack

from figures import publish

from corrigenda.almanac.corpus import texts
from corrigenda.almanac.exam import draw_edits
from corrigenda.almanac.world import load_world
from corrigenda.knowledge.edit_trial import EditTrial, Unedited
from corrigenda.lm.model import LanguageModel
from corrigenda.methods.presets import build_editor
from corrigenda.run.health import compute_ratio, make_text_query
from corrigenda.run.prober import ask
from corrigenda.statistics.corpus import Corpus

VARIANTS: dict[str, tuple[str, dict[str, object]]] = {
    "memit": ("memit", {"sequential": True}),
    "encore": ("memit", {"preset": "{model}-encore"}),
    "alphaedit": ("alphaedit", {}),
    "alphaedit-nas": ("alphaedit", {"preset": "{model}-nas"}),
    "alphaedit-blue": ("alphaedit", {"preset": "{model}-blue"}),
    "memit-simie": ("memit", {"preset": "{model}-simie"}),
    "ultraedit": ("ultraedit", {}),
    "neuraldb": ("neuraldb", {}),
    "grace": ("grace", {}),
}
"""What is compared: method and options; `{model}` is the name of the model."""

TEXTS = 60


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="pocket", help="a name or a folder")
    parser.add_argument("--edits", type=int, default=2000)
    parser.add_argument("--batch", type=int, default=100)
    parser.add_argument("--checkpoints", type=int, default=4)
    parser.add_argument("--sample", type=int, default=200, help="edits asked at a checkpoint")
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--only", default=",".join(VARIANTS), help="variants, with commas")
    options = parser.parse_args()
    lm = LanguageModel.load(options.model)
    table: dict[str, object] = {}
    for name in options.only.split(","):
        for row in measure(lm, name, options):
            table[f"{name}: {row['edits']}"] = row
            print(f"{name:>16} {row}", flush=True)
    publish({"model": lm.name, "batch": options.batch, "sample": options.sample, **table})


def measure(
    lm: LanguageModel, name: str, options: argparse.Namespace
) -> list[dict[str, float | None]]:
    """Return one row a checkpoint."""
    method, given = VARIANTS[name]
    given = {key: _fill(value, lm.name) for key, value in given.items()}
    editor = build_editor(method, lm.name, **given)
    cases = draw_edits(load_world(), options.edits, seed=options.seed)
    state = editor.fit(lm, Corpus(list(texts(3000))) if editor.requires.moments else None)
    queries = [make_text_query(text) for text in list(texts(3000 + TEXTS))[3000:]]
    before = ask(lm, queries).given
    unedited = Unedited(lm, cases)
    rows, done = [], 0
    marks = {
        round(options.edits * (i + 1) / options.checkpoints) for i in range(options.checkpoints)
    }
    with ExitStack() as stack:
        trial = EditTrial(lm, editor, unedited)
        for begin in range(0, len(cases), options.batch):
            part = cases[begin : begin + options.batch]
            patch, state = trial.edit(part, state)
            stack.enter_context(patch.apply(lm))
            done += len(part)
            if done not in marks:
                continue
            step = max(1, done // options.sample)
            trial.outcomes.clear()
            trial.judge(cases[:done:step])
            figures = trial.figures()
            asked = ask(lm, queries).given
            rows.append(
                {
                    "edits": done,
                    "efficacy": _round(figures.efficacy),
                    "paraphrase": _round(figures.paraphrase),
                    "neighbours": _round(figures.locality),
                    "same_subject": _round(figures.same_subject),
                    "perplexity": round(compute_ratio(asked, before), 3),
                    "seconds": round(statistics.median(trial.seconds), 4),
                }
            )
            trial.seconds.clear()
    return rows


def _fill(value: object, model: str) -> object:
    return value.replace("{model}", model) if isinstance(value, str) else value


def _round(value: float | None) -> float | None:
    return None if value is None else round(value, 3)


if __name__ == "__main__":
    main()
