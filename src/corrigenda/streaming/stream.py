"""`stream`: many facts batch by batch, with checkpoints to resume from."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Generator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path

from corrigenda.catalogue import resolve_editor
from corrigenda.editor import Editor
from corrigenda.engines.chat_forms import add_chat_forms, set_chat_contexts
from corrigenda.engines.closed_form import ClosedFormEditor, KeyRecords
from corrigenda.engines.locate.pipeline import LocateThenEdit
from corrigenda.engines.pocket_world import complete_subjects
from corrigenda.errors import BadConfig, NotApplied
from corrigenda.facts import Fact, FactLike, as_facts
from corrigenda.files import make_folder
from corrigenda.lm.model import LanguageModel
from corrigenda.lm.prompt_checks import find_typed_bos
from corrigenda.lm.wrapping import require_lm
from corrigenda.patch import Applied, PatchValue
from corrigenda.progress import Progress, report_stage, show_progress
from corrigenda.prompt_answers import asks_in_chat, check_targets
from corrigenda.run.lock import hold_lock
from corrigenda.state import State
from corrigenda.streaming.batches import TRUE_ALREADY, StreamBatch
from corrigenda.streaming.edit_stream import Base, EditStream, require_separable
from corrigenda.streaming.folder import (
    SearchOn,
    StreamFolder,
    StreamList,
    StreamSettings,
    require_prefix,
    require_same,
)
from corrigenda.training.dataset import TrainingSet

Check = Callable[[EditStream], object]
"""Called with the stream so far while it is active on the model; False takes the batches since the
last check out again."""

_STAGE = "stream"


def stream(
    lm: LanguageModel,
    editor: Editor | str,
    facts: FactLike | Sequence[FactLike],
    *,
    batch_size: int = 100,
    folder: str | Path | None = None,
    checkpoint_every: int = 1,
    check: Check | None = None,
    check_every: int = 1,
    search_on: SearchOn = "edited",
    state: State | None = None,
    corpus: TrainingSet | None = None,
    progress: Progress | bool | None = None,
    layer: int | None = None,
    chat: bool | None = None,
    **options: object,
) -> EditStream:
    """Edit many facts batch by batch; the model is left as it was.

    With a `folder` the stream is kept there. The same call goes on where a killed process ended,
    with the same result to the bit; with further facts at the end, they are added.

    Args:
        lm: The model, without active patches.
        editor: An editor, or the name of a method: of those whose update is a closed form of
            keys and residuals, or that store an entry for each fact.
        facts: The facts, in order.
        batch_size: Facts a batch.
        folder: Where batches are kept; made if missing. None keeps nothing.
        checkpoint_every: Batches after which they are written.
        check: Called after every `check_every` batches and at the end, with the stream so far,
            while it is active. Where it returns False, the batches since the last check are taken
            out again, and the stream goes on. What it raises ends the stream, which stays in
            its folder up to there.
        check_every: Batches between two checks.
        search_on: "edited" finds keys and targets of a batch on the model with all batches before,
            as published. "base" finds them on the unedited model, so that no batch depends on
            another: a batch that is taken out was never there in any respect. Only for methods that
            search targets.
        state: A state fitted earlier; that of the folder, or fitted, if None.
        corpus: Text for the fit.
        progress: A callback with (stage, done, total), or False for no progress bar.
        layer: Block to edit; only with a name.
        chat: Whether to edit the chat form too; by default where the model has a chat template.
        **options: Options of the method, only with a name.

    Raises:
        BadConfig (CG502): a method whose edits cannot be taken out, no such option, or a folder
            that holds a stream of other facts or settings.
        NotApplied (CG406): patches are active on the model.
        WrongBase (CG401): the folder holds a stream of another model.
        CorruptFile (CG402): a file of the folder is damaged.
        WriteFailed (CG601): the folder cannot be written.
        CorrigendaError: any error of an edit; the model is untouched.

    Example:
        ```python
        edits = cg.stream(lm, "memit", facts, batch_size=100, folder="edits", sequential=True)
        fewer = edits.without(317)
        with fewer.apply(lm):
            print(cg.ask(lm, facts[0].prompt))
        ```
    """
    lm = require_lm(lm)
    found = set_chat_contexts(
        resolve_editor(lm, editor, layer=layer, **options), asks_in_chat(lm, chat)
    )
    require_separable(found)
    _check_counts(found, batch_size, checkpoint_every, check_every, search_on)
    if lm.patches:
        raise NotApplied(
            "patches are active on the model; a stream begins with the unedited one.",
            where=lm.name,
            hint="Revert them first.",
        )
    complete, notices = as_facts(facts), []
    if found.requires.subject:
        complete, notices = complete_subjects(lm, complete)
    for line in (*notices, *find_typed_bos(lm, [fact.prompt for fact in complete])):
        warnings.warn(line, stacklevel=2)
    settings = StreamSettings.model_validate(
        {
            "method": found.name,
            "config": found.model_dump(mode="json"),
            **{f"base_{name}": one for name, one in Base.of(lm)._asdict().items()},
            "batch_size": batch_size,
            "search_on": search_on,
            "chat": chat,
        }
    )
    with show_progress(progress) as report:
        course = _Course(
            lm, found, complete, settings, checkpoint_every, check, check_every, folder
        )
        return course.run(state, corpus, report)


class _Course:
    """One call of `stream`: what it was given, and how far it is."""

    def __init__(
        self,
        lm: LanguageModel,
        editor: Editor,
        facts: Sequence[Fact],
        settings: StreamSettings,
        checkpoint_every: int,
        check: Check | None,
        check_every: int,
        folder: str | Path | None,
    ) -> None:
        self.lm, self.editor, self.facts, self.settings = lm, editor, list(facts), settings
        self.checkpoint_every, self.check, self.check_every = checkpoint_every, check, check_every
        self.folder = None if folder is None else StreamFolder(folder)
        self.kept: StreamList | None = None
        self.checked = 0
        self.edits: EditStream

    def run(
        self, state: State | None, corpus: TrainingSet | None, progress: Progress | None
    ) -> EditStream:
        """Go on from the folder to the last fact."""
        with ExitStack() as stack:
            if self.folder is not None:
                make_folder(self.folder.path)
                stack.enter_context(hold_lock(self.folder.path, self._is_done))
            self.edits = self._begin(state, corpus, progress)
            active = stack.enter_context(_activate(self.lm))
            try:
                self._edit_all(active)
            finally:
                # What was done before an error stays too.
                self._keep()
        return self.edits

    def _is_done(self) -> bool:
        """Return whether the folder holds all facts of this call."""
        assert self.folder is not None, "asked of a folder"
        found = self.folder.read_list()
        if found is None or found.num_facts < len(self.facts):
            return False
        return self.check is None or found.checked == found.num_batches

    def _begin(
        self, state: State | None, corpus: TrainingSet | None, progress: Progress | None
    ) -> EditStream:
        """Return the stream of the folder, or an empty one with a fitted state."""
        base = Base.of(self.lm)
        self.kept = None if self.folder is None else self.folder.read_list()
        if self.folder is not None and self.kept is not None:
            require_same(self.kept.settings, self.settings, self.folder.path)
            batches = self.folder.read_batches(self.kept.num_batches)
            require_prefix(batches, self.facts, self.folder.path)
            self.checked = self.kept.checked
            fitted = self.folder.read_state()
            return EditStream.of(self.editor, fitted, base, batches, self.kept.gone)
        if state is None:
            state = self.editor.fit(self.lm, corpus, progress=progress)
        if self.folder is not None:
            self.kept = self.folder.begin(self.settings, state)
        return EditStream.empty(self.editor, state, base)

    def _edit_all(self, active: _Active) -> None:
        size, begun, before = self.settings.batch_size, time.perf_counter(), len(self.edits)
        total = len(self.edits.batches) + -(-(len(self.facts) - before) // size)
        while len(self.edits) < len(self.facts):
            rate = (len(self.edits) - before) / (time.perf_counter() - begun)
            report_stage(_STAGE, len(self.edits.batches), total, note=f"{rate:.2f} facts/s")
            self.edits = self._edit_batch(self.edits, active)
            done = len(self.edits.batches)
            if self.check is not None and done - self.checked >= self.check_every:
                self._check(active)
            if self.kept is not None and done - self.kept.num_batches >= self.checkpoint_every:
                self._keep()
        if self.check is not None and len(self.edits.batches) > self.checked:
            self._check(active)
        report_stage(_STAGE, total, total)

    def _edit_batch(self, edits: EditStream, active: _Active) -> EditStream:
        """Return the stream with one more batch."""
        begun = time.perf_counter()
        alone = self.settings.search_on == "base"
        active.show(() if alone else edits.members)
        first = len(edits)
        facts = self.facts[first : first + self.settings.batch_size]
        statuses = [TRUE_ALREADY if held else "" for held in check_targets(self.lm, facts)]
        places = [first + index for index, status in enumerate(statuses) if not status]
        carried = edits.batches[-1].carried if edits.batches else {}
        batch = StreamBatch(first, tuple(facts), tuple(statuses), carried=carried)
        if places:
            batch = self._record(edits, batch, places, alone)
        return edits.added(replace(batch, seconds=time.perf_counter() - begun))

    def _record(
        self, edits: EditStream, batch: StreamBatch, places: Sequence[int], alone: bool
    ) -> StreamBatch:
        """Return a batch with the records of the facts at these places."""
        wanted = [self.facts[place] for place in places]
        forms = add_chat_forms(self.lm, self.editor, wanted, self.settings.chat)
        each = len(forms) // len(wanted)
        owners = tuple(place for place in places for _ in range(each))
        state = edits.state if alone else edits.next_state()
        if isinstance(self.editor, ClosedFormEditor):
            made = self.editor.record(self.lm, forms, state)
            before = state.tensors
            new = {n: one for n, one in made.state.tensors.items() if before.get(n) is not one}
            records = {site: _own(records, owners) for site, records in made.records.items()}
            batch = replace(
                batch,
                records=records if alone else edits.solution.absolute(records),
                carried={**batch.carried, **new},
            )
            found, notices = made.statuses, made.notices
        else:
            patch = self.editor.edit(self.lm, forms, state).patch
            header = patch.header.model_copy(update={"prerequisites": ()})
            batch = replace(batch, patch=replace(patch, header=header), owners=owners)  # type: ignore[type-var]  # patches of methods are dataclasses
            notes = patch.header.notes
            found, notices = (_read_texts(notes.get(name)) for name in ("status", "notices"))
        statuses = list(batch.statuses)
        for place, status in zip(places, found[::each], strict=True):
            statuses[place - batch.first] = status
        return replace(batch, statuses=tuple(statuses), notices=tuple(notices))

    def _check(self, active: _Active) -> None:
        """Leave the stream as the check leaves it."""
        assert self.check is not None, "there is one"
        active.show(self.edits.members)
        since = range(self.checked, len(self.edits.batches))
        if self.check(self.edits) is False:
            self.edits = self.edits.without(batches=since)
        self.checked = len(self.edits.batches)

    def _keep(self) -> None:
        """Write the batches that are not in the folder yet, then what counts."""
        if self.folder is None or self.kept is None:
            return
        batches = self.edits.batches
        for number in range(self.kept.num_batches, len(batches)):
            self.folder.write_batch(number, batches[number])
        now = self.kept.model_copy(
            update={
                "num_batches": len(batches),
                "num_facts": len(self.edits),
                "gone": tuple(sorted(self.edits.gone)),
                "checked": self.checked,
            }
        )
        if now != self.kept:
            self.folder.write_list(now)
            self.kept = now


class _Active:
    """Patches that are active on a model one after the other, changed as little as possible."""

    def __init__(self, lm: LanguageModel) -> None:
        self.lm = lm
        self.applied: list[Applied] = []

    def show(self, members: Sequence[PatchValue]) -> None:
        """Make these patches the active ones, in this order."""
        same = 0
        for entry, member in zip(self.applied, members, strict=False):
            if entry.patch is not member:
                break
            same += 1
        while len(self.applied) > same:
            self.applied[-1].revert()
            self.applied.pop()
        mode = "runtime" if self.lm.is_quantised else "merge"
        for member in members[same:]:
            self.applied.append(member.apply(self.lm, mode=mode))


@contextmanager
def _activate(lm: LanguageModel) -> Generator[_Active]:
    active = _Active(lm)
    try:
        yield active
    finally:
        # Nothing was active before; what an interrupt left unnoted comes off too.
        with ExitStack() as stack:
            for entry in lm.patches.entries:
                stack.callback(entry.revert)


def _own(records: KeyRecords, owners: Sequence[int]) -> KeyRecords:
    """Return records with places in the stream as owners, each part in memory of its own."""
    place = records.owners.new_tensor(list(owners))
    return KeyRecords(
        records.keys.contiguous(), records.residuals.contiguous(), place[records.owners]
    )


def _read_texts(found: object) -> tuple[str, ...]:
    return tuple(map(str, found)) if isinstance(found, list) else ()


def _check_counts(
    editor: Editor, batch_size: int, checkpoint_every: int, check_every: int, search_on: str
) -> None:
    """Refuse counts below 1, and a model to search on that the method or anybody cannot have.

    Raises:
        BadConfig (CG502): one is.
    """
    named = {
        "batch_size": batch_size,
        "checkpoint_every": checkpoint_every,
        "check_every": check_every,
    }
    for name, count in named.items():
        if count < 1:
            raise BadConfig(f"{name} is {count}.", where="stream", hint="Give 1 or more.")
    if search_on not in ("edited", "base"):
        raise BadConfig(f'search_on is "{search_on}".', hint='Give "edited" or "base".')
    if search_on == "base" and not isinstance(editor, LocateThenEdit):
        raise BadConfig(
            f"{editor.name} searches no targets, so that it cannot search them on the base model.",
            where="search_on",
            hint='Leave it at "edited".',
        )
