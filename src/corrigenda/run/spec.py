"""Specification of one run, validated, and recipes of several runs; imports no torch."""

from __future__ import annotations

# Validators are given whatever a table or a caller holds.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, cast

from pydantic import (
    BaseModel,
    BeforeValidator,
    Field,
    ValidationError,
    model_validator,
)

from corrigenda.benchmarks.benchmark import BENCHMARKS
from corrigenda.errors import BadConfig, did_you_mean
from corrigenda.methods.registry import METHODS
from corrigenda.run.editor_spec import EditorSpec, Table
from corrigenda.run.objects import as_editor, as_tables
from corrigenda.run.tables import (
    AfterSpec,
    AskSpec,
    DataSpec,
    HealthSpec,
    Intervals,
    Regime,
    TaskSpec,
)
from corrigenda.text_files import UnreadableText, is_plain_file, read_toml

if TYPE_CHECKING:
    from corrigenda.editor import Editor

FOLDER = "recipes"
"""Folder of recipes that are found by name: here, in a source tree, and in the package."""


Benchmarks = Annotated[tuple[DataSpec, ...], BeforeValidator(as_tables), Field(min_length=1)]


class SharedSpec(Table):
    """Settings that the runs of a recipe share.

    Attributes:
        model: `pocket`, a folder, or a name on the Hugging Face hub.
        dtype: By default the one it was saved in; float32 for the pocket models.
        device: Device of the model; "auto" spreads it over all.
        quantization: How it is quantised as it is loaded, see `corrigenda.lm.quantisation`.
        attention: Its attention, such as "eager"; the model's default if None.
        benchmark: One or several; several are edited one after the other, or as a "mix".
        train: Benchmark whose facts the method is fitted on, where it needs a training set. With
            another one than `benchmark` this is the cross-domain regime.
        regime: How many cases are edited at once and in sequence.
        ask: Which probes are asked, and how.
        health: Measures of the whole model.
        after: Treatments of edited weights after which facts are asked once more.
        seed: Shuffles a mix, and seeds methods that have a `seed` and no other value for it.
        metrics: Metrics of tables; none takes the default ones.
        intervals: Intervals of tables.

    Raises:
        BadConfig (CG502): a key that a table does not have, or a value it cannot take.
    """

    model: str = "pocket"
    dtype: Literal["float64", "float32", "bfloat16", "float16"] | None = None
    device: str = "cpu"
    quantization: Literal["4bit", "8bit", "torchao-int8", "quanto-int8", "quanto-int4"] | None = (
        None
    )
    attention: str | None = None
    benchmark: Benchmarks
    train: DataSpec | None = None
    regime: Regime = Field(default_factory=Regime)
    ask: AskSpec = Field(default_factory=AskSpec)
    health: HealthSpec = Field(default_factory=HealthSpec)
    after: AfterSpec = Field(default_factory=AfterSpec)
    seed: int = 0
    metrics: tuple[str, ...] = ()
    intervals: Intervals = Field(default_factory=Intervals)

    def __init__(self, **values: object) -> None:
        """Validate the values."""
        try:
            super().__init__(**values)
        except ValidationError as error:
            raise _make_error(type(self), error) from error

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


class RunSpec(SharedSpec):
    """One run: a model, a method, cases, and how they are edited and asked.

    In Python, `editor` and `benchmark` are also objects or names:
    `RunSpec(editor=cg.Rome(layer=5), benchmark="pocketedit")`.

    Attributes:
        editor: The method: an editor object such as `cg.Rome(layer=5)`, or a name with options. An
            object is taken as it is; a name is short for the method with the preset for the model.
    """

    editor: Annotated[EditorSpec, BeforeValidator(as_editor)]

    @model_validator(mode="after")
    def _resolve_editor(self) -> RunSpec:
        resolved = self.editor.resolve(self.model)
        if resolved is not self.editor:
            # Pydantic's way to set a field of a frozen model while it is validated.
            object.__setattr__(self, "editor", resolved)
        return self

    def check(self) -> None:
        """Refuse unknown names.

        Raises:
            UnknownMethod (CG501): the method is not known.
            UnknownBenchmark (CG508), UnknownMetric (CG505), BadConfig (CG502): as for `SharedSpec`.
        """
        super().check()
        if not self.editor.plug_in:
            METHODS.resolve(self.editor.name)

    def build_editor(self) -> Editor:
        """Return the editor of the run; its `seed` is the run's where it sets no other.

        Raises:
            UnknownMethod (CG501): no such method.
            BadConfig (CG502): an option it does not have, or a value it cannot take.
        """
        return self.editor.build(self.model, self.seed)

    def digest(self, *, editor: bool = True) -> str:
        """Return a hash of all that can change a row: not metrics, intervals and the label.

        Args:
            editor: Whether the method is part of it, as the specification has it.
        """
        without = {"metrics": True, "intervals": True, "editor": {"label"} if editor else True}
        plain = self.model_dump(mode="json", exclude=without)
        if self.health.rollback_above is None:
            del plain["health"]["rollback_above"]
        if not self.after.forms:
            del plain["after"]
        for name in ("quantization", "attention"):
            if plain[name] is None:
                del plain[name]
        drawn = (*plain["benchmark"], *plain["health"]["tasks"])
        for one in (*drawn, *([plain["train"]] if self.train else ())):
            if one["limit"] is None:
                del one["seed"]
        return hash_json(plain)


class Recipe(SharedSpec):
    """Settings shared by several methods, each of which makes one run.

    Attributes:
        title: Title of its table.
        about: The question that it answers.
        methods: The methods: names, tables or editor objects; "all" is every method there is.
    """

    title: str = ""
    about: str = ""
    methods: Annotated[tuple[EditorSpec, ...], BeforeValidator(lambda v: [*_expand_methods(v)])]

    def runs(
        self,
        *,
        model: str | None = None,
        limit: int | None = None,
        data: str | None = None,
        chat: bool | None = None,
        placing: Mapping[str, str | None] | None = None,
    ) -> tuple[RunSpec, ...]:
        """Return one run for each method.

        Args:
            model: Another model than the recipe's.
            limit: Most cases of each benchmark, where the recipe takes more; drawn by its seed.
            data: Folder that holds the public files of benchmarks for which the recipe names none.
            chat: Whether to ask in the chat form, where not as the recipe says.
            placing: `dtype`, `device`, `quantization` and `attention`, as far as given.

        Raises:
            UnknownMethod (CG501), UnknownBenchmark (CG508), UnknownMetric (CG505), BadConfig
                (CG502): a name in the recipe is not known.
        """
        shared = {name: getattr(self, name) for name in SharedSpec.model_fields}
        shared["model"] = model or self.model
        shared |= {name: one for name, one in (placing or {}).items() if one is not None}
        if chat is not None:
            shared["ask"] = self.ask.model_copy(update={"chat": chat})
        if limit is not None:
            shared["benchmark"] = tuple(
                one.model_copy(update={"limit": min(limit, one.limit or limit)})
                for one in self.benchmark
            )
        if data is not None:
            shared["benchmark"] = tuple(
                one.model_copy(update={"path": one.path or _choose_folder(one, data)})
                for one in shared["benchmark"]
            )
        found = tuple(RunSpec(editor=editor, **shared) for editor in self.methods)
        for one in found:
            one.check()
        return found


def _choose_folder(one: DataSpec, folder: str) -> str | None:
    """Return the folder, for benchmarks that read files."""
    return str(Path(folder).resolve()) if BENCHMARKS.card(one.name).get("files") else None


def _make_error(kind: type[BaseModel], error: ValidationError) -> BadConfig:
    """Return one error with all problems of a recipe; unknown keys are compared with all known."""
    tables = (
        kind,
        EditorSpec,
        DataSpec,
        Regime,
        AskSpec,
        HealthSpec,
        TaskSpec,
        AfterSpec,
        Intervals,
    )
    known = sorted({name for table in tables for name in table.model_fields})
    problems: list[str] = []
    hints: list[str] = []
    for item in error.errors():
        place = ".".join(map(str, item["loc"]))
        problems.append(f"{place}: {item['msg']}")
        if item["type"] == "extra_forbidden":
            hints.append(did_you_mean(str(item["loc"][-1]), known))
    return BadConfig("; ".join(problems) + ".", where=kind.__name__, hint=" ".join(hints))


def _expand_methods(value: object) -> Iterator[object]:
    if value == "all":
        value = METHODS.names()
    if not isinstance(value, Sequence) or isinstance(value, str):
        raise ValueError('expected a list of methods, or "all"')
    yield from map(as_editor, cast("Sequence[object]", value))


def read_recipe(name_or_path: str | Path) -> Recipe:
    """Read a recipe: a TOML file, by its path or its name.

    Paths in it are relative to its folder.

    Raises:
        BadConfig (CG502): no such recipe, no TOML, an unknown key, or a value that cannot be.
    """
    path = _find_recipe(name_or_path)
    try:
        table = cast("dict[str, Any]", read_toml(path))
    except UnreadableText as error:
        raise BadConfig(f"the recipe cannot be read: {error}.", where=str(path)) from error
    try:
        recipe = Recipe(**table)
    except BadConfig as error:
        raise BadConfig(error.message, where=str(path), hint=error.hint) from error
    return recipe.model_copy(update=_resolve_paths(recipe, path.parent))


def list_recipes() -> list[str]:
    """Return the names of the recipes that are found without a path."""
    return sorted({path.stem for folder in _list_folders() for path in folder.glob("*.toml")})


def hash_json(plain: object) -> str:
    """Return sixteen hexadecimal digits for plain JSON data."""
    text = json.dumps(plain, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _find_recipe(name_or_path: str | Path) -> Path:
    path = Path(name_or_path)
    if is_plain_file(path):
        return path
    for folder in _list_folders():
        if is_plain_file(found := folder / f"{name_or_path}.toml"):
            return found
    raise BadConfig(
        f'no recipe "{name_or_path}".', hint=did_you_mean(str(name_or_path), list_recipes())
    )


def _list_folders() -> list[Path]:
    package = Path(str(files("corrigenda")))
    places = (Path(FOLDER), package / FOLDER, package.parents[1] / FOLDER)
    return [folder for folder in places if folder.is_dir()]


def _resolve_paths(recipe: Recipe, folder: Path) -> dict[str, object]:
    """Return the paths of a recipe as absolute paths."""

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
