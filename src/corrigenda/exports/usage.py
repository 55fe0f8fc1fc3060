"""FormCommands that load an exported form in each engine, and that take it back."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from corrigenda.exports.forms import Form


class FormCommands(NamedTuple):
    """How a form is used.

    Attributes:
        load: Shell commands or Python by engine.
        undo: How to be back at the unedited model.
    """

    load: Mapping[str, str]
    undo: str


def list_commands(form: Form, file: Path, model: str, *, base: str = "MODEL.gguf") -> FormCommands:
    """Return the commands for an exported form.

    Args:
        form: The form.
        file: The file or folder.
        model: Name or path of the unedited model.
        base: Its GGUF file.
    """
    return _FORMS[form](file.name, model, base)


def _peft(name: str, model: str, base: str) -> FormCommands:
    folder, model = shlex.quote(name), shlex.quote(model)
    python = (
        "from peft import PeftModel\n"
        "from transformers import AutoModelForCausalLM\n"
        f'model = AutoModelForCausalLM.from_pretrained("{model}")\n'
        f'model = PeftModel.from_pretrained(model, "{name}")'
    )
    return FormCommands(
        {
            "transformers and peft": python,
            "vLLM": f"vllm serve {model} --enable-lora --lora-modules edited={folder}",
            "SGLang": f"python -m sglang.launch_server --model-path {model} --enable-lora "
            f"--lora-paths edited={folder}",
        },
        "Ask the base model instead of `edited`; in peft, `with model.disable_adapter():`.",
    )


def _gguf_adapter(name: str, model: str, base: str) -> FormCommands:
    return FormCommands(
        {"llama.cpp": f"llama-server -m {shlex.quote(base)} --lora {shlex.quote(name)}"},
        'Leave --lora out. For one request: `"lora": [{"id": 0, "scale": 0.0}]`; then name the '
        "scale in every request, since what one of them computes is kept for the next.",
    )


def _gguf(name: str, model: str, base: str) -> FormCommands:
    file = shlex.quote(name)
    modelfile = f"echo 'FROM ./{name}' > Modelfile\nollama create edited -f Modelfile"
    return FormCommands(
        {"llama.cpp": f"llama-server -m {file}", "Ollama": f"{modelfile}\nollama run edited"},
        "Use the GGUF file of the unedited model.",
    )


def _merged(name: str, model: str, base: str) -> FormCommands:
    folder = shlex.quote(name)
    python = (
        "from transformers import AutoModelForCausalLM\n"
        f'model = AutoModelForCausalLM.from_pretrained("{name}")'
    )
    return FormCommands(
        {
            "transformers": python,
            "vLLM": f"vllm serve {folder}",
            "SGLang": f"python -m sglang.launch_server --model-path {folder}",
        },
        f"`corrigenda restore {folder} -o ORIGINAL` writes the unedited model, bit for bit.",
    )


_FORMS = {
    Form.PEFT: _peft,
    Form.GGUF_ADAPTER: _gguf_adapter,
    Form.GGUF: _gguf,
    Form.MERGED: _merged,
}
