"""Models that were edited elsewhere: a checkpoint, an adapter, a patch, or an endpoint."""

from __future__ import annotations

# peft has no types.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false, reportMissingTypeStubs=false
import importlib.util
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple, Protocol

from corrigenda.cases import GENERATED, NATURAL
from corrigenda.errors import BadConfig, CorrigendaError, MissingExtra, UnknownModel
from corrigenda.lm.chat import word_turn
from corrigenda.lm.model import LanguageModel
from corrigenda.lm.wrapping import wrap
from corrigenda.patch import load_patch
from corrigenda.run import prober
from corrigenda.run.endpoints import EndpointError, complete
from corrigenda.run.queries import Answer, AnswerTable, Query

ADAPTER = "adapter_config.json"
NEEDS_LOGITS = "needs logits, which an endpoint does not give"


class AskedModel(Protocol):
    """A model that answers queries."""

    @property
    def label(self) -> str:
        """How tables call it."""
        ...

    @property
    def digest(self) -> str:
        """What tells its answers from another's."""
        ...

    def ask(self, queries: Sequence[Query]) -> AnswerTable:
        """Answer queries, each once."""
        ...


class LocalModel(NamedTuple):
    """A model in memory, with the patches that are active.

    Attributes:
        lm: The model.
        label: How tables call it.
        digest: Digest of its weights, and of a patch.
    """

    lm: LanguageModel
    label: str
    digest: str

    def ask(self, queries: Sequence[Query]) -> AnswerTable:
        """Answer queries."""
        return prober.ask(self.lm, queries)


class EndpointModel(NamedTuple):
    """A model that an endpoint serves; it gives text alone.

    Attributes:
        url: Address, up to `/v1`.
        name: Name of the model there.
    """

    url: str
    name: str

    @property
    def label(self) -> str:
        """How tables call it."""
        return self.name or self.url

    @property
    def digest(self) -> str:
        """Its address and name: its weights are not known."""
        return f"{self.url}#{self.name}"

    def ask(self, queries: Sequence[Query]) -> AnswerTable:
        """Answer queries of text; others name the reason why not.

        Raises:
            UnknownModel (CG301): there is no endpoint.
        """
        return AnswerTable({one: self._answer(one) for one in dict.fromkeys(queries)}, {})

    def _answer(self, one: Query) -> Answer:
        if one.protocol not in GENERATED:
            return Answer(skipped=NEEDS_LOGITS)
        dialogue, text, ended = one.prompt, "", True
        for turn in ("", *one.turns):
            if turn:
                dialogue += f"{text.rstrip()}\n{turn}"
            try:
                found = self._complete(one, dialogue)
            except EndpointError as error:
                if error.status is None:
                    raise UnknownModel(
                        f'the endpoint of "{self.name}" {error}.',
                        where=self.url,
                        hint="Start it, and give its address up to /v1.",
                    ) from error
                return Answer(skipped=f"the endpoint {error}")
            text, ended = prober.cut_answer(one, found.text), found.ended
        return Answer(answer=text, ended=ended if one.protocol in NATURAL else None)

    def _complete(self, one: Query, prompt: str):  # noqa: ANN202 - see `complete`
        content: dict[str, object] = {
            "model": self.name,
            "temperature": 0.0,
            "max_tokens": one.max_new_tokens,
        }
        stop = list(one.stop) if one.is_text else [] if one.marker else ["\n\n"]
        if stop:
            content["stop"] = stop[:4]
        if one.chat:
            told = [{"role": "system", "content": one.system}] if one.system else []
            said = {"role": "user", "content": word_turn(prompt).write(prompt)}
            return complete(self.url, {**content, "messages": [*told, said]}, chat=True)
        return complete(self.url, {**content, "prompt": prompt}, chat=False)


@contextmanager
def open_model(
    source: str, *, base: str = "", model: str = "", device: str = "cpu"
) -> Generator[AskedModel]:
    """Open a model that was edited in whatever way, and close it.

    Args:
        source: An address (`http...`), a folder with an adapter of peft, a file of a patch, or a
            model: a name, a folder, a .gguf file.
        base: Model that an adapter or a patch belongs to.
        model: Name of the model of an endpoint.
        device: Device of a local model.

    Raises:
        UnknownModel (CG301): no such model.
        BadConfig (CG502): an adapter or a patch without its base, or an adapter that peft refuses.
        MissingExtra (CG504): peft is not installed.
    """
    if source.startswith(("http://", "https://")):
        yield EndpointModel(source, model)
        return
    path = Path(source)
    if (path / ADAPTER).is_file():
        lm = _load_adapter(path, _require_base(base, source), device)
        yield LocalModel(lm, path.name, lm.digest())
        return
    if path.is_file() and path.suffix == ".safetensors":
        lm = LanguageModel.load(_require_base(base, source), device=device)
        patch = load_patch(path)
        with patch.apply(lm):
            yield LocalModel(lm, path.stem, f"{lm.digest()}+{patch.digest()}")
        return
    lm = LanguageModel.load(source, device=device)
    yield LocalModel(lm, path.name or source, lm.digest())


def _require_base(base: str, source: str) -> str:
    if not base or base.startswith(("http://", "https://")):
        raise BadConfig(
            f"{source} is no whole model, and the model it belongs to is not given.",
            hint="Give the model before the edit as a folder or a name (--before MODEL).",
        )
    return base


def _load_adapter(folder: Path, base: str, device: str) -> LanguageModel:
    """Load a base with an adapter merged into it, as peft itself merges."""
    if importlib.util.find_spec("peft") is None:
        raise MissingExtra("an adapter needs peft.", hint='pip install "corrigenda[peft]"')
    from peft import PeftModel

    lm = LanguageModel.load(base, device=device)
    try:
        merged = PeftModel.from_pretrained(lm.model, str(folder)).merge_and_unload()
    except CorrigendaError:
        raise
    except Exception as error:
        raise BadConfig(
            f"peft cannot put the adapter on {base}: {error}",
            where=str(folder),
            hint="Give the model that the adapter was trained on.",
        ) from error
    return wrap(merged, lm.tokenizer, name=lm.name)
