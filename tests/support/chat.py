"""Tiny models with chat templates of several kinds."""

from __future__ import annotations

import copy

from corrigenda.lm.model import LanguageModel
from corrigenda.testing.tiny import tiny_model

PLAIN = (
    "{% for m in messages %}[{{ m['role'] }}] {{ m['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}[assistant] {% endif %}"
)
"""No special tokens; a space before an answer belongs to the template."""

WITH_BOS = "{{ bos_token }}" + PLAIN

SYSTEM = (
    "{{ bos_token }}{% if messages[0]['role'] != 'system' %}[system] Today is "
    "{{ strftime_now('%d %b %Y') }}\n{% endif %}" + PLAIN
)
"""A system prompt of its own, with the date."""

TRIMMED = (
    "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'user' %}"
    "{{ '[INST] ' + (m['content'] | trim) + ' [/INST]' }}"
    "{% else %}{{ ' ' + m['content'] + ' ' }}{% endif %}{% endfor %}"
)
"""No prompt for an answer; white space around what is said is dropped."""

REFUSING = "{{ raise_exception('a system prompt is needed') }}"
SILENT = "{% for m in messages %}[{{ m['role'] }}]{% endfor %}"

TEMPLATES = {"plain": PLAIN, "bos": WITH_BOS, "system": SYSTEM, "trimmed": TRIMMED}


def chat_model(
    family: str = "llama", template: str = WITH_BOS, *, layers: int = 4
) -> LanguageModel:
    """A tiny random model whose tokenizer has a chat template."""
    lm = tiny_model(family)
    tokenizer = copy.deepcopy(lm.tokenizer)
    tokenizer.chat_template = template
    return LanguageModel(lm.model, tokenizer, name="chatty")
