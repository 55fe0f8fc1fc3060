"""`Editor`: base class of every editing method, a frozen configuration that makes patches."""

from __future__ import annotations

import importlib
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from functools import wraps
from typing import TYPE_CHECKING, ClassVar, NamedTuple, ParamSpec, TypeVar, cast

from jaxtyping import Float
from torch import Tensor

from corrigenda.errors import UnknownSite
from corrigenda.facts import Fact
from corrigenda.lm.footprint import pass_bytes, pass_flops, room_of
from corrigenda.lm.grad_mode import leave_inference_mode
from corrigenda.lm.loading import require_double, require_weights
from corrigenda.lm.model import LanguageModel
from corrigenda.lm.sites import Site
from corrigenda.progress import Progress
from corrigenda.settings import Settings
from corrigenda.state import State
from corrigenda.statistics import fit_moments
from corrigenda.statistics.fitting import BATCH_TOKENS, text_tokens
from corrigenda.training.cache import fit_trained
from corrigenda.training.dataset import TrainingSet, text_only
from corrigenda.training.job import QUIET, TrainingJob

if TYPE_CHECKING:
    from corrigenda.patch import Patch

__all__ = [
    "Constraint",
    "Edit",
    "Editor",
    "MemoryEstimate",
    "Requires",
    "StageWork",
    "State",
    "Supports",
]


Result = TypeVar("Result")
Arguments = ParamSpec("Arguments")

# By name, since this layer may not import the methods.
_METHODS = "corrigenda.methods.registry"
# A product of keys is formed in parts; a factor is made beside its matrix and what it is made of.
_PRODUCT_PARTS = 8
_FACTORING = 4


def explain_experts(function: Callable[Arguments, Result]) -> Callable[Arguments, Result]:
    """Name the methods that edit mixtures of experts where a method finds no dense weight.

    Args:
        function: Method of an editor.
    """

    @wraps(function)
    def call(*args: Arguments.args, **options: Arguments.kwargs) -> Result:
        try:
            return function(*args, **options)
        except UnknownSite as error:
            if "has experts" not in error.message or "edit mixtures of experts" in error.hint:
                raise
            known = importlib.import_module(_METHODS).methods_for_experts()
            where = f"method {getattr(args[0], 'name', '')}, {error.where}"
            hint = f"These methods edit mixtures of experts: {known}."
            raise UnknownSite(error.message, where=where, hint=hint) from error

    return call


def check_device(function: Callable[Arguments, Result]) -> Callable[Arguments, Result]:
    """Refuse, before anything is done, a model on a device without float64 or with weights absent.

    Args:
        function: Method of an editor, from a model.
    """

    @wraps(function)
    def call(*args: Arguments.args, **options: Arguments.kwargs) -> Result:
        lm = cast("LanguageModel", args[1] if len(args) > 1 else options["lm"])
        require_double(lm.device, lm.name)
        require_weights(lm.model, lm.name)
        return function(*args, **options)

    return call


class Requires(NamedTuple):
    """Requirements of a method: subject, second moments, training set.

    Attributes:
        subject: Every fact must name its subject.
        moments: Second moments of keys at `sites(lm)`; the state of `fit` holds them.
        training_set: `fit` trains on facts, not on running text; the method implements `train`.
    """

    subject: bool = False
    moments: bool = False
    training_set: bool = False


class Supports(NamedTuple):
    """Claims of a method, which `corrigenda.testing.check_editor` tests.

    Attributes:
        single: One fact can be edited.
        batch: Several facts can be edited at once; otherwise more than one raises `NotEnoughFacts`.
        sequential: An edit can follow another while the first is active, given its state.
        exact: After the edit the constraints hold: (W + dW) k = v, see `Editor.constraints`.
        order_free: Permuting the facts of a batch changes nothing beyond rounding.
        contained: A question out of scope has bit-identical logits with and without it.
    """

    single: bool = True
    batch: bool = False
    sequential: bool = False
    exact: bool = False
    order_free: bool = False
    contained: bool = False


class Constraint(NamedTuple):
    """Equation that an exact method meets at one site: (W + dW) keys = values, without bias.

    Attributes:
        keys: Inputs of the weight, one column a constraint.
        values: Outputs wanted.
    """

    keys: Float[Tensor, "d_in n"]
    values: Float[Tensor, "d_out n"]


class MemoryEstimate(NamedTuple):
    """Estimate, from shapes, of the bytes needed in addition to the model.

    On a GPU the sums of statistics and their factors are in the host's memory.

    Attributes:
        fit: On the model's device, while the state is fitted.
        edit: There, while facts are edited and the patch is merged.
        fit_on_host: In the host's memory, while the state is fitted; 0 where the model is there.
        edit_on_host: The same while facts are edited.
    """

    fit: int
    edit: int
    fit_on_host: int = 0
    edit_on_host: int = 0


class StageWork(NamedTuple):
    """Estimate, from shapes, of the operations of one stage, where it takes all its steps.

    Attributes:
        stage: Its name.
        passes: Operations of passes of the model, in its dtype on its device.
        solves: Operations of solves, in float64 on the host.
    """

    stage: str
    passes: float
    solves: float = 0.0


class Edit(NamedTuple):
    """Result of an edit: a patch and a state.

    Attributes:
        patch: The edit as a value; nothing of the model has changed.
        state: State for the next edit of a sequence; the one given where nothing was added.
    """

    patch: Patch
    state: State | None


class Editor(Settings, ABC):
    """Editing method with its options: validated, frozen, equal when the options are equal.

    A method is a subclass in `corrigenda/methods/<name>/editor.py` with its card `card.md`.
    It sets `name`, `requires` and `supports` and implements `sites` and `edit`. `edit` obeys
    the laws that `corrigenda.testing.check_editor` runs: it leaves the model as it was even when it
    raises, the same arguments give an equal patch, and no facts give an empty one.

    Raises:
        BadConfig (CG502): an option the method does not have, or a value it cannot take.
    """

    kind: ClassVar[str] = "method"
    name: ClassVar[str]
    requires: ClassVar[Requires] = Requires()
    supports: ClassVar[Supports] = Supports()
    low_rank: ClassVar[bool] = False
    """Whether a change of a weight is a product with a column and a row for each fact."""
    factors_per_site: ClassVar[int] = 1
    """Float64 matrices of the width of the keys that an edit holds for each site beside C."""
    solves_per_cube: ClassVar[float] = 1 / 3
    """Operations of fitting a site besides the passes, in cubes of the width of its keys."""
    learns_rows: ClassVar[bool] = False
    """Whether a fact is learnt from its prompt and target alone, so that its chat form is another
    one to learn."""

    @classmethod
    def __pydantic_init_subclass__(cls, **options: object) -> None:
        """Wrap the steps of a method.

        They learn also where the caller is in `torch.inference_mode`, and name the methods that
        work in a mixture of experts where they find no weight there. Devices without float64 are
        refused.
        """
        super().__pydantic_init_subclass__(**options)
        for name in ("fit", "train", "edit", "constraints", "locate"):
            if name in vars(cls):
                setattr(cls, name, leave_inference_mode(vars(cls)[name]))
        for name in ("sites", "fit", "train", "edit"):
            if name in vars(cls):
                setattr(cls, name, explain_experts(vars(cls)[name]))
        for name in ("fit", "edit"):
            if name in vars(cls):
                setattr(cls, name, check_device(vars(cls)[name]))

    @abstractmethod
    def sites(self, lm: LanguageModel) -> tuple[Site, ...]:
        """Return the weights that an edit of this model changes, lowest layer first."""

    @leave_inference_mode
    @check_device
    def fit(
        self,
        lm: LanguageModel,
        corpus: TrainingSet | None = None,
        *,
        progress: Progress | None = None,
    ) -> State:
        """Fit the statistics or train the network that the method needs; cached by content.

        Where the method needs second moments, they are fitted at `sites(lm)`; where it needs a
        training set, `train` is called; otherwise the state is empty. See
        `corrigenda.statistics.fit_moments` and `corrigenda.training.fit_trained` for errors.

        Args:
            lm: The model without active patches.
            corpus: Text, or facts for a method that is trained. By default what
                the package ships.
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
        job: TrainingJob = QUIET,
    ) -> State:
        """Train on facts, where `requires.training_set`; `fit` calls this and caches the result.

        Args:
            lm: The model; frozen, and left as it is.
            facts: At least two; some may lack paraphrases or neighbours.
            job: Where checkpoints are written, and how progress is reported.

        Returns:
            The trained state; `fit` adds the base model to its metadata.
        """
        raise NotImplementedError(f"{self.name} is not trained")

    def memory(self, lm: LanguageModel, num_facts: int) -> MemoryEstimate:
        """Estimate the memory that a run needs in addition to the model.

        Second moments and their factors (float64), copies of the weights that a merged patch
        changes, and `working_memory`.
        """
        shapes = [lm.shape(site) for site in self.likely_sites(lm)]
        merged = [] if lm.is_quantised else [math.prod(shape) for shape in shapes]
        copies = sum(merged) * lm.dtype.itemsize
        merging = 8 * max(merged, default=0)
        working = self.working_memory(lm, num_facts)
        widths = [width for _, width in shapes] if self.requires.moments else []
        if not widths:
            return MemoryEstimate(fit=0, edit=max(copies + merging, working))
        sums = sum(8 * width**2 for width in widths)
        tokens = min(BATCH_TOKENS, text_tokens(max(widths)))
        largest = 8 * max(widths) ** 2
        chunks, reading = sums // 2, pass_bytes(lm, tokens, len(widths))
        factors = self.factors_per_site * sums
        factoring = factors + (_FACTORING - 1) * largest
        if room_of(lm).kind == "cpu":
            writing = factors + copies + merging
            fit = sums + chunks + max(reading, largest)
            return MemoryEstimate(fit, sums + max(working, factoring, writing))
        fit = chunks + max(reading, largest // _PRODUCT_PARTS)
        edit = max(copies + merging, working)
        return MemoryEstimate(fit, edit, sums + largest, sums + factoring)

    def work(self, lm: LanguageModel, num_facts: int) -> tuple[StageWork, ...]:
        """Estimate the operations of a run by stage, the first of them the statistics.

        Text of two keys a dimension is read for second moments, as where none is given.
        """
        editing = self.editing_work(lm, num_facts)
        sites = self.likely_sites(lm) if self.requires.moments else ()
        if not sites:
            return editing
        widths = [lm.shape(site)[1] for site in sites]
        tokens = text_tokens(max(widths))
        passes = pass_flops(lm, tokens, 0, max(site.layer for site in sites))
        passes += sum(tokens * width**2 for width in widths)
        factors = self.solves_per_cube * sum(float(width) ** 3 for width in widths)
        return (StageWork("statistics", passes, factors), *editing)

    def editing_work(self, lm: LanguageModel, num_facts: int) -> tuple[StageWork, ...]:
        """Estimate the operations of `edit` by stage; empty where the method does not tell."""
        del lm, num_facts
        return ()

    def patch_bytes(self, lm: LanguageModel, num_facts: int) -> int:
        """Estimate the bytes of the patch: a column and a row for each fact, or all of a weight."""
        size = 0
        for site in self.likely_sites(lm):
            shape = lm.shape(site)
            whole = math.prod(shape) * max(lm.dtype.itemsize, 4)
            size += min(8 * num_facts * sum(shape), whole) if self.low_rank else whole
        return size

    def num_parameters(self, lm: LanguageModel) -> int | None:
        """Count the parameters that an edit changes or adds; None where it depends on facts.

        By default all of the weights at `sites(lm)`; None where there are none.
        """
        sites = self.likely_sites(lm)
        return sum(math.prod(lm.shape(site)) for site in sites) if sites else None

    def likely_sites(self, lm: LanguageModel) -> tuple[Site, ...]:
        """Return `sites(lm)`, or as many of the same shape where finding them needs the model."""
        return self.sites(lm)

    def chosen_options(self, lm: LanguageModel, state: State) -> dict[str, float]:
        """Return what options that are not given are on a model; empty where there are none.

        Args:
            lm: The model.
            state: The state fitted on it.
        """
        del lm, state
        return {}

    def working_memory(self, lm: LanguageModel, num_facts: int) -> int:
        """Estimate the bytes of `edit`, in addition to statistics and copies of weights."""
        del lm, num_facts
        return 0

    @abstractmethod
    def edit(self, lm: LanguageModel, facts: Sequence[Fact], state: State | None = None) -> Edit:
        """Make the patch that writes `facts`; the model stays as it is.

        Args:
            lm: The model, with the patches that are active: the edit is made on top of them.
            facts: The facts to write. An empty sequence gives an empty patch.
            state: Result of `fit`, or state of the previous edit of the sequence.

        Raises:
            MissingState (CG503): the method needs a state and none, or another, was given.
            CorrigendaError: other errors of facts, tokenizer or solver.
        """

    def search_ahead(
        self, lm: LanguageModel, facts: Sequence[Fact], state: State | None = None
    ) -> None:
        """Do together what edits of single facts have in common; without it they do it themselves.

        Args:
            lm: The model, as it will be at each of these edits.
            facts: Facts that are edited one by one afterwards.
            state: As for `edit`.
        """

    def constraints(
        self, lm: LanguageModel, facts: Sequence[Fact], state: State | None = None
    ) -> Mapping[Site, Constraint]:
        """Return the equations that hold after the same `edit`, where `supports.exact`."""
        raise NotImplementedError(f"{self.name} states no constraints")
