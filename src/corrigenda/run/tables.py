"""Tables of a recipe but its methods: data, regime, questions, health and intervals; no torch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal, NamedTuple

from pydantic import AfterValidator, Field, model_validator

from corrigenda.abilities.items import Form as TaskForm
from corrigenda.abilities.items import Kind as TaskKind
from corrigenda.abilities.items import form_of
from corrigenda.cases import Protocol, Surroundings
from corrigenda.run.editor_spec import Options, Table

if TYPE_CHECKING:
    from corrigenda.metrics.estimate import Bootstrap


class DataSpec(Table):
    """A benchmark with its options.

    Attributes:
        name: Name of the benchmark.
        options: Its options, `part` among them.
        path: Its file or folder; the public download where nothing is given.
        limit: Most cases to take; of more, as many are drawn, each kind by its share.
        seed: Seed of that draw.
    """

    name: str
    options: Options = Field(default_factory=dict)
    path: str | None = None
    limit: Annotated[int, Field(ge=1)] | None = None
    seed: int = 0


class Regime(Table):
    """How many cases are edited at once and in sequence, and when they are asked.

    Attributes:
        kind: "single": every case on the unedited model. "batch": `size` cases in one edit.
            "sequential": cases one after the other, each edit on top of those before. "mix": the
            same, with the cases of all benchmarks shuffled.
        size: Cases in one edit; of a sequence, in each of its steps.
        length: Cases in one sequence; None takes all in one.
        checkpoints: Numbers of cases edited after which all of them are asked; the last moment of a
            sequence always is.
        immediate: Roles, or families of roles, that are asked right after each step of a sequence.
    """

    kind: Literal["single", "batch", "sequential", "mix"] = "single"
    size: Annotated[int, Field(ge=1)] = 1
    length: Annotated[int, Field(ge=1)] | None = None
    checkpoints: tuple[Annotated[int, Field(ge=1)], ...] = (1, 10, 100, 500, 1000)
    immediate: tuple[str, ...] = ("reliability",)

    @property
    def in_sequence(self) -> bool:
        """Whether edits stay while others follow."""
        return self.kind in ("sequential", "mix")


class NaturalForm(NamedTuple):
    """How natural answers are asked for.

    Attributes:
        max_new_tokens: Most tokens of an answer; the same whatever is expected.
        stop: Texts at which an answer ends, besides its own end.
        wording: Text around a prompt without chat template; `{}` is the prompt.
        system: System message of the chat template; empty leaves it to the template.
    """

    max_new_tokens: int = 50
    stop: tuple[str, ...] = ()
    wording: str = "{}"
    system: str = ""


PLAIN = NaturalForm()
"""Prompts as they are, answers of 50 tokens at most."""


def _check_wording(wording: str) -> str:
    if wording.count("{}") != 1:
        raise ValueError("expected one {} for the prompt")
    return wording


class AskSpec(Table):
    """Which probes are asked, and how.

    Attributes:
        protocols: Ask every probe that expects an answer under these; none leaves each probe's own.
        max_new_tokens: Length of a greedy answer where the probe has none of its own.
        roles: Roles, or families of roles, that are asked; none asks all.
        without: Roles, or families of roles, that are left out.
        surroundings: Ask each edit in these surroundings too (see `robustness_contexts`).
        natural_tokens: Most tokens of a natural answer, where the probe has no length of its own.
        stop: Texts at which a natural answer ends, besides its own end; WILD takes "." and a
            newline.
        wording: Text around the prompts of `generate`, such as "Question: {} Answer:".
        system: System message of `chat`; empty leaves it to the template.
        chat: Ask every prompt as a user's turn in the model's chat template; answers are whole
            sentences then, so that metrics end in `:contains` and `:answer`.
    """

    protocols: tuple[Protocol, ...] = ()
    max_new_tokens: Annotated[int, Field(ge=1)] = 20
    roles: tuple[str, ...] = ()
    without: tuple[str, ...] = ()
    surroundings: tuple[Surroundings, ...] = ()
    natural_tokens: Annotated[int, Field(ge=1)] = 50
    stop: tuple[Annotated[str, Field(min_length=1)], ...] = ()
    wording: Annotated[str, AfterValidator(_check_wording)] = "{}"
    system: str = ""
    chat: bool = False

    @property
    def natural(self) -> NaturalForm:
        """How natural answers are asked for."""
        return NaturalForm(self.natural_tokens, self.stop, self.wording, self.system)


class TaskSpec(Table):
    """Another task, which measures abilities that no edit concerns.

    Attributes:
        name: Its name in tables; of the harness, the name of one of its tasks or groups.
        kind: Format of the file (see `abilities.items`); "harness" for a task of lm-eval.
        file: The items, as JSON lines; of the harness, a folder of task files (YAML), where the
            task is not one of its own.
        form: "choices" compares them by likelihood, "generated" lets the model answer; None takes
            the first where there are choices and the wording is ours.
        legacy: Whether in a published wording, to be judged as published too.
        shots: Worked examples before each question, the first records; as many as there is room.
        limit: Most records to ask; of more, as many are drawn, each label by its share. Of the
            harness, the first.
        seed: Seed of that draw.
    """

    name: Annotated[str, Field(pattern=r"^[\w.-]+$")]
    kind: TaskKind | Literal["harness"] = "choices"
    file: str | None = None
    form: TaskForm | None = None
    legacy: bool = False
    shots: Annotated[int, Field(ge=0)] = 0
    limit: Annotated[int, Field(ge=1)] | None = None
    seed: int = 0

    @model_validator(mode="after")
    def _has_items(self) -> TaskSpec:
        if self.kind != "harness":
            if self.file is None:
                raise ValueError("give the file of its items")
            form_of(self.kind, self.form, legacy=self.legacy)
        elif self.form or self.legacy:
            raise ValueError("the harness has forms and wordings of its own")
        return self


class HealthSpec(Table):
    """Measures of the whole model, after each unit and at each checkpoint of a sequence.

    Attributes:
        texts: Texts whose perplexity is taken.
        file: More of them: JSON lines with `text`, or plain text with one on each line.
        limit: Most texts to take.
        drift: Whether the distance of edited weights from the unedited ones is measured.
        tasks: Other tasks.
        rollback_above: Mean perplexity of the texts, over that of the unedited model, above which
            an edit is rolled back; None never does.
    """

    texts: tuple[str, ...] = ()
    file: str | None = None
    limit: Annotated[int, Field(ge=1)] = 50
    drift: bool = True
    tasks: tuple[TaskSpec, ...] = ()
    rollback_above: Annotated[float, Field(gt=1)] | None = None

    @model_validator(mode="after")
    def _can_be_done(self) -> HealthSpec:
        if self.rollback_above is not None and not self.texts and self.file is None:
            raise ValueError("rollback_above needs texts whose perplexity is taken")
        names = [one.name for one in self.tasks]
        if len(set(names)) < len(names):
            raise ValueError("two tasks have one name")
        return self


class AfterSpec(Table):
    """What happens to edited weights before facts are asked once more.

    Attributes:
        forms: Types of weights they are quantised to (`q8_0`, `q4_0`, ...), each merged and as an
            adapter, and `fine-tuned`; see `corrigenda.assess_after`.
    """

    forms: tuple[
        Literal["f16", "bf16", "q8_0", "q5_1", "q5_0", "q4_1", "q4_0", "fine-tuned"], ...
    ] = ()


class Intervals(Table):
    """Settings of the intervals of tables (see `corrigenda.metrics.estimate.Bootstrap`).

    Attributes:
        seed: Of the resampling.
        resamples: How many.
        level: Share of resamples inside an interval.
        hierarchical: Whether the answers of each drawn case are resampled too.
    """

    seed: Annotated[int, Field(ge=0)] = 0
    resamples: Annotated[int, Field(ge=1)] = 1000
    level: Annotated[float, Field(gt=0, lt=1)] = 0.95
    hierarchical: bool = False

    def bootstrap(self) -> Bootstrap:
        """Return the same settings as metrics take them."""
        from corrigenda.metrics.estimate import Bootstrap

        return Bootstrap(**self.model_dump())
