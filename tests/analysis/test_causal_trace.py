"""Causal traces, their early site and their averages."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import pytest
import torch

from corrigenda.analysis.causal_trace import CausalTrace, causal_trace
from corrigenda.analysis.trace_average import average_traces
from corrigenda.analysis.trace_effects import Bin, Kind
from corrigenda.analysis.windows import window_around
from corrigenda.errors import BadConfig
from corrigenda.lm.model import LanguageModel
from corrigenda.testing import tiny
from corrigenda.testing.tiny import tiny_model

FAMILIES = ("gpt2", "llama", "gptj", "gemma2")
PROMPT, SUBJECT = "The tower of the Space Needle is in", "the Space Needle"


@pytest.fixture(scope="module", params=FAMILIES)
def lm(request: pytest.FixtureRequest) -> LanguageModel:
    return tiny_model(request.param)


def made(values: dict[Kind, torch.Tensor], *, subject: range, clean: float = 1.0) -> CausalTrace:
    """A trace with the effects given."""
    length = next(iter(values.values())).shape[0]
    return CausalTrace(
        prompt="p",
        subject="s",
        answer="a",
        tokens=tuple("abcdefghij"[:length]),
        subject_tokens=subject,
        clean=clean,
        corrupted=0.5,
        noise=1.0,
        samples=2,
        window=1,
        seed=0,
        effects=values,
        errors=values,
        severed={},
    )


def test_effects_obey_the_laws(lm: LanguageModel) -> None:
    trace = causal_trace(
        lm, PROMPT, SUBJECT, kinds=tuple(Kind), severed=(Kind.MLP,), samples=2, window=2
    )
    shape = (len(trace.tokens), lm.num_layers)
    first = trace.subject_tokens[0]
    assert first > 0
    for kind in Kind:
        assert trace.effects[kind].shape == trace.errors[kind].shape == shape
        assert not trace.effects[kind][:first].any()
        assert trace.effects[kind][first:].abs().max() > 1e-8
    assert float(trace.effects[Kind.STATE][-1, -1]) == pytest.approx(trace.total_effect, abs=1e-7)
    assert trace.severed[Kind.MLP].shape == (lm.num_layers,)
    ordinary = trace.effects[Kind.STATE][trace.subject_tokens[-1]]
    # After the last block nothing is left to sever; before it, something is.
    torch.testing.assert_close(trace.severed[Kind.MLP][-1], ordinary[-1], rtol=1e-4, atol=1e-8)
    assert (trace.severed[Kind.MLP] - ordinary)[:-1].abs().max() > 1e-8


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_every_family_can_be_traced(family: str) -> None:
    trace = causal_trace(tiny_model(family), PROMPT, SUBJECT, kinds=tuple(Kind), samples=2)
    state = trace.effects[Kind.STATE]
    assert float(state[-1, -1]) == pytest.approx(trace.total_effect, abs=1e-7)
    assert min(grid.abs().max() for grid in trace.effects.values()) > 1e-6


def test_without_noise_all_effects_vanish(lm: LanguageModel) -> None:
    trace = causal_trace(lm, PROMPT, SUBJECT, kinds=tuple(Kind), samples=2, noise=0.0)
    assert trace.total_effect == pytest.approx(0, abs=1e-8)
    for grid in trace.effects.values():
        torch.testing.assert_close(grid, torch.zeros_like(grid), rtol=0, atol=1e-8)


def test_same_seed_same_table_and_another_seed_another(lm: LanguageModel) -> None:
    one, two, other = (
        causal_trace(lm, PROMPT, SUBJECT, samples=2, seed=seed) for seed in (0, 0, 1)
    )
    assert torch.equal(one.effects[Kind.STATE], two.effects[Kind.STATE])
    assert not torch.equal(one.effects[Kind.STATE], other.effects[Kind.STATE])


def test_window_of_one_block_is_the_single_output(lm: LanguageModel) -> None:
    from corrigenda.analysis.causal_trace import tokenise_prompt
    from corrigenda.analysis.state_restoration import Restoration, compute_probabilities, draw_noise

    trace = causal_trace(lm, PROMPT, SUBJECT, kinds=(Kind.MLP,), window=1, samples=2, noise=1.0)
    question, _ = tokenise_prompt(lm, PROMPT, SUBJECT)
    noise = draw_noise(lm, len(question.subject), deviation=1.0, samples=2, seed=0)
    token = question.subject[-1]
    read = compute_probabilities(lm, question, noise, [Restoration((token,), (Kind.MLP.point(1),))])
    single = float((read.restored[0] - read.corrupted).double().mean())
    assert float(trace.effects[Kind.MLP][token, 1]) == pytest.approx(single, rel=1e-3, abs=1e-9)


def test_model_is_left_as_it_was() -> None:
    lm = tiny_model("llama")
    before = lm.digest()
    causal_trace(lm, PROMPT, SUBJECT, kinds=tuple(Kind), severed=(Kind.ATTENTION,), samples=1)
    assert lm.digest() == before


def test_answers_of_several_tokens_are_read_under_teacher_forcing() -> None:
    from corrigenda.lm.decoding import score

    lm = tiny_model("gpt2")
    trace = causal_trace(lm, PROMPT, SUBJECT, answer="Seattle, Washington", samples=1)
    (said,) = score(lm, [(PROMPT, "Seattle, Washington")])
    assert len(said.ids) > 1
    assert trace.clean == pytest.approx(math.exp(said.mean), rel=1e-4)
    assert len(trace.tokens) == trace.effects[Kind.STATE].shape[0]


def test_one_sample_has_no_standard_error() -> None:
    trace = causal_trace(tiny_model("gpt2"), PROMPT, SUBJECT, samples=1)
    first = trace.subject_tokens[0]
    assert trace.errors[Kind.STATE][first:].isnan().all()


@pytest.mark.parametrize("width", [1, 2, 3, 10, 100])
def test_windows_hold_their_centre_and_stay_in_the_model(width: int) -> None:
    for layer in range(12):
        window = window_around(layer, width, 12)
        assert layer in window
        assert window.start >= 0
        assert window.stop <= 12
        assert len(window) <= width
    assert window_around(15, 10, 48) == range(10, 20)


def test_early_site_leaves_the_last_token_out() -> None:
    grid = torch.zeros(6, 4)
    grid[5, 3], grid[2, 1], grid[1, 0] = 0.9, 0.5, 0.3
    trace = made({Kind.STATE: grid, Kind.MLP: grid / 2}, subject=range(1, 3))
    site = trace.early_site()
    assert site[:3] == (1, 2, Kind.STATE)
    assert site.bin is Bin.SUBJECT_LAST
    assert site.at_subject_last
    assert trace.early_site(Kind.MLP).effect == pytest.approx(0.25)
    assert not made({Kind.STATE: grid}, subject=range(1, 2)).early_site().at_subject_last


def test_subject_of_one_token_counts_as_first_and_last() -> None:
    trace = made({Kind.STATE: torch.zeros(6, 2)}, subject=range(1, 2))
    groups = trace.bins()
    assert groups[Bin.SUBJECT_FIRST] == groups[Bin.SUBJECT_LAST] == [1]
    assert groups[Bin.AFTER_FIRST] == [2]
    assert groups[Bin.AFTER_FURTHER] == [3, 4]
    assert groups[Bin.LAST] == [5]


def test_subject_at_the_end_is_no_last_token_of_its_own() -> None:
    grid = torch.zeros(4, 2)
    grid[3, 1] = 0.5
    trace = made({Kind.STATE: grid}, subject=range(2, 4))
    assert trace.bins()[Bin.LAST] == []
    assert trace.early_site().at_subject_last


def test_token_next_to_the_subject_that_ends_the_prompt_is_only_last() -> None:
    groups = made({Kind.STATE: torch.zeros(4, 2)}, subject=range(1, 3)).bins()
    assert groups[Bin.AFTER_FIRST] == []
    assert groups[Bin.LAST] == [3]


def test_averages_are_over_the_prompts_that_have_the_token() -> None:
    long, short = torch.zeros(7, 2), torch.zeros(4, 2)
    long[1:4, 0] = torch.tensor([0.1, 0.6, 0.3])
    long[5, 1] = 0.7
    short[1:3, 0] = torch.tensor([0.3, 0.5])
    traces = [
        made({Kind.STATE: long}, subject=range(1, 4)),
        made({Kind.STATE: short}, subject=range(1, 3)),
    ]
    average = average_traces(traces)
    grid = dict(zip(Bin, average.effects[Kind.STATE][:, 0].tolist(), strict=True))
    assert grid[Bin.SUBJECT_FIRST] == pytest.approx(0.2)
    assert grid[Bin.SUBJECT_MIDDLE] == pytest.approx(0.6)
    assert grid[Bin.SUBJECT_LAST] == pytest.approx(0.4)
    further = average.effects[Kind.STATE][list(Bin).index(Bin.AFTER_FURTHER)]
    assert further[1] == pytest.approx(0.7)
    error = average.errors[Kind.STATE][list(Bin).index(Bin.SUBJECT_LAST), 0]
    assert float(error) == pytest.approx(0.1)
    assert average.early_site()[:3] == (Bin.AFTER_FURTHER, 1, Kind.STATE)
    assert average.num_traces == 2
    assert average.total_effect == pytest.approx(0.5)


def test_prompts_without_total_effect_are_left_out() -> None:
    trace = made({Kind.STATE: torch.ones(4, 2)}, subject=range(1, 3))
    flat = replace(trace, clean=0.5)
    assert average_traces([trace, flat], least_total_effect=0.1).num_traces == 1
    with pytest.raises(BadConfig, match="none of 1 traces"):
        average_traces([flat], least_total_effect=0.1)


def test_json_is_plain(lm: LanguageModel) -> None:
    trace = causal_trace(lm, PROMPT, SUBJECT, samples=2, severed=(Kind.MLP,))
    record = json.loads(json.dumps(trace.to_json()))
    assert record["early_site"]["kind"] == "state"
    assert len(record["effects"]["state"]) == len(record["tokens"])
    assert "where information passes" in record["caveat"]
    json.dumps(average_traces([trace]).to_json())
