"""The names under which a model is served, and the patch files that may be put on."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from corrigenda.errors import BadConfig
from corrigenda.patch import Patch, load_patch
from corrigenda.serving.jobs import ServedModel
from corrigenda.serving.refusals import Refusal


class ServedModels:
    """Served models by name; the first is the model as it was loaded.

    Attributes:
        base: The model without patches of the server.
    """

    def __init__(self, base_name: str, edited: Mapping[str, Sequence[Patch]]) -> None:
        """Name the model and its edited forms.

        Raises:
            BadConfig (CG502): an edited form has no name, that of the model, or no patch.
        """
        now = int(time.time())
        self.base = ServedModel(base_name, (), now)
        self._edited: dict[str, ServedModel] = {}
        for name, patches in edited.items():
            if not name or name == base_name:
                raise BadConfig(
                    f'"{name}" is no name for the model with patches.',
                    hint=f'The model as it was loaded is called "{base_name}"; choose another.',
                )
            if not patches:
                raise BadConfig(f'"{name}" has no patches.', hint="Give it one, or leave it out.")
            self._edited[name] = ServedModel(name, tuple(patches), now)

    def __iter__(self) -> Iterator[ServedModel]:
        """Return the served models, the unedited one first."""
        return iter([self.base, *self._edited.values()])

    def get(self, name: str) -> ServedModel:
        """Return a served model.

        Raises:
            Refusal: there is none by that name (404).
        """
        for model in self:
            if model.name == name:
                return model
        known = ", ".join(model.name for model in self)
        raise Refusal(
            404,
            f'The model "{name}" is not served; these are: {known}.',
            param="model",
            code="model_not_found",
        )

    def put(self, name: str, patches: Sequence[Patch]) -> ServedModel:
        """Return what a name would stand for with other patches; `keep` lets it.

        Raises:
            Refusal: the name is that of the unedited model (409).
        """
        if name == self.base.name:
            raise Refusal(
                409,
                f'"{name}" is the model as it was loaded; put patches on under another name.',
                code="base_model",
            )
        return ServedModel(name, tuple(patches), int(time.time()))

    def keep(self, model: ServedModel) -> None:
        """Let a name stand for a served model from now on."""
        self._edited[model.name] = model

    def remove(self, name: str) -> None:
        """Serve a name no longer; answers that have begun are ended.

        Raises:
            Refusal: it is not served (404), or is the unedited model (409).
        """
        if self.get(name) is self.base:
            raise Refusal(
                409, "The model as it was loaded has no patches to take off.", code="base_model"
            )
        del self._edited[name]


class PatchFiles:
    """The patch files that may be put on: those given at the start, and those of one folder."""

    def __init__(self, given: Mapping[str, Patch], folder: Path | None) -> None:
        """Allow patches by the names they were given, and the files within a folder."""
        self._given = dict(given)
        self._folder = None if folder is None else folder.resolve()

    @property
    def names(self) -> list[str]:
        """The names of patches that may be put on."""
        found = list(self._given)
        if self._folder is not None:
            files = sorted(self._folder.rglob("*.safetensors"))
            found += [file.relative_to(self._folder).as_posix() for file in files]
        return list(dict.fromkeys(found))

    def read(self, name: str) -> Patch:
        """Return a patch.

        Raises:
            Refusal: there is none by that name where patches may lie (404).
            CorruptFile (CG402), PickleRefused (CG403), NewerFormat (CG404): as `load_patch`.
        """
        if name in self._given:
            return self._given[name]
        if self._folder is not None and "\0" not in name:
            path = (self._folder / name).resolve()
            if path.is_relative_to(self._folder) and path.is_file():
                return load_patch(path)
        raise Refusal(
            404,
            f'No patch "{name}" may be put on; GET /admin/patches lists those that may.',
            param="patches",
            code="patch_not_found",
        )
