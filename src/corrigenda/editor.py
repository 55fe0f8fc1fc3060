"""What every editing method is: a frozen configuration that makes patches."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, ClassVar, NamedTuple

from jaxtyping import Float
from torch import Tensor

from corrigenda.facts import Fact
from corrigenda.lm.model import LanguageModel
from corrigenda.lm.sites import Site
from corrigenda.progress import Progress
from corrigenda.settings import Settings
from corrigenda.state import State
from corrigenda.statistics import fit_moments
from corrigenda.training.cache import fit_trained
from corrigenda.training.dataset import TrainingSet, text_only
from corrigenda.training.job import QUIET, Job

if TYPE_CHECKING:
    from corrigenda.patch import Patch

__all__ = ["Constraint", "Edit", "Editor", "MemoryEstimate", "Requires", "State", "Supports"]


class Requires(NamedTuple):
    """What a method asks for before it can edit.

    Attributes:
        subject: Every fact must name its subject.
        moments: Second moments of keys at `sites(lm)`; the state of `fit` holds them.
        training_set: `fit` trains on facts, not on running text; the method implements `train`.
    """

    subject: bool = False
    moments: bool = False
    training_set: bool = False


class Supports(NamedTuple):
    """What a method claims; `corrigenda.testing.check_editor` holds it to that.

    Attributes:
        single: One fact can be edited.
        batch: Several facts can be edited at once; otherwise more than one raises `NotEnoughFacts`.
        sequential: An edit can follow another while the first is active, given its state.
        exact: After the edit the constraints hold: (W + dW) k = v, see `Editor.constraints`.
        order_free: Permuting the facts of a batch changes nothing beyond rounding.
        contained: A question out of the edit's scope gives bit for bit what it gave without it.
    """

    single: bool = True
    batch: bool = False
    sequential: bool = False
    exact: bool = False
    order_free: bool = False
    contained: bool = False


class Constraint(NamedTuple):
    """What an exact method promises at one site: (W + dW) keys = values, the bias left out.

    Attributes:
        keys: Inputs of the weight, one column a constraint.
        values: Outputs wanted.
    """

    keys: Float[Tensor, "d_in n"]
    values: Float[Tensor, "d_out n"]


class MemoryEstimate(NamedTuple):
    """Bytes needed beside the model itself, estimated from shapes.

    Attributes:
        fit: While the state is fitted.
        edit: While facts are edited and the patch is merged.
    """

    fit: int
    edit: int


class Edit(NamedTuple):
    """The result of an edit.

    Attributes:
        patch: The edit as a value; nothing of the model has changed.
        state: What the next edit of a sequence needs; the state given where nothing was added.
    """

    patch: Patch
    state: State | None


class Editor(Settings, ABC):
    """A method with its settings: validated, frozen, equal when the settings are equal.

    A method is a subclass in `corrigenda/methods/<name>/editor.py` with its card `card.md` beside
    it. It sets `name`, `requires` and `supports` and implements `sites` and `edit`. `edit` obeys
    the laws that `corrigenda.testing.check_editor` runs: it leaves the model as it was even when it
    raises, the same arguments give an equal patch, and no facts give an empty one.

    Raises:
        BadConfig (CG502): an option the method does not have, or a value it cannot take.
    """

    kind: ClassVar[str] = "method"
    name: ClassVar[str]
    requires: ClassVar[Requires] = Requires()
    supports: ClassVar[Supports] = Supports()

    @abstractmethod
    def sites(self, lm: LanguageModel) -> tuple[Site, ...]:
        """The weights that an edit of this model changes, lowest layer first."""

    def fit(
        self,
        lm: LanguageModel,
        corpus: TrainingSet | None = None,
        *,
        progress: Progress | None = None,
    ) -> State:
        """Learn what the method needs to know about a model; cached on disk by content.

        Where the method needs second moments, they are fitted at `sites(lm)`; where it needs a
        training set, `train` is called; otherwise the state is empty. See
        `corrigenda.statistics.fit_moments` and `corrigenda.training.fit_trained` for errors.

        Args:
            lm: The model without active patches.
            corpus: Text, or facts for a method that is trained. By default what is shipped with a
                pocket model, else text that the model writes itself.
            progress: Called with (stage, done, total).
        """
        if self.requires.training_set:
            return fit_trained(
                lm,
                corpus,
                self.train,
                method=self.name,
                config=self.model_dump(mode="json"),
                progress=progress,
            )
        text = text_only(corpus, where=self.name)
        if not self.requires.moments:
            return State()
        return fit_moments(lm, self.sites(lm), text, progress=progress)

    def train(
        self,
        lm: LanguageModel,
        facts: tuple[Fact, ...],
        job: Job = QUIET,
    ) -> State:
        """Learn from facts, where `requires.training_set`; `fit` calls this and keeps the result.

        Args:
            lm: The model; frozen, and left as it is.
            facts: At least two; some may lack paraphrases or neighbours.
            job: Where checkpoints are written, and how progress is reported.

        Returns:
            What was learned; `fit` adds the base model to its metadata.
        """
        raise NotImplementedError(f"{self.name} is not trained")

    def memory(self, lm: LanguageModel, num_facts: int) -> MemoryEstimate:
        """Estimate what a run needs beside the model, before it begins.

        Second moments and their factors (float64), copies of the weights that a merged patch
        changes, and `working_memory`.
        """
        weights = [lm.weight(site) for site in self.likely_sites(lm)]
        moments = sum(8 * one.shape[1] ** 2 for one in weights) if self.requires.moments else 0
        copies = sum(one.numel() * one.element_size() for one in weights)
        merging = max((8 * one.numel() for one in weights), default=0)
        working = self.working_memory(lm, num_facts)
        return MemoryEstimate(fit=moments, edit=2 * moments + copies + max(merging, working))

    def num_parameters(self, lm: LanguageModel) -> int | None:
        """Parameters that an edit of this model changes or adds; None where facts decide it.

        By default all of the weights at `sites(lm)`; None where there are none.
        """
        weights = [lm.weight(site) for site in self.likely_sites(lm)]
        return sum(one.numel() for one in weights) if weights else None

    def likely_sites(self, lm: LanguageModel) -> tuple[Site, ...]:
        """`sites(lm)`, or as many of the same shape where finding them means running the model."""
        return self.sites(lm)

    def working_memory(self, lm: LanguageModel, num_facts: int) -> int:
        """Bytes that `edit` works with, beside statistics and copies of weights."""
        del lm, num_facts
        return 0

    @abstractmethod
    def edit(self, lm: LanguageModel, facts: Sequence[Fact], state: State | None = None) -> Edit:
        """Make the patch after which `facts` hold; the model stays as it is.

        Args:
            lm: The model, with whatever patches are active: the edit is made on top of them.
            facts: What should become true. None at all gives an empty patch.
            state: What `fit` or the previous edit of the sequence returned.

        Raises:
            MissingState (CG503): the method needs a state and none, or another, was given.
            CorrigendaError: other errors of facts, tokenizer or solver.
        """

    def constraints(
        self, lm: LanguageModel, facts: Sequence[Fact], state: State | None = None
    ) -> Mapping[Site, Constraint]:
        """What holds exactly after `edit` with the same arguments, where `supports.exact`."""
        raise NotImplementedError(f"{self.name} states no constraints")
