"""Editors as frozen configurations, and the state files they work with."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

import pytest
import torch
from pydantic import Field
from safetensors.torch import save_file
from torch import Tensor

from corrigenda.editor import Edit, Editor, Requires, Supports
from corrigenda.errors import (
    BadConfig,
    CorruptFile,
    EmptyCorpus,
    IllConditioned,
    MissingState,
    NewerFormat,
    WrongBase,
)
from corrigenda.facts import Fact
from corrigenda.linalg.lowrank import LowRank
from corrigenda.linalg.moments import SecondMoment
from corrigenda.lm.model import LanguageModel
from corrigenda.lm.sites import Site
from corrigenda.patch import WeightPatch, header_for
from corrigenda.state import State, automatic_shrinkage
from corrigenda.statistics import Corpus
from corrigenda.testing.editor import check_editor
from corrigenda.testing.tiny import tiny_model

FACTS = (
    Fact(prompt="The mother tongue of Ada Lovelace is", subject="Ada Lovelace", target="French"),
    Fact(prompt="The Space Needle is in", subject="The Space Needle", target="Rome"),
)


class Nudge(Editor):
    """Adds a fixed outer product for each fact; obeys every law and corrects nothing."""

    name: ClassVar[str] = "nudge"
    supports: ClassVar[Supports] = Supports(batch=True, sequential=True, order_free=True)
    layer: int = Field(default=1, ge=0)
    size: float = Field(default=0.1, gt=0)

    def sites(self, lm: LanguageModel) -> tuple[Site, ...]:
        return (Site(self.layer),)

    def edit(self, lm: LanguageModel, facts: Sequence[Fact], state: State | None = None) -> Edit:
        (site,) = self.sites(lm)
        d_out, d_in = lm.weight(site).shape
        for fact in facts:
            lm_ids = lm.tokenizer(fact.prompt).input_ids
            if fact.subject is None or len(lm_ids) > lm.context_length:
                raise BadConfig("cannot edit")
        seeds = sorted(sum(fact.prompt.encode()) for fact in facts)
        left, right = _random(d_out, seeds) * self.size, _random(d_in, seeds)
        header = header_for(lm, method=self.name, config=self.model_dump(), facts=facts)
        return Edit(WeightPatch({site: LowRank(left, right)} if facts else {}, header), state)


class Writer(Nudge):
    """Breaks the first law: writes into the model."""

    def edit(self, lm: LanguageModel, facts: Sequence[Fact], state: State | None = None) -> Edit:
        made = super().edit(lm, facts, state)
        (site,) = self.sites(lm)
        lm.write(site, lm.weight(site) + 1)
        return made


class Dice(Nudge):
    """Breaks the third law: draws from the global generator."""

    def edit(self, lm: LanguageModel, facts: Sequence[Fact], state: State | None = None) -> Edit:
        patch, state = super().edit(lm, facts, state)
        return Edit(patch.scale(float(torch.rand(()))), state)


class Eager(Nudge):
    """Breaks the fourth law: changes something for no facts."""

    def edit(self, lm: LanguageModel, facts: Sequence[Fact], state: State | None = None) -> Edit:
        return super().edit(lm, facts or FACTS[:1], state)


class Braggart(Nudge):
    """Breaks the sixth law: claims that the order of facts is of no account."""

    def edit(self, lm: LanguageModel, facts: Sequence[Fact], state: State | None = None) -> Edit:
        patch, state = super().edit(lm, facts, state)
        longer = len(facts) > 1 and len(facts[0].prompt) > len(facts[-1].prompt)
        return Edit(patch.scale(2.0) if longer else patch, state)


class Careless(Nudge):
    """Breaks the sixth law: needs moments, and edits without."""

    requires: ClassVar[Requires] = Requires(subject=True, moments=True)


def _random(width: int, seeds: Sequence[int]) -> Tensor:
    columns = [torch.randn(width, generator=torch.Generator().manual_seed(s)) for s in seeds]
    return torch.stack(columns, dim=1).double() if columns else torch.zeros(width, 0)


@pytest.fixture
def lm() -> LanguageModel:
    return tiny_model("gpt2", seed=0)


def test_options_are_frozen_and_checked() -> None:
    assert Nudge(layer=2) == Nudge(layer=2) != Nudge(layer=3)
    with pytest.raises(BadConfig, match=r"CG502.*layer: .*greater than or equal to 0"):
        Nudge(layer=-1)
    with pytest.raises(BadConfig, match=r'sise(.|\n)*method nudge(.|\n)*Did you mean "size"'):
        Nudge(sise=1.0)
    with pytest.raises(ValueError, match="frozen"):
        Nudge().layer = 4  # type: ignore[misc]  # refused at run time


def test_fit_does_what_is_needed(lm: LanguageModel, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("CORRIGENDA_CACHE", str(tmp_path))
    assert Nudge().fit(lm) == State()
    with pytest.warns(UserWarning, match="Few keys"):
        state = Careless().fit(lm, Corpus(["Rome is a city."]))
    assert state.moment_sites == (Site(1),)


def test_laws_hold_for_a_method_that_obeys_them(lm: LanguageModel) -> None:
    check_editor(Nudge(), lm, FACTS)


@pytest.mark.parametrize(
    ("editor", "law"),
    [(Writer, "pure"), (Dice, "deterministic"), (Eager, "neutral"), (Braggart, "honest"),
     (Careless, "honest")],
)  # fmt: skip
def test_laws_catch_who_breaks_them(lm: LanguageModel, editor: type[Editor], law: str) -> None:
    with pytest.raises(AssertionError, match=f"^{law}"):
        check_editor(editor(), lm, FACTS)


def _moment(count: int, width: int = 6) -> SecondMoment:
    moment = SecondMoment(width)
    moment.update(torch.randn(count, width, generator=torch.Generator().manual_seed(0)))
    return moment


def test_state_is_kept_to_the_bit(tmp_path: Path) -> None:
    state = State.of_moments(
        {Site(3): _moment(40), Site(12, expert=2): _moment(50)}, {"a": [1, "b"]}
    )
    state = state.updated({"method/keys": torch.ones(2, 3, dtype=torch.bfloat16)})
    loaded = State.load(state.save(tmp_path / "state.safetensors"))
    assert loaded == state
    assert loaded.moment_sites == (Site(3), Site(12, expert=2))
    assert torch.equal(loaded.moment(Site(3)).covariance(), _moment(40).covariance())
    assert State.load(State().save(tmp_path / "empty.safetensors")) == State()


def test_state_is_never_changed_in_place() -> None:
    state = State({"x": torch.zeros(1)}, {"n": 1})
    grown = state.updated({"y": torch.ones(1)}, {"n": 2})
    assert (set(state.tensors), state.meta["n"]) == ({"x"}, 1)
    assert (set(grown.tensors), grown.meta["n"]) == ({"x", "y"}, 2)
    with pytest.raises(TypeError):
        state.tensors["z"] = torch.zeros(1)  # type: ignore[index]  # refused at run time


def test_damaged_state_files_are_refused(tmp_path: Path) -> None:
    path = State.of_moments({Site(3): _moment(40)}).save(tmp_path / "state.safetensors")
    whole = path.read_bytes()
    for damaged in (whole[:-9], whole[:-1] + bytes([whole[-1] ^ 1]), b"", b"{}" * 20):
        path.write_bytes(damaged)
        with pytest.raises(CorruptFile, match="CG402"):
            State.load(path)
    save_file({"x": torch.zeros(1)}, path)
    with pytest.raises(CorruptFile, match="no state"):
        State.load(path)
    save_file({"x": torch.zeros(1)}, path, {"corrigenda_state": "99"})
    with pytest.raises(NewerFormat, match="99"):
        State.load(path)
    with pytest.raises(CorruptFile):
        State.load(tmp_path / "absent.safetensors")


def test_missing_moment_names_what_is_there() -> None:
    with pytest.raises(MissingState, match=r"5\.mlp\.down(.|\n)*3\.mlp\.down"):
        State.of_moments({Site(3): _moment(40)}).moment(Site(5))


def test_factor_is_made_once_and_shrinks_where_keys_are_few() -> None:
    state = State.of_moments({Site(0): _moment(60), Site(1): _moment(3), Site(2): SecondMoment(6)})
    factor = state.factor(Site(0))
    assert factor is state.factor(Site(0)) is state.updated(meta={"x": 1}).factor(Site(0))
    assert torch.allclose(factor.matrix(), _moment(60).covariance(0.03), atol=1e-12)
    rho = automatic_shrinkage(0.5)
    assert rho == pytest.approx(0.1)
    assert torch.allclose(state.factor(Site(1)).matrix(), _moment(3).covariance(rho), atol=1e-12)
    with pytest.raises(IllConditioned, match="CG203"):
        state.factor(Site(1), shrinkage=0.0)
    with pytest.raises(EmptyCorpus, match="CG602"):
        state.factor(Site(2))
    again = state.updated(State.of_moments({Site(0): _moment(61)}).tensors)
    assert again.factor(Site(0)) is not factor


def test_shrinkage_falls_with_the_keys_and_is_never_nothing() -> None:
    counts = (0.2, 1, 3, 10, 100, 1000)
    shares = [automatic_shrinkage(count) for count in counts]
    assert shares == pytest.approx([0.1, 0.1, 0.1, 0.03, 0.003, 0.0003])
    assert automatic_shrinkage(0) == 0.0


def test_effective_dimension_counts_the_directions_that_shrinkage_leaves() -> None:
    state = State.of_moments({Site(0): _moment(60_000), Site(1): _moment(3)})
    assert state.effective_dimension(Site(0)) == pytest.approx(6, rel=1e-3)
    assert 3 < state.effective_dimension(Site(1)) < 3 / 0.9
    moment = state.moment(Site(1)).covariance()
    shrunk = state.moment(Site(1)).covariance(0.1)
    expected = float(torch.trace(moment @ torch.linalg.inv(shrunk)))
    assert state.effective_dimension(Site(1)) == pytest.approx(expected)
    assert state.mean_square(Site(1)) == pytest.approx(float(torch.trace(moment)))


def test_state_of_another_model_is_refused(lm: LanguageModel) -> None:
    State().require_base(lm)
    State(meta={"base_digest": lm.digest()}).require_base(lm)
    other = State(meta={"base_digest": "0" * 64, "base_name": "gpt2-xl"})
    with pytest.raises(WrongBase, match=r"gpt2-xl"):
        other.require_base(lm)
    with Nudge().edit(lm, FACTS[:1]).patch.apply(lm):
        State(meta={"base_digest": header_for(lm, method="x").base_digest}).require_base(lm)


def test_meta_is_plain_json() -> None:
    state = State(meta={"b": (1, 2), "a": {"x": None}})
    assert json.loads(json.dumps(dict(state.meta))) == {"b": [1, 2], "a": {"x": None}}
