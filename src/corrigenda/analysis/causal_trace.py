"""Causal tracing: which hidden states restore a fact after its subject was noised."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from corrigenda.analysis.heatmap import Plot
from corrigenda.analysis.state_restoration import (
    Restoration,
    TracedPrompt,
    compute_probabilities,
    draw_noise,
)
from corrigenda.analysis.trace_effects import Bin, EarlySite, Kind, TraceEffects
from corrigenda.analysis.windows import default_window, window_around
from corrigenda.engines.pocket_world import subject_of
from corrigenda.errors import BadConfig
from corrigenda.facts import Fact, find_subject
from corrigenda.lm.model import LanguageModel
from corrigenda.lm.prompt_checks import check_answer, check_prompts, check_seed
from corrigenda.lm.sites import Point, Tokens, state
from corrigenda.lm.spans import encode
from corrigenda.lm.wrapping import require_lm
from corrigenda.settings import parse_choice

CAVEAT = (
    "A trace says where information passes; it does not say where an edit works best "
    "(Hase et al. 2023)."
)


@dataclass(frozen=True, kw_only=True, repr=False)
class CausalTrace(TraceEffects):
    """Indirect effects of restoring states of one prompt.

    Attributes:
        prompt: Text traced.
        subject: Text whose embeddings are noised.
        answer: Text whose probability is read.
        tokens: Text of every prompt token, for display.
        subject_tokens: Positions of the subject's tokens.
        noise: Standard deviation of the noise, in units of the embeddings.
        samples: Number of noise samples.
        window: Blocks restored at once for MLP and attention.
        seed: Of the noise.
        effects: Indirect effect, mean over samples, by kind, token and block. Tokens before the
            subject hold exact zeros: the noise does not reach them.
        errors: Standard errors of `effects` over the samples.
    """

    prompt: str
    subject: str
    answer: str
    tokens: tuple[str, ...]
    subject_tokens: range
    noise: float
    samples: int
    window: int
    seed: int

    def bins(self) -> dict[Bin, list[int]]:
        """Return the positions of the prompt by group; tokens before the subject are in none."""
        first, last, end = self.subject_tokens[0], self.subject_tokens[-1], len(self.tokens) - 1
        groups = {
            Bin.SUBJECT_FIRST: [first],
            Bin.SUBJECT_MIDDLE: list(range(first + 1, last)),
            Bin.SUBJECT_LAST: [last],
            Bin.AFTER_FIRST: [last + 1] if last + 1 < end else [],
            Bin.AFTER_FURTHER: list(range(last + 2, end)),
            Bin.LAST: [end] if end > last else [],
        }
        return groups

    def early_site(self, kind: Kind | None = None) -> EarlySite:
        """Find the largest indirect effect outside the prompt's last token.

        A prompt that ends with its subject has no other place to look, so there the last token
        counts.

        Args:
            kind: Look at this kind only; all that were traced if None.
        """
        groups = self.bins()
        stop = len(self.tokens) - bool(groups[Bin.LAST])
        best: EarlySite | None = None
        for each in self.effects if kind is None else [kind]:
            grid = self.effects[each][:stop]
            token, layer = divmod(int(grid.argmax()), grid.shape[1])
            effect = float(grid[token, layer])
            if best is None or effect > best.effect:
                owners = [name for name, positions in groups.items() if token in positions]
                best = EarlySite(layer, token, each, effect, owners[-1] if owners else None)
        assert best is not None
        return best

    def summary(self) -> str:
        """Return the probabilities and the early site in a few lines."""
        site = self.early_site()
        place = "" if site.at_subject_last else "not "
        error = float(self.errors[site.kind][site.token, site.layer])
        spread = "" if math.isnan(error) else f" +- {error:.3f}"
        return (
            f'"{self.prompt}" -> "{self.answer}"\n'
            f"probability {self.clean:.3f}, with the subject noised {self.corrupted:.3f} "
            f"(total effect {self.total_effect:.3f}, noise {self.noise:.4g}, "
            f"{self.samples} samples)\n"
            f"early site: block {site.layer}, {site.kind} at {self.tokens[site.token].strip()!r} "
            f"({place}the subject's last token), indirect effect {site.effect:.3f}{spread}"
        )

    __repr__ = summary

    def plot(self) -> Plot:
        """Return heat maps of the effects: to print, to show in a notebook, or to `save`."""
        maps = self._make_maps(
            self.tokens,
            subject_last=self.subject_tokens[-1],
            marked=frozenset(self.subject_tokens),
            width=f"{self.window} block(s)",
        )
        return Plot(maps, caption=self.summary(), note=CAVEAT)

    def to_json(self) -> dict[str, object]:
        """Return plain dictionaries and lists, as `corrigenda trace --json` prints them."""
        site = self.early_site()
        return {
            "prompt": self.prompt,
            "subject": self.subject,
            "answer": self.answer,
            "tokens": list(self.tokens),
            "subject_tokens": list(self.subject_tokens),
            "clean": self.clean,
            "corrupted": self.corrupted,
            "total_effect": self.total_effect,
            "noise": self.noise,
            "samples": self.samples,
            "window": self.window,
            "seed": self.seed,
            "effects": {str(kind): grid.tolist() for kind, grid in self.effects.items()},
            "errors": {str(kind): grid.tolist() for kind, grid in self.errors.items()},
            "severed": {str(kind): curve.tolist() for kind, curve in self.severed.items()},
            "early_site": {**site._asdict(), "at_subject_last": site.at_subject_last},
            "caveat": CAVEAT,
        }


def causal_trace(
    lm: LanguageModel,
    prompt: str | Fact,
    subject: str | None = None,
    *,
    subject_start: int | None = None,
    answer: str | None = None,
    kinds: Kind | str | Sequence[Kind | str] = (Kind.STATE,),
    severed: Kind | str | Sequence[Kind | str] = (),
    window: int | None = None,
    samples: int = 10,
    noise: float | None = None,
    seed: int = 0,
    batch_tokens: int = 8192,
) -> CausalTrace:
    """Measure where a fact passes through a model.

    The embeddings of the subject's tokens get Gaussian noise, and single clean states are put back.
    The indirect effect of a state is the probability of the answer with that state restored minus
    the one without.

    Args:
        lm: The model; left as it was.
        prompt: Text up to the answer; or a fact, for its prompt and subject.
        subject: Text within the prompt; found where only one is possible, if None.
        subject_start: Character at which the subject starts, where it occurs more than once.
        answer: Text whose probability is read. The model's own next token if None, as in the paper;
            for an answer of several tokens the geometric mean of their probabilities under teacher
            forcing.
        kinds: What to restore: "state" (block outputs singly), "mlp", "attention" (their outputs in
            windows of blocks).
        severed: Paths to cut at the subject's last token: "mlp", "attention".
        window: Blocks restored at once for MLP and attention; `default_window` if None.
        samples: Noise samples. All restorations share them.
        noise: Standard deviation of the noise. If None, 3 times the deviation of this subject's own
            embeddings; take 3 times `subject_deviation` of all subjects for a set of facts.
        seed: Of the noise.
        batch_tokens: Tokens of one pass at most.

    Raises:
        SubjectNotFound (CG103), AmbiguousSubject (CG104): see `Fact.span`.
        PromptTooLong (CG105): prompt and answer exceed the context.
        EmptyTarget (CG102): an empty prompt or answer.
        BadConfig (CG502): no kind; a window, sample count, noise or seed out of range; or `severed`
            names the state.

    Reference: ROME (Meng et al. 2022), section 2 and appendix B. Unlike the authors' code, the
    subject is found by character offsets, and restorations share passes.
    """
    lm = require_lm(lm)
    if isinstance(prompt, Fact):
        subject, subject_start = subject or prompt.subject, prompt.subject_start
        prompt = prompt.prompt
    check_prompts([prompt])
    subject = subject or subject_of(lm, prompt)
    kinds, severed = _parse_kinds(kinds), _parse_kinds(severed)
    width = default_window(lm.num_layers) if window is None else window
    _check(kinds, severed, width, samples, noise)
    check_seed(seed)
    question, text = tokenise_prompt(
        lm, prompt, subject, subject_start=subject_start, answer=answer
    )
    if noise is None:
        noise = 3.0 * _measure_deviation(lm, question)
    draws = draw_noise(lm, len(question.subject), deviation=noise, samples=samples, seed=seed)
    cells = range(question.subject.start, question.prompt_last + 1)
    layers = range(lm.num_layers)
    plan = [
        Restoration((token,), _list_restored(kind, layer, width, lm.num_layers))
        for kind in kinds
        for token in cells
        for layer in layers
    ]
    last = question.subject[-1]
    plan += [
        Restoration((last,), (state(layer),), tuple(path.point(each) for each in layers))
        for path in severed
        for layer in layers
    ]
    read = compute_probabilities(lm, question, draws, plan, batch_tokens=batch_tokens)
    gains = (read.restored - read.corrupted).cpu().double()
    size = len(cells) * len(layers)
    effects, errors = {}, {}
    for number, kind in enumerate(kinds):
        grid = gains[number * size : (number + 1) * size].view(len(cells), len(layers), samples)
        effects[kind] = _prepend_zeros(grid.mean(dim=-1), cells.start)
        spread = grid.std(dim=-1) if samples > 1 else torch.full_like(grid[..., 0], math.nan)
        errors[kind] = _prepend_zeros(spread / math.sqrt(samples), cells.start)
    curves = gains[len(kinds) * size :].view(len(severed), len(layers), samples).mean(dim=-1)
    return CausalTrace(
        prompt=prompt,
        subject=subject,
        answer=text,
        tokens=tuple(str(lm.tokenizer.decode([one])) for one in question.ids[: cells.stop]),
        subject_tokens=question.subject,
        clean=float(read.clean),
        corrupted=float(read.corrupted.cpu().double().mean()),
        noise=noise,
        samples=samples,
        window=width,
        seed=seed,
        effects=effects,
        errors=errors,
        severed=dict(zip(severed, curves, strict=True)),
    )


def tokenise_prompt(
    lm: LanguageModel,
    prompt: str,
    subject: str,
    *,
    subject_start: int | None = None,
    answer: str | None = None,
) -> tuple[TracedPrompt, str]:
    """Tokenise a prompt for tracing; return it with the text of the answer that is read.

    Raises:
        SubjectNotFound (CG103), AmbiguousSubject (CG104), PromptTooLong (CG105): see
            `causal_trace`.
    """
    check_answer(answer)
    span = find_subject(prompt, subject, start=subject_start)
    encoded = encode(lm, prompt, target=answer or "", subject=span)
    assert encoded.subject_first is not None
    assert encoded.subject_last is not None
    positions = range(encoded.subject_first, encoded.subject_last + 1)
    if answer is not None:
        labels = encoded.target_ids
        kept = tuple(encoded.ids[: encoded.prompt_last + len(labels)])
        return TracedPrompt(kept, positions, encoded.prompt_last, labels), answer
    ids = torch.tensor([encoded.ids], device=lm.device)
    top = state(lm.num_layers - 1)
    end = torch.tensor([encoded.prompt_last], device=lm.device)
    hidden = lm.tap(Tokens(ids, torch.ones_like(ids)), [top], positions=end)[top]
    with torch.inference_mode():
        label = int(lm.head(hidden)[0].argmax())
    question = TracedPrompt(tuple(encoded.ids), positions, encoded.prompt_last, (label,))
    return question, str(lm.tokenizer.decode([label])).strip()


def _measure_deviation(lm: LanguageModel, question: TracedPrompt) -> float:
    embed = lm.model.get_input_embeddings()
    ids = question.ids[question.subject.start : question.subject.stop]
    with torch.inference_mode():
        return float(embed(torch.tensor(ids, device=lm.device)).cpu().double().std(correction=0))


def _list_restored(kind: Kind, layer: int, width: int, num_layers: int) -> tuple[Point, ...]:
    if kind is Kind.STATE:
        return (kind.point(layer),)
    return tuple(kind.point(each) for each in window_around(layer, width, num_layers))


def _prepend_zeros(grid: Float[Tensor, "rows layer"], before: int) -> Float[Tensor, "pos layer"]:
    return torch.cat([grid.new_zeros(before, grid.shape[1]), grid])


def _parse_kinds(given: Kind | str | Sequence[Kind | str]) -> tuple[Kind, ...]:
    several = [given] if isinstance(given, str) else given
    return tuple(dict.fromkeys(parse_choice(Kind, kind) for kind in several))


def _check(
    kinds: Sequence[Kind], severed: Sequence[Kind], window: int, samples: int, noise: float | None
) -> None:
    if not kinds:
        raise BadConfig("nothing to restore.", hint="Name one of state, mlp, attention.")
    if Kind.STATE in severed:
        raise BadConfig("only the paths through mlp and attention can be severed.")
    if window < 1:
        raise BadConfig(f"a window of {window} blocks.", hint="Give 1 or more.")
    if samples < 1:
        raise BadConfig(f"{samples} noise samples.", hint="Give 1 or more.")
    if noise is not None and not (math.isfinite(noise) and noise >= 0):
        raise BadConfig(f"noise of {noise}.", hint="Give a standard deviation, 0 or more.")
