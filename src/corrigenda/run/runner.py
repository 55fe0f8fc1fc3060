"""Runs from beginning to end: plan, ask the unedited model, do the units, record the rows.

A run is named by what it depends on: its specification, the weights, the cases and the version of
this library. The same run is never done twice: a finished run is read, an interrupted one resumes,
and what another run asked of the same unedited model is not asked again.

The way from `run` to a row: `plan` makes units of work, an executor hands each to a `Worker`, whose
`UnitRun` takes its steps. A step makes and applies edits (`unit_edits`), takes them off again where
perplexity rises too far (`rollback`), asks the probes that are due (`unit_probes`), measures
(`unit_measures`), and becomes a part of the run's folder (`store`).
"""

from __future__ import annotations

import contextlib
import hashlib
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from corrigenda.files import cache_folder, is_cached, make_folder, write_cached, write_text
from corrigenda.lm.loading import find_folder
from corrigenda.lm.model import LanguageModel
from corrigenda.lm.model_names import SHIPPED
from corrigenda.lm.product_speed import HALF, is_slow
from corrigenda.patch.header import library_versions
from corrigenda.progress import Progress
from corrigenda.run import plan, store, tasks
from corrigenda.run.baseline import read_answers, write_answers
from corrigenda.run.executors import Executor, LocalExecutor, RunJob, load_model, name_loading
from corrigenda.run.known_facts import supply_known_facts
from corrigenda.run.lock import FolderLock, hold_lock
from corrigenda.run.plan import QueryBlock, RunData, Unit
from corrigenda.run.queries import Answer, Query
from corrigenda.run.spec import RunSpec, hash_json
from corrigenda.run.store import Manifest, Recorded, Store
from corrigenda.version import VERSION

_LARGE_FILE = 1 << 26
# Grows when the same specification leads to another dtype or digest.
_DIGEST_FORMAT = 3


def run(
    spec: RunSpec,
    *,
    lm: LanguageModel | None = None,
    folder: str | Path = store.FOLDER,
    executor: Executor | None = None,
    progress: Progress | None = None,
    batch_tokens: int | None = None,
) -> Recorded:
    """Do a run, or what is left of it; a finished one is only read.

    Args:
        spec: The run.
        lm: The model, in memory and without patches; None loads `spec.model`. Only with the local
            executor.
        folder: Folder of runs.
        executor: Where units run; None for this process.
        progress: Called with (stage, done, total).
        batch_tokens: Most tokens in one batch of queries; None takes what suits the device.

    Raises:
        CorrigendaError: of model, method, benchmark or disk. An error in a unit of work does not
            stop the run: its rows say why they have no answer.
    """
    (recorded,) = run_all(
        [spec],
        lm=lm,
        folder=folder,
        executor=executor,
        progress=progress,
        batch_tokens=batch_tokens,
    )
    return recorded


def run_all(
    specs: Sequence[RunSpec],
    *,
    lm: LanguageModel | None = None,
    folder: str | Path = store.FOLDER,
    executor: Executor | None = None,
    progress: Progress | None = None,
    batch_tokens: int | None = None,
) -> list[Recorded]:
    """Do several runs, such as those of a recipe; arguments and errors are those of `run`."""
    executor = executor or LocalExecutor(lm)
    digests: dict[str, str] = {}
    data: dict[str, RunData] = {}
    found: list[Recorded] = []
    for spec in specs:
        model, cases = _make_model_key(spec), _make_cases_key(spec)
        if model not in digests:
            digests[model] = model_digest(spec, lm)
        if cases not in data:
            name = spec.model if lm is None else lm.name
            supplied = supply_known_facts(spec, name, partial(_find_model, spec, lm))
            data[cases] = plan.load_data(supplied)
        one = _PlannedRun(spec, digests[model], data[cases], Path(folder), progress, batch_tokens)
        found.append(one.execute(executor))
    return found


def run_id(spec: RunSpec, model: str, cases: str, texts: str = "") -> str:
    """Return the name of a run: a hash of all it depends on.

    Args:
        spec: The run.
        model: Digest of the weights.
        cases: Digest of the cases.
        texts: Digest of the texts and tasks that show the health of the model.
    """
    editor = spec.build_editor()
    # Whether an option comes from a preset, a table or an object makes no difference.
    method = [
        editor.name,
        spec.editor.plug_in,
        spec.editor.transforms,
        editor.model_dump(mode="json"),
    ]
    settings, version = spec.digest(editor=False), VERSION
    return hash_json([settings, method, model, cases, texts, version])


def model_digest(spec: RunSpec, lm: LanguageModel | None = None) -> str:
    """Return the digest of the weights of a run, without loading them where their files are known.

    Raises:
        UnknownModel (CG301): no such model.
    """
    if lm is not None:
        return lm.digest()
    files = _fingerprint_files(spec.model)
    known = hash_json(
        [
            _DIGEST_FORMAT,
            spec.dtype,
            spec.model,
            files,
            *_list_slow_dtypes(spec),
            *([spec.quantization] if spec.quantization else []),
        ]
    )
    path = cache_folder() / "digests" / f"{known}.txt"
    if files and (digest := _read_digest(path, known)):
        return digest
    digest = load_model(spec).digest()
    if files:
        content = f"{digest} {hash_json([known, digest])}"
        write_cached(path, lambda file: write_text(file, content))
    return digest


def _list_slow_dtypes(spec: RunSpec) -> list[str]:
    """Return the dtypes that a model of the run is not loaded in; see `lm.loading.load_pair`."""
    if spec.dtype is not None or spec.device != "cpu" or spec.model in SHIPPED:
        return []
    return [str(dtype) for dtype in HALF if is_slow(dtype)]


def _read_digest(path: Path, known: str) -> str:
    """Return a cached digest; empty where there is none or, with a warning, a damaged one."""
    if not is_cached(path):
        return ""
    try:
        digest, _, seal = path.read_text(encoding="utf-8").partition(" ")
        if seal != hash_json([known, digest]):
            raise ValueError("its checksum is another")
    except (OSError, ValueError) as error:
        warnings.warn(f"{path} is damaged: {error}. It is written again.", stacklevel=2)
        return ""
    return digest


class _PlannedRun:
    """One run: what it depends on, and the folder that records it."""

    def __init__(
        self,
        spec: RunSpec,
        model: str,
        data: RunData,
        folder: Path,
        progress: Progress | None,
        batch_tokens: int | None,
    ) -> None:
        self._spec, self._model, self._data = spec, model, data
        self._progress, self._batch_tokens = progress, batch_tokens
        health = tuple(map(tuple, plan.list_health_queries(spec)))
        texts = plan.hash_content((health, tasks.harness_digest(spec.health)))
        self._id = run_id(spec, model, data.digest(), texts)
        # Another attention of the same weights answers a little differently.
        self._answering = model if spec.attention is None else hash_json([model, spec.attention])
        self._store = Store(folder / self._id)

    def execute(self, executor: Executor) -> Recorded:
        """Do what is left, and read the whole."""
        if not self._store.finished:
            units = plan.plan_units(self._spec, self._data.cases)
            manifest = self._build_manifest(units)
            make_folder(self._store.folder)
            with hold_lock(self._store.folder, lambda: self._store.finished) as lock:
                # There is no lock where another process has finished the run meanwhile.
                if lock is not None:
                    self._store.begin(manifest)
                    self._record_parts(executor, units, lock)
        return store.load(self._store.folder)

    def _record_parts(self, executor: Executor, units: Sequence[Unit], lock: FolderLock) -> None:
        """Run the units, as far as their parts are not recorded, and finish the run."""
        planned = [part for unit in units for part in unit.parts]
        self._store.drop_damaged()
        done = self._store.list_parts()
        number = sum(part in done for part in planned)
        if number < len(planned):
            job = RunJob(self._spec, self._id, self._model, self._batch_tokens, self._progress)
            baseline = self._ask_unedited(executor, job)
            title = self._spec.editor.title
            self._report(title, number, len(planned))
            with contextlib.closing(executor.run_units(job, units, baseline, done)) as parts:
                for part in parts:
                    lock.check()
                    self._store.add(part)
                    number += 1
                    self._report(title, number, len(planned))
        lock.check()
        self._store.finish(planned)

    def _ask_unedited(
        self, executor: Executor, job: RunJob
    ) -> Callable[[Unit], dict[Query, Answer]]:
        """Return the answers of the unedited model to a unit: cached ones, and others asked now."""
        found: dict[Query, Answer] = {}
        missing: list[QueryBlock] = []
        for block in plan.plan_queries(self._spec, self._data.cases):
            answers = read_answers(block, self._answering, self._batch_tokens)
            if answers is None:
                missing.append(block)
            else:
                found |= zip(block, answers, strict=True)
        for number, (block, answers) in enumerate(executor.ask_unedited(job, missing), start=1):
            write_answers(block, answers, self._answering, self._batch_tokens)
            found |= zip(block, answers, strict=True)
            self._report("unedited model", number, len(missing))
        health = plan.list_health_queries(self._spec)

        def baseline(unit: Unit) -> dict[Query, Answer]:
            own = (query for case in unit.cases for query in plan.list_queries(self._spec, case))
            return {query: found[query] for query in (*own, *health)}

        return baseline

    def _report(self, stage: str, done: int, total: int) -> None:
        if self._progress is not None:
            self._progress(stage, done, total)

    def _build_manifest(self, units: Sequence[Unit]) -> Manifest:
        return Manifest.model_validate(
            {
                "run": self._id,
                "spec": self._spec.model_dump(mode="json"),
                "model": self._spec.model,
                "model_digest": self._model,
                "config": self._spec.build_editor().model_dump(mode="json"),
                "cases": len(self._data.cases),
                "units": len(units),
                "counts": self._data.counts,
                "files": self._data.files,
                "versions": library_versions() | tasks.harness_versions(self._spec.health),
            }
        )


def _make_model_key(spec: RunSpec) -> str:
    return hash_json(name_loading(spec))


def _find_model(spec: RunSpec, lm: LanguageModel | None) -> LanguageModel:
    return load_model(spec) if lm is None else lm


def _make_cases_key(spec: RunSpec) -> str:
    return hash_json(spec.model_dump(mode="json", include={"benchmark", "ask", "model", "dtype"}))


def _fingerprint_files(model: str) -> list[list[str | int]]:
    """Return what tells one checkpoint from another, without reading all of it.

    The content of small files, size and time of large ones; empty where no file is found.
    """
    source = find_folder(model)
    if not isinstance(source, str):
        return []
    folder = Path(source)
    if not folder.is_dir():
        folder = _find_snapshot(model)
    found: list[list[str | int]] = []
    for path in sorted(folder.glob("*")) if folder.is_dir() else []:
        if path.suffix not in (".safetensors", ".json"):
            continue
        status = path.stat()
        if status.st_size <= _LARGE_FILE:
            found.append([path.name, hashlib.sha256(path.read_bytes()).hexdigest()])
        else:
            found.append([path.name, status.st_size, status.st_mtime_ns])
    return found


def _find_snapshot(model: str) -> Path:
    """Return the folder of a downloaded model of the hub; a missing one where there is none."""
    from huggingface_hub import try_to_load_from_cache

    try:
        found = try_to_load_from_cache(model, "config.json")
    except ValueError:
        found = None
    return Path(found).parent if isinstance(found, str) else Path(model)
