"""The list of active patches and the weights agree, whatever interrupts, fails, or runs beside."""

from __future__ import annotations

import copy
import os
import random
import signal
import sys
import threading
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress
from types import FrameType

import pytest
import torch
from torch import nn

from corrigenda.errors import NonFinite, NotApplied, NotExportable, WeightsChanged
from corrigenda.facts import Fact
from corrigenda.lm.model import LanguageModel
from corrigenda.lm.session import session_of
from corrigenda.lm.sites import Site
from corrigenda.methods.presets import build_editor
from corrigenda.patch import Dense, WeightPatch, header_for
from corrigenda.patch import ledger as ledger_module
from corrigenda.statistics import Corpus
from corrigenda.testing.tiny import tiny_model
from tests.support.patches import *  # noqa: F403

SITES = "0.mlp.down 2.mlp.down 2.attn.out"


def weights_of(lm: LanguageModel) -> list[torch.Tensor]:
    return [lm.weight(Site.parse(site)).clone() for site in SITES.split()]


def agree(lm: LanguageModel, start: list[torch.Tensor]) -> bool:
    """Whether each weight is what the active patches make of it, in their order."""
    expected = [weight.double() for weight in start]
    for entry in lm.patches.entries:
        for site, change in entry.changes:
            place = SITES.split().index(str(site))
            expected[place] = expected[place] + change.to_dense()
    return all(
        torch.equal(found, wanted.to(found.dtype))
        for found, wanted in zip(weights_of(lm), expected, strict=True)
    )


@contextmanager
def interrupted_at(line: int, file: str) -> Generator[list[int]]:
    """Raise KeyboardInterrupt at the given line event of a file, counted from 0."""
    count = [0]

    def local(frame: FrameType, event: str, _: object) -> object:
        if event == "line":
            count[0] += 1
            if count[0] == line + 1:
                sys.settrace(None)
                raise KeyboardInterrupt
        return local

    def trace(frame: FrameType, event: str, _: object) -> object:
        return local if frame.f_code.co_filename == file else None

    sys.settrace(trace)
    try:
        yield count
    finally:
        sys.settrace(None)


@contextmanager
def interrupted_after(seconds: float) -> Generator[None]:
    """Send this process SIGINT after some time, and each second until it ends.

    Python drops an interrupt that arrives in a finaliser, and a shell may start this process in the
    background with interrupts ignored: the test would wait for ever.
    """
    ignored = signal.signal(signal.SIGINT, signal.default_int_handler)
    before = signal.signal(signal.SIGALRM, lambda *_: os.kill(os.getpid(), signal.SIGINT))
    try:
        signal.setitimer(signal.ITIMER_REAL, seconds, 1.0)
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
        signal.signal(signal.SIGINT, ignored)


def count_lines(action: Callable[[], object], file: str) -> int:
    with interrupted_at(-2, file) as count:
        action()
    return count[0]


def test_an_interrupt_at_any_line_leaves_list_and_weights_in_agreement(make_patch) -> None:
    """Every line of the ledger that apply and revert run, one after the other."""
    file = str(ledger_module.__file__)
    lm = tiny_model("gpt2", layers=3)
    start, digest = weights_of(lm), lm.digest()
    first, second = make_patch(lm, SITES, seed=1), make_patch(lm, SITES, seed=5)

    def both() -> None:
        applied = [first.apply(lm), second.apply(lm)]
        for entry in applied:
            entry.revert()

    for line in range(count_lines(both, file)):
        with pytest.raises(KeyboardInterrupt), interrupted_at(line, file):
            both()
        assert agree(lm, start), f"interrupted at line event {line}"
        lm.patches.clear()
        assert lm.digest() == digest
        assert not session_of(lm.model).weights or not lm.patches
    both()
    assert lm.digest() == digest


@pytest.mark.parametrize("moments", [12, pytest.param(60, marks=pytest.mark.slow)])
def test_signals_at_random_moments(make_patch, moments: int) -> None:
    """SIGINT from a timer, anywhere within apply and revert, in both modes."""
    lm = tiny_model("gpt2", layers=3)
    start, digest = weights_of(lm), lm.digest()
    patches = [make_patch(lm, SITES, seed=seed) for seed in (1, 5)]
    draw = random.Random(0)
    plain = lm.tap("state", layer=2, prompt="Rome is the capital")
    hits = 0
    for turn in range(moments):
        mode = "merge" if turn % 3 else "runtime"
        try:
            with interrupted_after(draw.uniform(1e-4, 0.03)):
                for _ in range(20):
                    with patches[0].apply(lm, mode=mode), patches[1].apply(lm, mode=mode):
                        pass
        except KeyboardInterrupt:
            hits += 1
        assert agree(lm, start)
        lm.patches.clear()
        assert lm.digest() == digest
        assert torch.equal(lm.tap("state", layer=2, prompt="Rome is the capital"), plain)
    assert hits > moments // 2


def test_an_interrupt_inside_of_a_write_keeps_the_patch(make_patch, monkeypatch) -> None:
    """The issue's example: the second of three weights is interrupted while a patch comes off."""
    lm = tiny_model("gpt2", layers=3)
    start = weights_of(lm)
    applied = make_patch(lm, SITES).apply(lm)
    plain, calls = LanguageModel.write, []

    def write(self, site, weight):
        calls.append(site)
        if len(calls) == 2:
            raise KeyboardInterrupt
        plain(self, site, weight)

    monkeypatch.setattr(LanguageModel, "write", write)
    with pytest.raises(KeyboardInterrupt):
        applied.revert()
    assert applied.active
    assert agree(lm, start)
    applied.revert()
    assert not applied.active
    assert agree(lm, start)


def test_a_revert_that_would_overflow_keeps_the_patch(make_patch, bits, same_bits) -> None:
    """In half precision one patch may be bearable only together with another."""
    lm = tiny_model("llama", dtype=torch.float16)
    shape = tuple(lm.weight(Site(2)).shape)
    up, down = (
        WeightPatch({Site(2): Dense(torch.full(shape, size))}, header_for(lm, method="m"))
        for size in (-6.5e4, 1.3e5)
    )
    before = bits(lm)
    first = up.apply(lm)
    second = down.apply(lm)
    both = bits(lm)
    with pytest.raises(NonFinite, match="CG201"):
        first.revert()
    assert first.active
    assert same_bits(lm, both)
    assert len(lm.patches) == 2
    second.revert()
    first.revert()
    assert same_bits(lm, before)


@pytest.mark.parametrize("trials", [15, pytest.param(100, marks=pytest.mark.slow)])
def test_two_threads_leave_right_weights(make_patch, trials: int) -> None:
    lm = tiny_model("gpt2", layers=3)
    start, digest = weights_of(lm), lm.digest()
    patches = [make_patch(lm, SITES, seed=seed) for seed in (1, 5, 9, 13)]
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        for _ in range(trials):
            errors: list[BaseException] = []

            def work(own, gate, errors=errors) -> None:
                try:
                    gate.wait()
                    for _ in range(4):
                        applied = [patch.apply(lm) for patch in own]
                        for entry in applied[:-1]:
                            entry.revert()
                        if _ < 3:
                            applied[-1].revert()
                except BaseException as error:
                    errors.append(error)

            gate = threading.Barrier(2)
            threads = [
                threading.Thread(target=work, args=(patches[place::2], gate)) for place in (0, 1)
            ]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            assert not errors
            assert len(lm.patches) == 2
            assert agree(lm, start)
            lm.patches.clear()
            assert lm.digest() == digest
    finally:
        sys.setswitchinterval(interval)


def test_two_threads_with_the_same_patch(make_patch) -> None:
    """One of them is refused; nothing is doubled."""
    lm = tiny_model("gpt2", layers=3)
    patch, gate, results = make_patch(lm, SITES), threading.Barrier(2), []

    def work() -> None:
        gate.wait()
        try:
            patch.apply(lm)
            results.append("applied")
        except NotApplied:
            results.append("refused")

    threads = [threading.Thread(target=work) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(results) == ["applied", "refused"]
    lm.patches.clear()


def test_a_patch_and_a_sum_that_contains_it(make_patch, bits, same_bits) -> None:
    """In any order, and for sums that share a member."""
    lm = tiny_model("gpt2", layers=3)
    before = bits(lm)
    a, b, c = (make_patch(lm, SITES, seed=seed) for seed in (1, 5, 9))
    for first, second in [(a, a + b), (a + b, a), (a + b, b + c), (a + b, a + b)]:
        with first.apply(lm):
            active = bits(lm)
            with pytest.raises(NotApplied, match="CG406"):
                second.apply(lm)
            assert same_bits(lm, active)
            with second.apply(lm, force=True):
                assert not same_bits(lm, active)
        assert same_bits(lm, before)
    for first, second in [(a, a), (a, a + b), (a + b, b), (a + b, c + a)]:
        with pytest.raises(NotApplied, match="twice"):
            first + second
    with (a + b).apply(lm), c.apply(lm):
        assert len(lm.patches) == 2


def test_training_under_a_patch_is_not_lost(make_patch, bits, same_bits) -> None:
    lm = tiny_model("gpt2", layers=3)
    before = bits(lm)
    patch = make_patch(lm, "2.mlp.down")
    applied = patch.apply(lm)
    weight = lm.model.transformer.h[2].mlp.c_proj.weight
    weight.requires_grad_(True)
    optimiser = torch.optim.SGD([weight], lr=1e-3)
    lm.model(input_ids=torch.tensor([[5, 6, 7]])).logits.square().mean().backward()
    optimiser.step()
    weight.requires_grad_(False)
    trained = bits(lm)
    for action in (
        applied.revert,
        lm.patches.clear,
        lambda: make_patch(lm, "2.mlp.down", seed=5).apply(lm),
        lambda: make_patch(lm, "2.mlp.down 1.mlp.down", seed=6).apply(lm),
    ):
        with pytest.raises(WeightsChanged, match="CG407"):
            action()
        assert same_bits(lm, trained)
        assert tuple(lm.patches) == (patch,)
    with make_patch(lm, "1.mlp.down", seed=7).apply(lm):
        pass
    assert same_bits(lm, trained)
    applied.revert(force=True)
    assert same_bits(lm, before)


@pytest.mark.parametrize("family", ["gpt2", "gpt_neox", "phi3", "qwen3_moe"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_one_flipped_bit_is_noticed(make_patch, family: str, dtype: torch.dtype) -> None:
    lm = tiny_model(family, dtype=dtype)
    site = "1.mlp.down#1" if family == "qwen3_moe" else "1.attn.q"
    applied = make_patch(lm, site).apply(lm)
    weight = lm.weight(Site.parse(site)).clone()
    step = torch.nextafter(weight[1, 1], weight.new_tensor(torch.inf))
    lm.write(Site.parse(site), weight.index_put((torch.tensor(1), torch.tensor(1)), step))
    with pytest.raises(WeightsChanged):
        applied.revert()
    applied.revert(force=True)


def test_another_place_is_no_change(make_patch, bits, same_bits) -> None:
    """A parameter that was replaced by an equal one, as `to(device)` does."""
    lm = tiny_model("gpt2", layers=3)
    before = bits(lm)
    with make_patch(lm, SITES).apply(lm):
        module = lm.module(Site(2))
        module.weight = nn.Parameter(module.weight.detach().clone(), requires_grad=False)
    assert same_bits(lm, before)


def test_saving_under_a_run_time_patch_is_refused(make_patch, tmp_path) -> None:
    lm = tiny_model("gpt2", layers=3)
    patch = make_patch(lm, SITES)
    with patch.apply(lm, mode="runtime"):
        with pytest.raises(NotExportable, match=r"CG405(.|\n)*test(.|\n)*merge"):
            lm.model.save_pretrained(tmp_path / "unedited")
        assert not (tmp_path / "unedited").exists()
        twin = copy.deepcopy(lm.model)
    lm.model.save_pretrained(tmp_path / "plain")
    twin.save_pretrained(tmp_path / "twin")
    with patch.apply(lm):
        lm.model.save_pretrained(tmp_path / "edited")
    sizes = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("plain", "twin")]
    assert sizes[0] == sizes[1] != (tmp_path / "edited" / "model.safetensors").read_bytes()


OPTIONS: dict[str, dict[str, object]] = {
    "rome": {
        "layer": 1,
        "steps": 4,
        "contexts": {"prefixes": ["", "I think so. "], "groups": [0, 1]},
    },
    "ft-l": {"layer": 1, "epochs": 4},
    "grace": {"layer": 1, "steps": 3, "radius": 0.3},
}


@pytest.mark.parametrize("method", sorted(OPTIONS))
@pytest.mark.parametrize("moments", [6, pytest.param(50, marks=pytest.mark.slow)])
def test_signals_at_random_moments_of_an_edit(make_patch, method: str, moments: int) -> None:
    """Neither weights nor hooks nor patches are left; what was active before still is."""
    lm = tiny_model("gpt2", layers=3)
    fact = Fact(prompt="The Space Needle is in", subject="The Space Needle", target="Rome")
    editor = build_editor(method, **OPTIONS[method])
    state = editor.fit(lm, _texts()) if editor.requires.moments else None
    editor.edit(lm, [fact], state)
    start = weights_of(lm)
    make_patch(lm, SITES).apply(lm)
    patched, hooks = lm.digest(), number_of_hooks(lm)
    draw = random.Random(1)
    for _ in range(moments):
        with suppress(KeyboardInterrupt), interrupted_after(draw.uniform(1e-3, 0.1)):
            while True:
                editor.edit(lm, [fact], state)
        assert lm.digest() == patched
        assert agree(lm, start)
        assert number_of_hooks(lm) == hooks
        assert len(lm.patches) == 1
        assert all(not parameter.requires_grad for parameter in lm.model.parameters())


def number_of_hooks(lm: LanguageModel) -> int:
    tables = ("_forward_hooks", "_forward_pre_hooks")
    return sum(len(getattr(module, table)) for module in lm.model.modules() for table in tables)


def _texts() -> Corpus:
    towns = ("Arles", "Bergen", "Cork", "Delft", "Essen", "Faro", "Ghent", "Hull")
    return Corpus([f"{town} is a town known for its old bridge and market." for town in towns])
