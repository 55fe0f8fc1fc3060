"""A run from beginning to end: plan it, ask the unedited model, do the units, keep the rows.

A run is named by what it depends on: its specification, the weights, the cases and the version of
this library. The same run is never done twice: what is finished is read, what was interrupted goes
on, and what another run asked of the same unedited model is not asked again.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path

import corrigenda
from corrigenda.files import cache_folder, write_text
from corrigenda.lm.loading import SHIPPED, shipped_folder
from corrigenda.lm.model import LanguageModel
from corrigenda.patch.header import library_versions
from corrigenda.progress import Progress
from corrigenda.run import baseline as kept_before
from corrigenda.run import plan, store, tasks
from corrigenda.run.executors import Executor, Job, Local, load_model
from corrigenda.run.plan import Block, Data, Unit
from corrigenda.run.prober import Answer, Question
from corrigenda.run.spec import RunSpec, content_id
from corrigenda.run.store import Manifest, Recorded, Store
from corrigenda.run.worker import editor_of

_LARGE_FILE = 1 << 26
# Grows when the same specification leads to another dtype or digest.
_DIGEST_FORMAT = 2


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
        folder: Where runs are kept.
        executor: Who does the work; None for this process.
        progress: Called with (stage, done, total).
        batch_tokens: Most tokens in one batch of questions; None takes what suits the device.

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
    worker = executor or Local(lm)
    digests: dict[str, str] = {}
    data: dict[str, Data] = {}
    found: list[Recorded] = []
    for spec in specs:
        model, cases = _model_key(spec), _cases_key(spec)
        if model not in digests:
            digests[model] = model_digest(spec, lm)
        if cases not in data:
            data[cases] = plan.load_data(spec)
        one = _Run(spec, digests[model], data[cases], Path(folder), progress, batch_tokens)
        found.append(one.done_by(worker))
    return found


def run_id(spec: RunSpec, model: str, cases: str, texts: str = "") -> str:
    """Name of a run: a hash of all it depends on.

    Args:
        spec: The run.
        model: Digest of the weights.
        cases: Digest of the cases.
        texts: Digest of the texts and tasks that show the health of the model.
    """
    config = editor_of(spec).model_dump(mode="json")
    version = corrigenda.__version__
    return content_id([spec.digest(), config, model, cases, texts, version])


def model_digest(spec: RunSpec, lm: LanguageModel | None = None) -> str:
    """Digest of the weights of a run, without loading them where their files are known.

    Raises:
        UnknownModel (CG301): no such model.
    """
    if lm is not None:
        return lm.digest()
    files = _files(spec.model)
    known = content_id([_DIGEST_FORMAT, spec.dtype, spec.model, files])
    path = cache_folder() / "digests" / f"{known}.txt"
    if files and path.is_file():
        return path.read_text(encoding="utf-8")
    digest = load_model(spec).digest()
    if files:
        with contextlib.suppress(OSError):
            path.parent.mkdir(parents=True, exist_ok=True)
            write_text(path, digest)
    return digest


class _Run:
    """One run: what it depends on, and where it is kept."""

    def __init__(
        self,
        spec: RunSpec,
        model: str,
        data: Data,
        folder: Path,
        progress: Progress | None,
        batch_tokens: int | None,
    ) -> None:
        self._spec, self._model, self._data = spec, model, data
        self._progress, self._batch_tokens = progress, batch_tokens
        texts = plan.digest_of((plan.health_questions(spec), tasks.harness_digest(spec.health)))
        self._id = run_id(spec, model, data.digest(), texts)
        self._store = Store(folder / self._id)

    def done_by(self, executor: Executor) -> Recorded:
        """Do what is left, and read it all."""
        if not self._store.finished:
            units = plan.units(self._spec, self._data.cases)
            self._store.begin(self._manifest(units))
            self._work(executor, units)
            self._store.finish()
        return store.load(self._store.folder)

    def _work(self, executor: Executor, units: Sequence[Unit]) -> None:
        job = Job(self._spec, self._id, self._model, self._batch_tokens, self._progress)
        done = self._store.done()
        wanted = [part for unit in units for part in unit.parts]
        number = sum(part in done for part in wanted)
        if number == len(wanted):
            return
        before = self._before(executor, job)
        title = self._spec.editor.title
        self._report(title, number, len(wanted))
        health = plan.health_questions(self._spec)

        def of(unit: Unit) -> Mapping[Question, Answer]:
            asked = (one for case in unit.cases for one in plan.questions_of(self._spec, case))
            return {one: before[one] for one in (*asked, *health)}

        with contextlib.closing(executor.parts(job, units, of, done)) as parts:
            for part in parts:
                self._store.add(part)
                number += 1
                self._report(title, number, len(wanted))

    def _before(self, executor: Executor, job: Job) -> dict[Question, Answer]:
        """All answers of the unedited model: those that are kept, and the others asked now."""
        blocks = plan.blocks(self._spec, self._data.cases)
        found: dict[Question, Answer] = {}
        missing: list[Block] = []
        for block in blocks:
            answers = kept_before.kept(block, self._model, self._batch_tokens)
            if answers is None:
                missing.append(block)
            else:
                found |= zip(block, answers, strict=True)
        for number, (block, answers) in enumerate(executor.answers(job, missing), start=1):
            kept_before.keep(block, answers, self._model, self._batch_tokens)
            found |= zip(block, answers, strict=True)
            self._report("unedited model", number, len(missing))
        return found

    def _report(self, stage: str, done: int, total: int) -> None:
        if self._progress is not None:
            self._progress(stage, done, total)

    def _manifest(self, units: Sequence[Unit]) -> Manifest:
        return Manifest.model_validate(
            {
                "run": self._id,
                "spec": self._spec.model_dump(mode="json"),
                "model": self._spec.model,
                "model_digest": self._model,
                "config": editor_of(self._spec).model_dump(mode="json"),
                "cases": len(self._data.cases),
                "units": len(units),
                "counts": self._data.counts,
                "files": self._data.files,
                "versions": library_versions() | tasks.harness_versions(self._spec.health),
            }
        )


def _model_key(spec: RunSpec) -> str:
    return content_id([spec.model, spec.dtype, spec.device])


def _cases_key(spec: RunSpec) -> str:
    return content_id(spec.model_dump(mode="json", include={"benchmark", "ask"}))


def _files(model: str) -> list[list[str | int]]:
    """What tells one checkpoint from another, without reading all of it; empty where unknown.

    The content of small files, size and time of large ones.
    """
    folder = Path(shipped_folder(model)) if model in SHIPPED else Path(model)
    if not folder.is_dir():
        folder = _snapshot(model)
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


def _snapshot(model: str) -> Path:
    """Folder of a model of the hub that was downloaded earlier; an absent one where it was not."""
    from huggingface_hub import try_to_load_from_cache

    try:
        found = try_to_load_from_cache(model, "config.json")
    except ValueError:
        found = None
    return Path(found).parent if isinstance(found, str) else Path(model)
