"""The loop: order of items, averaging, the best is kept, patience, resume to the bit."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from torch import nn

from corrigenda.errors import BadConfig, NonFinite
from corrigenda.training import Schedule, TrainingJob, TrainingReport, Turn, train

SLOPES = torch.linspace(-1.0, 1.0, 7)


class Killed(Exception):
    pass


class Line(nn.Module):
    """A slope, with a buffer that counts what it has seen in training."""

    def __init__(self) -> None:
        super().__init__()
        self.slope = nn.Parameter(torch.zeros(()))
        self.register_buffer("seen", torch.zeros((), dtype=torch.int64))


class Fit:
    """Learns the mean of `SLOPES`, with noise from torch and from the turn."""

    def __init__(self, kill_at: int | None = None) -> None:
        self.line = Line()
        self.turns: list[Turn] = []
        self.kill_at = kill_at

    def step(self, turn: Turn) -> float:
        if turn.step == self.kill_at:
            raise Killed
        assert self.line.training
        self.turns.append(turn)
        self.line.seen += len(turn.items)
        noise = 0.1 * torch.randn(()) + 0.1 * turn.chance.random()
        loss = (self.line.slope - SLOPES[list(turn.items)] - noise).square().mean()
        loss.backward()
        return float(loss.detach())

    def validate(self) -> Mapping[str, float]:
        assert not self.line.training
        return {
            "loss": float((self.line.slope.detach() - 0.3).square()),
            "noise": float(torch.rand(())),
        }

    def run(
        self, schedule: Schedule, checkpoint: Path | None = None, key: str = ""
    ) -> TrainingReport:
        optimiser = torch.optim.Adam(self.line.parameters(), lr=0.05)
        return train(
            self.line,
            optimiser,
            num_items=len(SLOPES),
            step=self.step,
            validate=self.validate,
            schedule=schedule,
            job=TrainingJob(checkpoint),
            key=key,
        )


def test_every_item_comes_up_before_one_comes_again() -> None:
    fit = Fit()
    fit.run(Schedule(steps=7, batch_size=3, accumulate=2, seed=4))
    items = [item for turn in fit.turns for item in turn.items]
    assert Counter(items) == dict.fromkeys(range(7), 6)
    assert items[:7] != items[7:14]
    assert [turn.step for turn in fit.turns] == [step for step in range(7) for _ in range(2)]
    assert len({turn.chance.random() for turn in fit.turns}) == len(fit.turns)


def test_the_seed_decides_everything_and_the_callers_random_state_nothing() -> None:
    schedule = Schedule(steps=20, validate_every=4, seed=3)
    results = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        before = torch.get_rng_state()
        one = Fit()
        results.append((one.run(schedule), float(one.line.slope.detach())))
        assert torch.equal(torch.get_rng_state(), before)
    assert results[0] == results[1]
    other = Fit()
    other.run(Schedule(steps=20, validate_every=4, seed=5))
    assert float(other.line.slope.detach()) != results[0][1]


def test_the_best_validation_is_kept_and_patience_ends_the_run() -> None:
    fit = Fit()
    values = iter([3.0, 1.0, 2.0, 2.5, 9.0])
    slopes = []

    def validate() -> Mapping[str, float]:
        slopes.append(float(fit.line.slope.detach()))
        return {"loss": next(values)}

    trained = train(
        fit.line,
        torch.optim.SGD(fit.line.parameters(), lr=0.1),
        num_items=7,
        step=fit.step,
        validate=validate,
        schedule=Schedule(steps=100, validate_every=5, patience=10),
    )
    assert (trained.best_step, trained.best_loss, trained.stopped) == (10, 1.0, "patience")
    assert trained.steps == 20
    assert [row["loss"] for row in trained.trace] == [3.0, 1.0, 2.0, 2.5]
    assert float(fit.line.slope.detach()) == slopes[1] != slopes[-1]
    assert int(fit.line.seen) == 10
    assert not fit.line.training


def test_gradients_are_averaged_over_accumulated_calls_and_clipped_together() -> None:
    weights = nn.ParameterList([nn.Parameter(torch.zeros(1)), nn.Parameter(torch.zeros(1))])

    def step(turn: Turn) -> float:
        (3.0 * weights[0] + 4.0 * weights[1]).sum().backward()
        return 0.0

    def run(clip: float | None) -> list[float]:
        for weight in weights:
            weight.data.zero_()
        train(
            weights,
            torch.optim.SGD(weights.parameters(), lr=1.0),
            num_items=1,
            step=step,
            validate=lambda: {"loss": 0.0},
            schedule=Schedule(steps=1, accumulate=5, clip=clip),
        )
        return [float(weight.detach()) for weight in weights]

    assert run(None) == [-3.0, -4.0]
    assert run(1.0) == pytest.approx([-0.6, -0.8], abs=1e-5)


def test_steps_with_infinite_gradients_are_left_out() -> None:
    fit = Fit()

    def step(turn: Turn) -> float:
        loss = fit.step(turn)
        if turn.step % 2:
            assert fit.line.slope.grad is not None
            fit.line.slope.grad /= 0.0
        return loss

    def run(steps: int, validate_loss: float) -> TrainingReport:
        return train(
            fit.line,
            torch.optim.SGD(fit.line.parameters(), lr=0.1),
            num_items=7,
            step=step,
            validate=lambda: {"loss": validate_loss},
            schedule=Schedule(steps=steps),
        )

    assert run(6, 1.0).skipped == 3
    assert torch.isfinite(fit.line.slope)
    with pytest.raises(NonFinite, match="never reached a finite loss"):
        run(2, float("nan"))


@pytest.mark.parametrize("kill_at", [1, 7, 18])
def test_a_killed_run_goes_on_to_the_same_bits(tmp_path: Path, kill_at: int) -> None:
    schedule = Schedule(steps=20, batch_size=2, validate_every=3, checkpoint_seconds=0.0)
    whole = Fit()
    expected = whole.run(schedule)
    file = tmp_path / "folder" / "part.safetensors"
    killed = Fit(kill_at=kill_at)
    with pytest.raises(Killed):
        killed.run(schedule, file, key="a")
    resumed = Fit()
    assert resumed.run(schedule, file, key="a") == expected
    assert resumed.turns[0].step == kill_at
    for name, tensor in whole.line.state_dict().items():
        assert torch.equal(tensor, resumed.line.state_dict()[name])


def test_checkpoints_of_other_trainings_and_damaged_ones_are_not_used(tmp_path: Path) -> None:
    schedule = Schedule(steps=10, checkpoint_seconds=0.0)
    file = tmp_path / "part.safetensors"
    with pytest.raises(Killed):
        Fit(kill_at=5).run(schedule, file, key="a")
    for other, key in ((schedule, "b"), (Schedule(steps=10, seed=1), "a")):
        fit = Fit()
        fit.run(other, None if key == "a" else file, key=key)
        assert len(fit.turns) == 10
    file.write_bytes(file.read_bytes()[:-20])
    fit = Fit()
    with pytest.warns(UserWarning, match="starts anew"):
        fit.run(schedule, file, key="a")
    assert len(fit.turns) == 10


def test_numbers_that_cannot_be_are_refused() -> None:
    with pytest.raises(BadConfig, match="validate_every"):
        Schedule(steps=1, validate_every=0)
