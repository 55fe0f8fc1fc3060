"""TruthX: moves states along a learned direction of truth, in the modules that separate best."""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from types import MappingProxyType
from typing import ClassVar, Literal

import torch
from jaxtyping import Bool, Float
from pydantic import Field, JsonValue
from torch import Tensor, nn

from corrigenda.editor import Edit, Editor, Requires, Supports
from corrigenda.engines.gradients import labelled_rows, predict
from corrigenda.errors import MissingState
from corrigenda.facts import Fact
from corrigenda.lm.hooks import TensorMap
from corrigenda.lm.kv_cache import batches
from corrigenda.lm.model import LanguageModel
from corrigenda.lm.model_names import SHIPPED
from corrigenda.lm.sites import Site
from corrigenda.methods.truthx.autoencoder import AutoEncoder, measure_untruth
from corrigenda.methods.truthx.states import (
    StatePairs,
    module_name,
    module_points,
    read_pairs,
    require_pairs,
)
from corrigenda.patch import ModulePatch
from corrigenda.patch import notes as edit_notes
from corrigenda.progress import Progress
from corrigenda.state import State
from corrigenda.training import (
    QUIET,
    Schedule,
    TrainingJob,
    TrainingSet,
    Turn,
    fit_trained,
    split,
    train,
)

Scoring = Literal["generation", "choice"]

_VALIDATION = 0.2
_EDITING = {"top_k", "strength", "scoring"}


class TruthxPatch(ModulePatch):
    """Auto-encoders by width (`space/<width>/...`) and centres by module (`centres/<module>`).

    Strength, and the positions that are moved, are in the configuration of the header. The facts
    of the header have no influence.
    """

    kind: ClassVar[str] = "truthx"
    forms = MappingProxyType({"space/*?": "float ...", "centres/*?": "float 2 code"})
    options = MappingProxyType({"strength": float, "scoring": ("generation", "choice")})

    def require_sound(self) -> None:
        """Refuse auto-encoders whose parts do not fit, and centres of no module."""
        super().require_sound()
        _load_spaces(self.stored, "space/")
        for name in self.stored:
            if name.startswith("centres/"):
                int(name.removeprefix("centres/"))

    @contextmanager
    def hooks(self, lm: LanguageModel) -> Generator[None]:
        """Move the states of the answer, as it is read or written, at the chosen modules."""
        strength = float(self.header.config["strength"])  # type: ignore[arg-type]  # a number
        scoring: Scoring = self.header.config["scoring"]  # type: ignore[assignment]  # validated
        spaces = _load_spaces(self.stored, "space/")
        points = module_points(lm)
        transforms = {}
        for name, centres in self.stored.items():
            if name.startswith("centres/") and strength:
                point = points[int(name.removeprefix("centres/"))]
                transforms[point] = _steer_module(lm, spaces, centres, strength, scoring)
        with ExitStack() as stack:
            stack.enter_context(lm.prompt_ends.follow())
            stack.enter_context(lm.swap(transforms))
            yield


class TruthX(Editor):
    """Moves the model's states towards truth for every question; no fact is written.

    Reference: Zhang, Yu, Feng 2024. See the card, `truthx.md`.
    """

    name: ClassVar[str] = "truthx"
    requires: ClassVar[Requires] = Requires(training_set=True)
    supports: ClassVar[Supports] = Supports(
        single=True, batch=True, sequential=False, exact=False, order_free=True
    )

    top_k: int = Field(default=10, ge=0, description="Modules that are edited.")
    strength: float = Field(
        default=1.0, description="Length of the move, in lengths of the state; below 0 away."
    )
    scoring: Scoring = Field(
        default="generation",
        description="`generation` moves the last token of the prompt and all after it; `choice` "
        "those after the prompt, by how untrue they look.",
    )
    hidden: int = Field(default=2048, ge=1, description="Width between state and code.")
    code: int = Field(default=1024, ge=1, description="Width of both codes.")
    temperature: float = Field(default=0.1, gt=0, description="Of the contrastive losses.")
    learning_rate: float = Field(default=1e-4, gt=0, description="Of Adam.")
    batch_size: int = Field(default=64, ge=2, description="Pairs in one step, of one module.")
    steps: int = Field(default=10_000, ge=1, description="Steps of the training, at most.")
    validate_every: int = Field(default=500, ge=1, description="Steps between validations.")
    patience: int = Field(default=2_000, ge=1, description="Steps without a better validation.")
    max_pairs: int = Field(default=4096, ge=2, description="Pairs of tokens to learn from.")
    seed: int = Field(default=0, description="Of first weights, facts taken, and batches.")

    def sites(self, lm: LanguageModel) -> tuple[Site, ...]:
        """Return no sites: no weight changes."""
        return ()

    def num_parameters(self, lm: LanguageModel) -> int:
        """Return the parameters added: an auto-encoder by width, and two centres a module."""
        widths = {lm.shape(Site(0, "attn.out"))[1], lm.d_model}
        with torch.device("meta"):
            spaces = [AutoEncoder(width, self.hidden, self.code) for width in widths]
        coding = sum(one.numel() for space in spaces for one in space.parameters())
        return coding + 2 * self.code * min(self.top_k, 2 * lm.num_layers)

    def fit(
        self,
        lm: LanguageModel,
        corpus: TrainingSet | None = None,
        *,
        progress: Progress | None = None,
    ) -> State:
        """Learn the truthful space of a model; the result is cached by content.

        Args:
            lm: The model without active patches.
            corpus: Facts whose `target` is a truthful answer and whose `before` an untruthful one,
                or a file of them. By default true facts of its world for a pocket model, each with
                a false object.
            progress: Called with (stage, done, total).

        Raises:
            MissingState (CG503): no facts were given, and none are shipped for this model.
            BadConfig (CG502): text, or facts without `before`.
        """
        if corpus is None and lm.name in SHIPPED:
            from corrigenda.almanac.truth_pairs import truth_facts

            corpus = tuple(truth_facts())
        config = self.model_dump(mode="json", exclude=_EDITING)
        return fit_trained(
            lm, corpus, self.train, method=self.name, config=config, progress=progress
        )

    def train(
        self,
        lm: LanguageModel,
        facts: tuple[Fact, ...],
        job: TrainingJob = QUIET,
    ) -> State:
        """Train the auto-encoders, and measure centres and probing accuracy of each module."""
        require_pairs(facts)
        parts = split(facts, validation=max(1, int(_VALIDATION * len(facts))), seed=self.seed)
        learnt, judged = (
            read_pairs(lm, part, max_pairs=size, seed=self.seed, progress=job.progress)
            for part, size in zip(
                parts, (self.max_pairs, max(2, int(_VALIDATION * self.max_pairs))), strict=True
            )
        )
        with torch.random.fork_rng([]):
            torch.manual_seed(self.seed)
            widths = sorted({states.shape[-1] for states in learnt.states})
            spaces = nn.ModuleDict(
                {str(width): AutoEncoder(width, self.hidden, self.code) for width in widths}
            ).to(lm.device)
        size = min(self.batch_size, len(learnt.states[0]))

        def step(turn: Turn) -> float:
            states = learnt.states[turn.chance.randrange(len(learnt.states))]
            loss = self._loss(spaces, states[list(turn.items)].to(lm.device))
            loss.backward()
            return float(loss.detach())

        trained = train(
            spaces,
            torch.optim.Adam(spaces.parameters(), lr=self.learning_rate),
            num_items=len(learnt.states[0]),
            step=step,
            validate=lambda: self._validation(spaces, judged, size),
            schedule=Schedule(
                steps=self.steps,
                batch_size=size,
                validate_every=self.validate_every,
                patience=self.patience,
                seed=self.seed,
            ),
            job=job,
            key=f"{self.model_dump_json(exclude=_EDITING)}/{lm.recall_digest()}",
        )
        centres = torch.stack([_measure_centres(spaces, states) for states in learnt.states])
        accuracy = torch.tensor(
            [
                _measure_accuracy(spaces, states, own)
                for states, own in zip(judged.states, centres, strict=True)
            ]
        )
        tensors = {f"{self.name}/space/{name}": one for name, one in _name_tensors(spaces).items()}
        tensors |= {f"{self.name}/centres": centres, f"{self.name}/accuracy": accuracy}
        about: dict[str, JsonValue] = {
            **trained.to_json(),
            "facts": [learnt.num_facts, judged.num_facts],
            "pairs": [len(learnt.states[0]), len(judged.states[0])],
            "facts_without_shared_tokens": learnt.num_without + judged.num_without,
        }
        return State(tensors, {self.name: about})

    def edit(self, lm: LanguageModel, facts: Sequence[Fact], state: State | None = None) -> Edit:
        """Make the patch that moves states towards truth while it is active.

        The facts decide whether there is a patch at all, and nothing else: their targets are
        measured before and after, for the notes.

        Raises:
            MissingState (CG503): `fit` was not called, or on another method.
            WrongBase (CG401): the state belongs to another model.
            PromptTooLong (CG105): a prompt and its target exceed the context.
        """
        config = self.model_dump(mode="json")
        if not facts:
            return Edit(TruthxPatch.make(lm, {}, method=self.name, config=config), state)
        accuracy = _require_tensor(state, f"{self.name}/accuracy").tolist()
        assert state is not None
        state.require_base(lm)
        ranked = sorted(range(len(accuracy)), key=lambda module: (-accuracy[module], module))
        chosen = sorted(ranked[: self.top_k])
        centres = _require_tensor(state, f"{self.name}/centres")
        tensors = {f"centres/{module}": centres[module] for module in chosen}
        points = module_points(lm)
        widths = {
            str(lm.d_model if points[one].role == "write" else lm.shape(points[one].site)[1])
            for one in chosen
        }
        for name, tensor in state.tensors.items():
            kept = name.removeprefix(f"{self.name}/")
            if kept.startswith("space/") and kept.split("/")[1] in widths:
                tensors[kept] = tensor

        def made(notes: Mapping[str, object]) -> TruthxPatch:
            return TruthxPatch.make(
                lm, tensors, method=self.name, config=config, facts=facts, notes=notes
            )

        notes = self._notes(lm, facts, made({}))
        notes["modules"] = {module_name(one): round(accuracy[one], 4) for one in chosen}
        return Edit(made(notes), state)

    def _loss(self, spaces: nn.ModuleDict, states: Float[Tensor, "pairs 2 d"]) -> Tensor:
        space = _space_for(spaces, states)
        return space.losses(states.float(), temperature=self.temperature).total

    @torch.no_grad()
    def _validation(self, spaces: nn.ModuleDict, judged: StatePairs, size: int) -> dict[str, float]:
        device = next(spaces.parameters()).device
        losses = [
            [
                one.item()
                for one in _space_for(spaces, part).losses(
                    part.to(device).float(), temperature=self.temperature
                )
            ]
            for states in judged.states
            for part in states.split(size)
        ]
        names = ("reconstruction", "truthful", "semantic", "editing")
        means = [sum(column) / len(column) for column in zip(*losses, strict=True)]
        return {"loss": sum(means), **dict(zip(names, means, strict=True))}

    def _notes(
        self, lm: LanguageModel, facts: Sequence[Fact], patch: TruthxPatch
    ) -> dict[str, object]:
        others = [fact for fact in facts if fact.before is not None]
        asked = [*facts, *(replace(fact, target=str(fact.before)) for fact in others)]
        before = _measure_log_probs(lm, asked)
        with patch.hooks(lm):
            after = _measure_log_probs(lm, asked)
        gains = [late - early for early, late in zip(before, after, strict=True)]
        rivals = iter(gains[len(facts) :])
        margins = [
            gain - (next(rivals) if fact.before is not None else 0.0)
            for fact, gain in zip(facts, gains, strict=False)
        ]
        statuses = ["likelier" if margin > 0 else "not likelier" for margin in margins]
        series = {"log_probs": before[: len(facts)], "log_probs_after": after[: len(facts)]}
        return {
            "status": statuses,
            "notices": [
                "this method writes no fact: it moves all answers towards what it learned as truth."
            ],
            **edit_notes.round_series({**series, "margin_gains": margins}),
        }


def _steer_module(
    lm: LanguageModel,
    spaces: nn.ModuleDict,
    centres: Float[Tensor, "2 code"],
    strength: float,
    scoring: Scoring,
) -> TensorMap:
    """Return the transform of one module; positions outside the answer keep their bits."""

    def steer(states: Tensor) -> Tensor:
        at = _find_moved(lm, states, scoring)
        if not bool(at.any()):
            return states
        space = _space_for(spaces, states).to(states.device)
        chosen = states[at].float()
        positive, negative = centres.to(states.device)
        weight = strength
        if scoring == "choice":
            weight = (
                strength
                * measure_untruth(space.truth(chosen), positive, negative).clamp_min(0)[:, None]
            )
        moved = chosen + weight * space.displacement(chosen, positive - negative)
        new = states.clone()
        new[at] = moved.to(states.dtype)
        return new

    return steer


def _find_moved(lm: LanguageModel, states: Tensor, scoring: Scoring) -> Bool[Tensor, "batch pos"]:
    """Return which positions of the running pass belong to the answer."""
    prompt_ends = lm.prompt_ends
    at = prompt_ends.mask.to(states.device)
    if prompt_ends.continued:
        return at
    columns = torch.arange(states.shape[1], device=states.device)
    ends = prompt_ends.ends.to(states.device)[:, None]
    return at & (columns >= ends if scoring == "generation" else columns > ends)


def _load_spaces(tensors: Mapping[str, Tensor], prefix: str) -> nn.ModuleDict:
    """Return auto-encoders from their tensors, frozen."""
    found: dict[str, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        if name.startswith(prefix):
            width, _, parameter = name.removeprefix(prefix).partition("/")
            found.setdefault(width, {})[parameter] = tensor
    spaces = nn.ModuleDict()
    for width, own in found.items():
        hidden, code = own["semantic.0.weight"].shape[0], own["fusion.weight"].shape[0]
        with torch.random.fork_rng([]):
            spaces[width] = AutoEncoder(int(width), hidden, code)
        spaces[width].load_state_dict(own)
    return spaces.eval().requires_grad_(False)


def _name_tensors(spaces: nn.ModuleDict) -> dict[str, Tensor]:
    """Return the tensors of all auto-encoders, named `<width>/<parameter>`."""
    return {
        f"{width}/{name}": tensor.cpu()
        for width, space in spaces.items()
        for name, tensor in space.state_dict().items()
    }


def _space_for(spaces: nn.ModuleDict, states: Tensor) -> AutoEncoder:
    space = spaces[str(states.shape[-1])]
    assert isinstance(space, AutoEncoder)
    return space


@torch.no_grad()
def _measure_centres(
    spaces: nn.ModuleDict, states: Float[Tensor, "pairs 2 d"]
) -> Float[Tensor, "2 code"]:
    """Return the mean truthful code of truthful states, and of untruthful ones."""
    device = next(spaces.parameters()).device
    return _space_for(spaces, states).truth(states.to(device).float()).mean(0).cpu()


@torch.no_grad()
def _measure_accuracy(
    spaces: nn.ModuleDict, states: Float[Tensor, "pairs 2 d"], centres: Float[Tensor, "2 code"]
) -> float:
    """Return the share of states nearer, by cosine, to the centre of their own kind."""
    device = next(spaces.parameters()).device
    codes = _space_for(spaces, states).truth(states.to(device).float()).cpu()
    away = measure_untruth(codes, *centres)
    return float(((away[:, 0] < 0).float().mean() + (away[:, 1] > 0).float().mean()) / 2)


def _require_tensor(state: State | None, name: str) -> Tensor:
    if state is None or name not in state.tensors:
        raise MissingState(
            "no truthful space was learned.",
            where="method truthx",
            hint="Call `editor.fit(lm, pairs)` and pass its state.",
        )
    return state.tensors[name]


@torch.no_grad()
def _measure_log_probs(lm: LanguageModel, facts: Sequence[Fact]) -> list[float]:
    """Return the log-probability of each fact's target after its prompt."""
    rows = labelled_rows(lm, facts)
    found: dict[int, float] = {}
    for group in batches(lm, [len(row.ids) for row in rows], None):
        part = [rows[index] for index in group]
        with lm.prompt_ends.mark(torch.tensor([row.reads[0] for row in part], device=lm.device)):
            logits, labels = predict(lm, part)
        chosen = logits.log_softmax(-1).gather(1, labels[:, None]).squeeze(1)
        sums = [float(one.sum()) for one in chosen.split([len(row.labels) for row in part])]
        found |= dict(zip(group, sums, strict=True))
    return [found[index] for index in range(len(rows))]
