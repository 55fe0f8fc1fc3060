"""What one run is, validated; and recipes, which share settings among several runs. No torch."""

from __future__ import annotations

import hashlib
import json
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    JsonValue,
    ValidationError,
    model_validator,
)

from corrigenda.abilities.items import Form as TaskForm
from corrigenda.abilities.items import Kind as TaskKind
from corrigenda.abilities.items import form_of
from corrigenda.benchmarks.benchmark import BENCHMARKS
from corrigenda.cases import Protocol, Surroundings
from corrigenda.errors import BadConfig, did_you_mean
from corrigenda.methods.presets import variant_label
from corrigenda.methods.registry import METHODS

if TYPE_CHECKING:
    from corrigenda.metrics.estimate import Bootstrap

Options = dict[str, JsonValue]
"""Options of a method or a benchmark, as TOML gives them."""

FOLDER = "recipes"
"""Where recipes are looked for by name: here, in a source tree, and in the package."""


class Table(BaseModel):
    """A frozen table of a recipe."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class EditorSpec(Table):
    """A method with its options.

    Attributes:
        name: Name of the method.
        options: Options on top of the preset for the model.
        transforms: What is done to its patches, as `--transform` takes them.
        label: How tables call it; the name where nothing is given.
    """

    name: str
    options: Options = Field(default_factory=dict)
    transforms: tuple[str, ...] = ()
    label: str = ""

    @property
    def title(self) -> str:
        """How tables call it."""
        own = variant_label(self.name, self.options)
        return self.label or "+".join([own, *self.transforms])


class DataSpec(Table):
    """A benchmark with its options.

    Attributes:
        name: Name of the benchmark.
        options: Its options, `part` among them.
        path: Its file or folder; the public download where nothing is given.
        limit: Most cases to take.
    """

    name: str
    options: Options = Field(default_factory=dict)
    path: str | None = None
    limit: Annotated[int, Field(ge=1)] | None = None


class Regime(Table):
    """In which portions cases are edited, and when they are asked.

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


class AskSpec(Table):
    """How probes are asked.

    Attributes:
        protocols: Ask every probe that expects an answer under these; none keeps each probe's own.
        max_new_tokens: Length of a greedy answer whose probe does not say.
        roles: Roles, or families of roles, that are asked; none asks all.
        without: Roles, or families of roles, that are left out.
        surroundings: Ask for each edit in these surroundings too (see `benchmarks.surroundings`).
    """

    protocols: tuple[Protocol, ...] = ()
    max_new_tokens: Annotated[int, Field(ge=1)] = 20
    roles: tuple[str, ...] = ()
    without: tuple[str, ...] = ()
    surroundings: tuple[Surroundings, ...] = ()


class TaskSpec(Table):
    """Another task, which shows what the model can still do.

    Attributes:
        name: How tables call it; of the harness, the name of one of its tasks or groups.
        kind: What the file holds (see `benchmarks.downstream`); "harness" for a task of lm-eval.
        file: The items, as JSON lines; of the harness, a folder of task files (YAML), where the
            task is not one of its own.
        form: "choices" compares them by likelihood, "generated" lets the model answer; None takes
            the first where there are choices and the wording is ours.
        legacy: Whether in a published wording, to be judged as published too.
        shots: Worked examples before each question, the first records; as many as there is room.
        limit: Most records to ask.
    """

    name: Annotated[str, Field(pattern=r"^[\w.-]+$")]
    kind: TaskKind | Literal["harness"] = "choices"
    file: str | None = None
    form: TaskForm | None = None
    legacy: bool = False
    shots: Annotated[int, Field(ge=0)] = 0
    limit: Annotated[int, Field(ge=1)] | None = None

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
    """What is measured of the whole model: after each unit, and of a sequence at each checkpoint.

    Attributes:
        texts: Texts whose perplexity is taken.
        file: More of them: JSON lines with `text`, or plain text with one on each line.
        limit: Most texts to take.
        drift: Whether the distance of edited weights from the unedited ones is measured.
        tasks: Other tasks.
        rollback_above: Mean perplexity of the texts, over that of the unedited model, above which
            an edit is taken back; None keeps all.
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


class Intervals(Table):
    """How the intervals of tables are found (see `corrigenda.metrics.estimate.Bootstrap`).

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
        """The same for metrics."""
        from corrigenda.metrics.estimate import Bootstrap

        return Bootstrap(**self.model_dump())


def _several(value: object) -> object:
    return [value] if isinstance(value, Mapping | DataSpec) else value


Benchmarks = Annotated[tuple[DataSpec, ...], BeforeValidator(_several), Field(min_length=1)]


class Shared(Table):
    """What the runs of a recipe have in common.

    Attributes:
        model: `pocket`, a folder, or a name on the Hugging Face hub.
        dtype: By default the one it was saved in; float32 for the pocket models.
        device: Where it goes.
        benchmark: One or several; several are edited one after the other, or as a "mix".
        train: Benchmark whose facts the method is fitted on, where it needs a training set. With
            another one than `benchmark` this is the cross-domain regime.
        regime: Portions and moments.
        ask: Protocols and lengths.
        health: Perplexity and drift.
        seed: Shuffles a mix, and seeds methods that have a `seed` and no other value for it.
        metrics: What tables show; none lets them choose.
        intervals: How sure they are.

    Raises:
        BadConfig (CG502): a key that a table does not have, or a value it cannot take.
    """

    model: str = "pocket"
    dtype: Literal["float64", "float32", "bfloat16", "float16"] | None = None
    device: str = "cpu"
    benchmark: Benchmarks
    train: DataSpec | None = None
    regime: Regime = Field(default_factory=Regime)
    ask: AskSpec = Field(default_factory=AskSpec)
    health: HealthSpec = Field(default_factory=HealthSpec)
    seed: int = 0
    metrics: tuple[str, ...] = ()
    intervals: Intervals = Field(default_factory=Intervals)

    def __init__(self, **values: object) -> None:
        """Validate the values."""
        try:
            super().__init__(**values)
        except ValidationError as error:
            raise _refusal(type(self), error) from error

    def check(self) -> None:
        """Refuse unknown names.

        Raises:
            UnknownBenchmark (CG508), UnknownMetric (CG505): a name is not known.
            BadConfig (CG502): an option of a benchmark cannot be.
        """
        for one in (*self.benchmark, *([self.train] if self.train else ())):
            BENCHMARKS.get(one.name)(**one.options)
        if self.metrics:
            from corrigenda.metrics.registry import metric

            for name in self.metrics:
                metric(name)


class RunSpec(Shared):
    """One run: a model, a method, cases, and how they are edited and asked."""

    editor: EditorSpec

    def check(self) -> None:
        """Refuse unknown names.

        Raises:
            UnknownMethod (CG501): the method is not known.
            UnknownBenchmark (CG508), UnknownMetric (CG505), BadConfig (CG502): as for `Shared`.
        """
        super().check()
        METHODS.resolve(self.editor.name)

    def digest(self) -> str:
        """Hash of everything that can change a row: not metrics, intervals and the label."""
        without = {"metrics": True, "intervals": True, "editor": {"label"}}
        plain = self.model_dump(mode="json", exclude=without)
        if self.health.rollback_above is None:
            del plain["health"]["rollback_above"]
        return content_id(plain)


class Recipe(Shared):
    """Settings shared by several methods, each of which makes one run.

    Attributes:
        title: What tables are headed with.
        about: What it shows.
        methods: The methods, by name or as tables.
    """

    title: str = ""
    about: str = ""
    methods: Annotated[tuple[EditorSpec, ...], BeforeValidator(lambda v: [*_editors(v)])]

    def runs(
        self,
        *,
        model: str | None = None,
        limit: int | None = None,
        data: str | None = None,
    ) -> tuple[RunSpec, ...]:
        """One run for each method.

        Args:
            model: Another model than the recipe's.
            limit: Most cases of each benchmark, where the recipe takes more.
            data: Folder that holds the public files of benchmarks for which the recipe names none.

        Raises:
            UnknownMethod (CG501), UnknownBenchmark (CG508), UnknownMetric (CG505), BadConfig
                (CG502): the recipe asks for what there is not.
        """
        shared = {name: getattr(self, name) for name in Shared.model_fields}
        shared["model"] = model or self.model
        if limit is not None:
            shared["benchmark"] = tuple(
                one.model_copy(update={"limit": min(limit, one.limit or limit)})
                for one in self.benchmark
            )
        if data is not None:
            shared["benchmark"] = tuple(
                one.model_copy(update={"path": one.path or _folder_for(one, data)})
                for one in shared["benchmark"]
            )
        found = tuple(RunSpec(editor=editor, **shared) for editor in self.methods)
        for one in found:
            one.check()
        return found


def _folder_for(one: DataSpec, folder: str) -> str | None:
    """The folder, for benchmarks that read files."""
    return str(Path(folder).resolve()) if BENCHMARKS.card(one.name).get("files") else None


def _refusal(kind: type[BaseModel], error: ValidationError) -> BadConfig:
    """All problems of a recipe in one message; keys that are unknown are compared with all."""
    tables = (kind, EditorSpec, DataSpec, Regime, AskSpec, HealthSpec, TaskSpec, Intervals)
    known = sorted({name for table in tables for name in table.model_fields})
    problems: list[str] = []
    hints: list[str] = []
    for item in error.errors():
        place = ".".join(map(str, item["loc"]))
        problems.append(f"{place}: {item['msg']}")
        if item["type"] == "extra_forbidden":
            hints.append(did_you_mean(str(item["loc"][-1]), known))
    return BadConfig("; ".join(problems) + ".", where=kind.__name__, hint=" ".join(hints))


def _editors(value: object) -> Iterator[object]:
    if not isinstance(value, Sequence) or isinstance(value, str):
        raise ValueError("expected a list of methods")
    for one in value:
        yield {"name": one} if isinstance(one, str) else one


def read_recipe(name_or_path: str | Path) -> Recipe:
    """Read a recipe: a TOML file, by its path or its name.

    Paths in it are relative to its folder.

    Raises:
        BadConfig (CG502): no such recipe, no TOML, an unknown key, or a value that cannot be.
    """
    path = _find(name_or_path)
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise BadConfig(f"the recipe cannot be read: {error}.", where=str(path)) from error
    try:
        recipe = Recipe(**table)
    except BadConfig as error:
        raise BadConfig(error.message, where=str(path), hint=error.hint) from error
    return recipe.model_copy(update=_resolved(recipe, path.parent))


def recipe_names() -> list[str]:
    """Names of the recipes that are found without a path."""
    return sorted({path.stem for folder in _folders() for path in folder.glob("*.toml")})


def content_id(plain: object) -> str:
    """Sixteen hexadecimal digits that stand for plain JSON data."""
    text = json.dumps(plain, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _find(name_or_path: str | Path) -> Path:
    path = Path(name_or_path)
    if path.is_file():
        return path
    for folder in _folders():
        if (found := folder / f"{name_or_path}.toml").is_file():
            return found
    raise BadConfig(
        f'no recipe "{name_or_path}".', hint=did_you_mean(str(name_or_path), recipe_names())
    )


def _folders() -> list[Path]:
    package = Path(str(files("corrigenda")))
    places = (Path(FOLDER), package / FOLDER, package.parents[1] / FOLDER)
    return [folder for folder in places if folder.is_dir()]


def _resolved(recipe: Recipe, folder: Path) -> dict[str, object]:
    """Paths of a recipe, made to hold wherever it is run from."""

    def data(one: DataSpec) -> DataSpec:
        if one.path is None:
            return one
        return one.model_copy(update={"path": str((folder / one.path).resolve())})

    def task(one: TaskSpec) -> TaskSpec:
        if one.file is None:
            return one
        return one.model_copy(update={"file": str((folder / one.file).resolve())})

    health = recipe.health
    if health.file is not None:
        health = health.model_copy(update={"file": str((folder / health.file).resolve())})
    health = health.model_copy(update={"tasks": tuple(map(task, health.tasks))})
    return {
        "benchmark": tuple(map(data, recipe.benchmark)),
        "train": data(recipe.train) if recipe.train else None,
        "health": health,
    }
