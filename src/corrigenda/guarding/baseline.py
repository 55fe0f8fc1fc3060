"""The unedited model on what an edit must not change, and the same asked with an edit."""

from __future__ import annotations

import random
from collections.abc import Collection, Sequence

import torch
from torch import Tensor
from torch.nn.functional import kl_div

from corrigenda.abilities.harness import HarnessTask, scores
from corrigenda.engines.ordinary_text import draw_rows
from corrigenda.facts import Fact
from corrigenda.guarding.damage import PairedValue
from corrigenda.guarding.limits import Measure
from corrigenda.guarding.questions import (
    KeptPrompt,
    draw_related,
    draw_unrelated,
    list_own_prompts,
    mentions,
    separate_cases,
)
from corrigenda.knowledge.edit_trial import Unedited
from corrigenda.lm.chat import word_turn
from corrigenda.lm.decoding import encode_prompts
from corrigenda.lm.interception import ask_rewritten
from corrigenda.lm.model import LanguageModel
from corrigenda.lm.model_names import SHIPPED
from corrigenda.lm.scoring import Fed, rate
from corrigenda.progress import report_stage
from corrigenda.statistics.corpus import Corpus, Source

ANSWERS = (Measure.SAME_RELATION, Measure.OTHER_RELATIONS, Measure.SAME_SUBJECT)
"""Measures of answers kept."""

_LENGTH = 48
_SHORTEST_PROMPT = 4
_TEXTS_A_ROW = 3
_ASKED_AT_ONCE = 100
_ASKED_MOST = 8


class Baseline:
    """Answers, distributions and likelihoods of the unedited model, compared with those of edits.

    Facts that the model does not know are left out; texts that name an edited subject too. What is
    asked of the unedited model is kept in the cache.
    """

    def __init__(
        self,
        lm: LanguageModel,
        facts: Sequence[Fact],
        *,
        sample: int,
        seed: int = 0,
        corpus: Corpus | Source | None = None,
        tasks: Sequence[HarnessTask] = (),
        chat: bool = False,
    ) -> None:
        """Ask the model, which carries no edit of these facts.

        Args:
            lm: The model.
            facts: The facts of the edit.
            sample: Known facts of each kind, and ordinary texts.
            seed: Decides the draw.
            corpus: Ordinary text; see `engines.ordinary_text.draw_rows` for None.
            tasks: Tasks of lm-eval.
            chat: Whether half of the prompts are turns of a user in the chat template.
        """
        self.facts, self.sample, self.seed = list(facts), sample, seed
        self.tasks = list(tasks)
        self._prompts, self._unedited = self._find_known(lm)
        self._rows = self._draw_rows(lm, corpus)
        draw = random.Random(f"guard/{seed}/prompts")
        self._texts = [
            _decode(lm, row[: draw.randint(min(_SHORTEST_PROMPT, len(row)), len(row))])
            for row in self._rows
        ]
        asked = [one.prompt for one in self._prompts if one.measure is Measure.OTHER_RELATIONS]
        self._turns = [word_turn(text).write(text) for text in asked[: sample // 2] if chat]
        self._distributions = self._read_prompts(lm)
        self._losses = self._read_texts(lm)
        self._scores = self._run_tasks(lm)

    def measure(
        self, lm: LanguageModel, only: Collection[Measure] | None = None
    ) -> list[PairedValue]:
        """Ask again, with the patches that are active now.

        Args:
            lm: The model.
            only: Measures to take; all of them if None.
        """
        wanted = set(Measure if only is None else only)
        found: list[PairedValue] = []
        if wanted & set(ANSWERS):
            asked = [one for one in self._prompts if one.measure in wanted]
            kept = self._unedited.compare(lm, list(dict.fromkeys(one.prompt for one in asked)))
            found += [
                PairedValue(one.measure, one.case, 1.0, float(kept[one.prompt])) for one in asked
            ]
        if Measure.DIVERGENCE in wanted:
            now = self._read_prompts(lm)
            divergence = [
                float(kl_div(after, before, reduction="sum", log_target=True))
                for before, after in zip(self._distributions, now, strict=True)
            ]
            # Rounding can make it less than 0.
            found += [
                PairedValue(Measure.DIVERGENCE, f"prompt {place}", 0.0, max(0.0, value))
                for place, value in enumerate(divergence)
            ]
        if Measure.PERPLEXITY in wanted:
            found += [
                PairedValue(Measure.PERPLEXITY, f"text {place}", old, new, len(row) - 1)
                for place, (row, old, new) in enumerate(
                    zip(self._rows, self._losses, self._read_texts(lm), strict=True)
                )
            ]
        if Measure.TASKS in wanted and self.tasks:
            now = self._run_tasks(lm)
            found += [
                PairedValue(Measure.TASKS, name, old, now[name])
                for name, old in self._scores.items()
                if name in now
            ]
        return found

    def _find_known(self, lm: LanguageModel) -> tuple[list[KeptPrompt], Unedited]:
        """Return the prompts whose answers the model knows, or that the facts name."""
        invented = lm.name in SHIPPED
        own = list_own_prompts(self.facts, self.sample, self.seed)
        # Not all are known, so more are asked.
        related = draw_related(self.facts, 3 * self.sample, self.seed, invented=invented)
        others = draw_unrelated(self.facts, self.seed, invented=invented)
        known = self._keep_known(lm, related, "facts of relation and subject")
        chosen: list[KeptPrompt] = [*own]
        for measure in (Measure.SAME_RELATION, Measure.SAME_SUBJECT):
            room = self.sample - sum(one.measure is measure for one in own)
            chosen += [one for one in known if one.measure is measure][: max(0, room)]
        unrelated: list[KeptPrompt] = []
        for begin in range(0, min(_ASKED_MOST * self.sample, len(others)), _ASKED_AT_ONCE):
            part = others[begin : begin + _ASKED_AT_ONCE]
            unrelated += self._keep_known(lm, part, "facts of other relations")
            if len(unrelated) >= self.sample:
                break
        chosen = separate_cases([*chosen, *unrelated[: self.sample]])
        return chosen, Unedited(lm, {one.prompt: one.right for one in chosen})

    def _keep_known(
        self, lm: LanguageModel, prompts: Sequence[KeptPrompt], stage: str
    ) -> list[KeptPrompt]:
        report_stage(f"guard: {stage}", 0, 1)
        known = Unedited(lm, {one.prompt: one.right for one in prompts}).known
        report_stage(f"guard: {stage}", 1, 1)
        return [one for one in prompts if one.prompt in known]

    def _draw_rows(self, lm: LanguageModel, corpus: Corpus | Source | None) -> list[list[int]]:
        rows = draw_rows(
            lm, corpus, count=_TEXTS_A_ROW * self.sample, length=_LENGTH, seed=self.seed
        )
        plain = [row for row in rows if not mentions(_decode(lm, row), self.facts)]
        return plain[: self.sample]

    def _read_prompts(self, lm: LanguageModel) -> list[Tensor]:
        """Return the log-probabilities of the first token after every prompt."""

        def ask(
            lm: LanguageModel, _: list[int], prompts: list[str], *, chat: bool = False
        ) -> list[Tensor]:
            rows = encode_prompts(lm, prompts, chat=chat)
            fed = [Fed(row, range(len(row) - 1, len(row))) for row in rows]
            rated = rate(lm, fed, whole=range(len(fed)), share=False)
            found = [one.distributions for one in rated]
            assert all(one is not None for one in found), "asked for"
            return [one[0] for one in found if one is not None]

        plain = ask_rewritten(lm, self._texts, ask)
        chat = ask_rewritten(lm, self._turns, lambda *a: ask(*a, chat=True))
        return [*plain, *chat]

    @torch.no_grad()
    def _read_texts(self, lm: LanguageModel) -> list[float]:
        """Return minus the log-likelihood of every text, of all its tokens but the first."""
        fed = [Fed(row[:-1], range(len(row) - 1), tuple(row[1:])) for row in self._rows]
        return [-sum(one.log_probs) for one in rate(lm, fed, share=False)]

    def _run_tasks(self, lm: LanguageModel) -> dict[str, float]:
        """Return the scores of lm-eval, by task and item."""
        if not self.tasks:
            return {}
        return {f"{one.name}/{one.case}": float(one.values[0]) for one in scores(lm, self.tasks)}


def _decode(lm: LanguageModel, row: Sequence[int]) -> str:
    return str(lm.tokenizer.decode(list(row), skip_special_tokens=True))
