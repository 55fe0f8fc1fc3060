"""Judges of natural answers: an endpoint, a local model, or a function; asked once per question.

A judge reads the bare question, what is expected and what was answered, and says A or B. What it
said is recorded as it said it, with what it was asked. Verdicts of endpoints and models are cached
by judge and question; those of functions are not, since a function may change.
"""

from __future__ import annotations

# Parts of torch and transformers have no types.
# pyright: reportUnknownMemberType=false
import dataclasses
import hashlib
import importlib
import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import cast

from corrigenda.cases import NATURAL
from corrigenda.errors import BadConfig, JudgeFailed
from corrigenda.files import cache_folder, is_cached, write_cached, write_text
from corrigenda.rows import Row
from corrigenda.run.endpoints import EndpointError, complete
from corrigenda.run.tables import JudgeSpec

_SLOT = re.compile(r"\{(question|expected|answer)\}")

AskJudge = Callable[[Sequence[str]], list[str]]
"""Maps what a judge is asked to what it says, in order."""


class Judge:
    """A judge with its settings; the model of a local one is loaded when it is first asked."""

    def __init__(self, spec: JudgeSpec, device: str = "cpu") -> None:
        """Bind to settings.

        Args:
            spec: The settings.
            device: Device of a local model.

        Raises:
            BadConfig (CG502): a function that cannot be found.
        """
        self.spec = spec
        match spec.kind:
            case "endpoint":
                self._ask: AskJudge = lambda prompts: [_ask_endpoint(spec, one) for one in prompts]
            case "function":
                self._ask = _find_function(spec.name)
            case "model":
                self._ask = _make_local(spec, device)

    @property
    def label(self) -> str:
        """How rows name the judge."""
        return f"{self.spec.kind} {self.spec.name}, temperature {self.spec.temperature:g}"

    def add_verdicts(self, rows: Iterable[Row]) -> list[Row]:
        """Return rows with verdicts on the natural answers among them, before the edit and after.

        Raises:
            JudgeFailed (CG611): the judge gives no answer.
        """
        kept = list(rows)
        places = [place for place, row in enumerate(kept) if self._is_judged(row)]
        asked = [self.write_prompt(kept[place], kept[place].answer or "") for place in places]
        before = [
            None
            if (text := kept[place].answer_before) is None
            else self.write_prompt(kept[place], text)
            for place in places
        ]
        verdicts = self.ask([*asked, *(one for one in before if one is not None)])
        for place, prompt, old in zip(places, asked, before, strict=True):
            kept[place] = dataclasses.replace(
                kept[place],
                judge=self.label,
                judge_prompt=prompt,
                verdict=verdicts[prompt],
                verdict_before=None if old is None else verdicts[old],
            )
        return kept

    def ask(self, prompts: Iterable[str]) -> dict[str, str]:
        """Return what the judge says to each of several prompts, each asked once.

        Raises:
            JudgeFailed (CG611): the judge gives no answer.
        """
        found: dict[str, str] = {}
        missing: list[str] = []
        for prompt in dict.fromkeys(prompts):
            known = self._read(prompt)
            if known is None:
                missing.append(prompt)
            else:
                found[prompt] = known
        said = self._ask(missing) if missing else []
        for prompt, verdict in zip(missing, said, strict=True):
            self._write(prompt, verdict)
            found[prompt] = verdict
        return found

    def write_prompt(self, row: Row, answer: str) -> str:
        """Return what the judge is asked about an answer to the question of a row."""
        expected = " and ".join(" or ".join(group) for group in row.expected)
        texts = {"question": row.prompt, "expected": expected, "answer": answer}
        return _SLOT.sub(lambda slot: texts[slot.group(1)], self.spec.prompt)

    def _is_judged(self, row: Row) -> bool:
        return (
            row.protocol in NATURAL
            and row.family in self.spec.roles
            and bool(row.expected)
            and row.answer is not None
            and not row.skipped
        )

    def _path(self, prompt: str) -> Path | None:
        if self.spec.kind == "function":
            return None
        settings = self.spec.model_dump(mode="json", exclude={"prompt", "roles", "seconds"})
        key = json.dumps([settings, prompt], sort_keys=True)
        name = hashlib.sha256(key.encode()).hexdigest()
        return cache_folder() / "judged" / name[:2] / f"{name}.json"

    def _read(self, prompt: str) -> str | None:
        path = self._path(prompt)
        if path is None or not is_cached(path):
            return None
        try:
            found = cast("object", json.loads(path.read_text(encoding="utf-8")))
        except (OSError, ValueError):
            return None
        if not isinstance(found, Mapping):
            return None
        table = cast("Mapping[str, object]", found)
        said = table.get("verdict")
        return said if table.get("prompt") == prompt and isinstance(said, str) else None

    def _write(self, prompt: str, verdict: str) -> None:
        path = self._path(prompt)
        if path is not None:
            text = json.dumps({"prompt": prompt, "verdict": verdict})
            write_cached(path, lambda file: write_text(file, text))


def _ask_endpoint(spec: JudgeSpec, prompt: str) -> str:
    """Ask an endpoint of the form of OpenAI's chat completions."""
    content = {
        "model": spec.name,
        "temperature": spec.temperature,
        "max_tokens": spec.max_new_tokens,
        "messages": [{"role": "user", "content": prompt}],
    }
    try:
        return complete(
            spec.url, content, chat=True, key_variable=spec.key_variable, seconds=spec.seconds
        ).text
    except EndpointError as error:
        raise JudgeFailed(
            f'the judge "{spec.name}" {error}.',
            where=spec.url,
            hint="Start it, or run without a judge; what is recorded so far is kept, and the same "
            "command continues.",
        ) from error


def _find_function(name: str) -> AskJudge:
    """Return the function `package.module:function`, which judges one prompt, for several."""
    module, _, attribute = name.partition(":")
    try:
        function: object = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise BadConfig(
            f'the judge "{name}" cannot be found: {error}.',
            hint="Name a function that maps a prompt to a verdict: package.module:function.",
        ) from error
    if not callable(function):
        raise BadConfig(f'the judge "{name}" is no function.')
    ask = cast("Callable[[str], object]", function)

    def ask_all(prompts: Sequence[str]) -> list[str]:
        said: list[str] = []
        for prompt in prompts:
            try:
                said.append(str(ask(prompt)))
            except Exception as error:
                raise JudgeFailed(
                    f"the judge raises {type(error).__name__}: {error}.", where=name
                ) from error
        return said

    return ask_all


def _make_local(spec: JudgeSpec, device: str) -> AskJudge:
    from corrigenda.lm.chat import has_chat_template
    from corrigenda.lm.decoding import greedy
    from corrigenda.lm.model import LanguageModel

    loaded: list[LanguageModel] = []

    def ask_all(prompts: Sequence[str]) -> list[str]:
        if not loaded:
            loaded.append(LanguageModel.load(spec.name, device=device))
        (lm,) = loaded
        return greedy(
            lm,
            prompts,
            max_new_tokens=spec.max_new_tokens,
            stop=(),
            chat=has_chat_template(lm.tokenizer),
        )

    return ask_all
