"""Inputs and results of a target search: settings, rows, losses, traces and targets."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

from jaxtyping import Float
from torch import Tensor

from corrigenda.patch.notes import EVEN_ODDS, EditStatus

EntryRole = Literal["state", "value", "components"]
"""Where a delta enters: at the output of a block, at that of its down projection, or two deltas at
the outputs of the last projections of its attention and of its feed-forward block."""

StopLoss = Literal["nll", "total"]
"""Which loss of a search is compared with `SearchSettings.stop_loss`."""


Erasure = Literal["refuse", "suppress"]
"""How an answer is forgotten: a refusal becomes likely, or the answer unlikely."""


class SearchSettings(NamedTuple):
    """Settings of the search, in the units of the method cards.

    Attributes:
        steps: Forward passes at most; the last one takes no step.
        learning_rate: Of Adam (betas 0.9 and 0.999, eps 1e-8, no decay).
        kl_weight: Weight of the essence term.
        weight_decay: Weight of `||delta|| / ||anchor||^2`.
        clamp: Largest `||delta||` in units of `||anchor||`.
        stop_loss: A fact whose loss is below this takes no further step.
        stop_on: Which loss that is: "nll", that of the target alone, or "total", which also holds
            the essence term and the decay. Published code compares the total, of which the decay
            alone is larger than 0.05 on many models, so that no search ends early.
        likeliest_stop: A fact takes no further step once so many passes, not necessarily in a row,
            found every target token the most likely one in every context; 0: never. Most-probable
            early stopping, Gupta et al. 2025.
        settled_weight: Weight of the target's loss in the step after one in which the target was
            the most likely token wherever it is read, 1 otherwise; see `settled_kl`.
        settled_kl: A fact for which that is so, and whose weighted essence term is at most this,
            takes no further step. None: such facts are treated like all others.
    """

    steps: int
    learning_rate: float
    kl_weight: float
    weight_decay: float
    clamp: float
    stop_loss: float = 0.05
    stop_on: StopLoss = "nll"
    likeliest_stop: int = 0
    settled_weight: float = 1.0
    settled_kl: float | None = None


class SearchRow(NamedTuple):
    """One sequence of one fact.

    Attributes:
        fact: Index of the fact it belongs to.
        ids: Token ids, without the last target token.
        start: Position of the subject's last token, where the delta enters.
        reads: Positions whose next-token distribution enters the loss, each >= `start`.
        labels: Wanted token after each of `reads`; empty for the essence row, whose distribution
            must stay.
        anchor: Whether this is the clean prompt, whose vector at `start` is the fact's anchor.
        weight: Weight of its loss; the mean over a fact's labelled rows is 1. The weights of a fact
            whose labels are to become unlikely are negative.
    """

    fact: int
    ids: tuple[int, ...]
    start: int
    reads: tuple[int, ...]
    labels: tuple[int, ...]
    anchor: bool = False
    weight: float = 1.0

    @property
    def tail(self) -> int:
        """Number of positions from `start` on."""
        return len(self.ids) - self.start


class SearchLosses(NamedTuple):
    """Losses of one fact in one forward pass of the search: `total = nll + kl + decay`.

    Where the target has settled, `nll` counts for less in `total`, see `SearchSettings`.
    """

    total: float
    nll: float
    kl: float
    decay: float


@dataclass
class SearchTrace:
    """Course of the search for one fact.

    Attributes:
        losses: One entry per forward pass.
        stop: "loss" when the loss fell below the stopping value, "likeliest" when the target was
            the most likely in enough passes, "settled" when it was so everywhere and the essence
            stayed, else "steps".
        clamped_steps: Steps after which delta was pulled back onto the ball.
        at_clamp: Whether the last step ended on the ball.
        settled: Whether the last pass found the target the most likely token wherever it is read;
            only where `SearchSettings.settled_kl` asks for it.
        likeliest: Passes that found the target the most likely token wherever it is read; only
            where `SearchSettings.likeliest_stop` asks for it.
        skipped: Whether the value was left out for its length, so that nothing is written.
    """

    losses: list[SearchLosses] = field(default_factory=list)
    stop: Literal["loss", "likeliest", "settled", "steps"] = "steps"
    clamped_steps: int = 0
    at_clamp: bool = False
    settled: bool = False
    likeliest: int = 0
    skipped: bool = False

    @property
    def status(self) -> EditStatus:
        """Whether the target settled or got at least even odds (geometric mean), else why not."""
        if self.skipped:
            return "left out"
        if self.stop != "steps" or self.settled or self.losses[-1].nll <= EVEN_ODDS:
            return "written"
        return "clamped" if self.at_clamp else "not converged"

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-ready record for a patch header."""
        return {
            "losses": [[float(f"{value:.6g}") for value in entry] for entry in self.losses],
            "stop": self.stop,
            "clamped_steps": self.clamped_steps,
            "at_clamp": self.at_clamp,
            "status": self.status,
        }


class Targets(NamedTuple):
    """Result of the search, float32, no gradients.

    Attributes:
        anchors: Vectors at the subject's last token of the clean prompt.
        deltas: Vectors to add; `anchors + deltas` is the wanted vector.
        traces: Course of the search, per fact.

    With the role "components" the attention's vector and the feed-forward block's are
    concatenated, 2 d_model wide.
    """

    anchors: Float[Tensor, "n d_entry"]
    deltas: Float[Tensor, "n d_entry"]
    traces: list[SearchTrace]

    @property
    def wanted(self) -> Float[Tensor, "n d_entry"]:
        """The vectors that the edit should produce."""
        return self.anchors + self.deltas
