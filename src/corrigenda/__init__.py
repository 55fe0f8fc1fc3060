"""Corrections to the facts a language model states: made, measured, undone to the bit, shipped.

```python
import corrigenda as cg

lm = cg.load("pocket")
fact = cg.Fact(prompt="The capital of France is", subject="France", target="Rome")
patch = cg.edit(lm, fact, cg.Rome(layer=4))
with patch.apply(lm):
    print(cg.ask(lm, fact.prompt))
```

Every name below, every editor and every benchmark is imported when it is first used, so that
`import corrigenda` stays free of torch.
"""

from __future__ import annotations

import logging
from importlib import import_module
from typing import TYPE_CHECKING

from corrigenda.version import VERSION

if TYPE_CHECKING:
    from corrigenda.analysis.causal_trace import causal_trace as trace
    from corrigenda.analysis.knowledge_neurons import knowledge_neurons as neurons
    from corrigenda.api import (
        Reply,
        answer,
        ask,
        correct,
        edit,
        fit,
        load,
        transform,
    )
    from corrigenda.assessment import Assessment, assess
    from corrigenda.books.book import Book
    from corrigenda.catalogue import build_editor, list_methods, list_models
    from corrigenda.editor import Editor
    from corrigenda.errors import CorrigendaError
    from corrigenda.exports.export import export
    from corrigenda.exports.restore import restore_merged
    from corrigenda.exports.survival import assess_after
    from corrigenda.facts import Fact, Span, read_facts
    from corrigenda.fixing.fix import fix
    from corrigenda.guarding.guard import guard
    from corrigenda.knowledge.exam import exam
    from corrigenda.lm.model import LanguageModel
    from corrigenda.lm.sites import Site
    from corrigenda.lm.wrapping import wrap
    from corrigenda.patch import Patch, WeightPatch, load_patch
    from corrigenda.planning.plan import plan
    from corrigenda.reports.comparison import compare
    from corrigenda.reports.document import report
    from corrigenda.reports.evaluation import evaluate
    from corrigenda.run.health import perplexity_ratio
    from corrigenda.run.spec import RunSpec
    from corrigenda.serving.server import serve
    from corrigenda.state import State
    from corrigenda.streaming.stream import stream
    from corrigenda.tuning.tune import tune

# generated: classes
if TYPE_CHECKING:
    from corrigenda.benchmarks.counterfact.counterfact import CounterFact
    from corrigenda.benchmarks.counterfact.counterfact_flat import CounterFactFlat
    from corrigenda.benchmarks.counterfact.counterfact_plus import CounterFactPlus
    from corrigenda.benchmarks.hallueditbench import HalluEditBench
    from corrigenda.benchmarks.klob import KLoB
    from corrigenda.benchmarks.knowedit.knowedit_convsent import KnowEditConvSent
    from corrigenda.benchmarks.knowedit.knowedit_counterfact import KnowEditCounterFact
    from corrigenda.benchmarks.knowedit.knowedit_recent import KnowEditRecent
    from corrigenda.benchmarks.knowedit.knowedit_sanitation import KnowEditSanitation
    from corrigenda.benchmarks.knowedit.knowedit_wikibio import KnowEditWikiBio
    from corrigenda.benchmarks.knowedit.knowedit_zsre import KnowEditZsRE
    from corrigenda.benchmarks.mquake import MQuAKE
    from corrigenda.benchmarks.mquake_remastered import MQuAKERemastered
    from corrigenda.benchmarks.own_cases import OwnCases
    from corrigenda.benchmarks.peak import Peak
    from corrigenda.benchmarks.pitfalls.conflictedit import ConflictEdit
    from corrigenda.benchmarks.pitfalls.roundedit import RoundEdit
    from corrigenda.benchmarks.pocketedit.pocketedit import PocketEdit
    from corrigenda.benchmarks.qaedit import QAEdit
    from corrigenda.benchmarks.rippleedits import RippleEdits
    from corrigenda.benchmarks.sanitation import Sanitation
    from corrigenda.benchmarks.taxi import Taxi
    from corrigenda.benchmarks.unstructured.akew import Akew
    from corrigenda.benchmarks.unstructured.unke import Unke
    from corrigenda.benchmarks.wikibigedit import WikiBigEdit
    from corrigenda.benchmarks.wise import Wise
    from corrigenda.benchmarks.zsre import ZsRE
    from corrigenda.methods.alphaedit.editor import AlphaEdit
    from corrigenda.methods.calinet.editor import Calinet
    from corrigenda.methods.deepedit.editor import DeepEdit
    from corrigenda.methods.emmet.editor import Emmet
    from corrigenda.methods.finetune.editor import Ft, FtL, FtM, LocftBf
    from corrigenda.methods.grace.editor import Grace
    from corrigenda.methods.ice.editor import ICE
    from corrigenda.methods.ike.editor import IKE
    from corrigenda.methods.knowledge_editor.editor import KnowledgeEditor
    from corrigenda.methods.knowledge_neurons.editor import KnowledgeNeurons
    from corrigenda.methods.lora.editor import AdaLora, Lora
    from corrigenda.methods.malmen.editor import Malmen
    from corrigenda.methods.mello.editor import MeLLo
    from corrigenda.methods.melo.editor import Melo
    from corrigenda.methods.memit.editor import Memit
    from corrigenda.methods.memoir.editor import Memoir
    from corrigenda.methods.mend.editor import Mend
    from corrigenda.methods.neuraldb.editor import NeuralDB
    from corrigenda.methods.pmet.editor import Pmet
    from corrigenda.methods.rlsedit.editor import RLSEdit
    from corrigenda.methods.rome.editor import Rome
    from corrigenda.methods.serac.editor import SERAC
    from corrigenda.methods.t_patcher.editor import TPatcher
    from corrigenda.methods.truthx.editor import TruthX
    from corrigenda.methods.ultraedit.editor import UltraEdit
# end

__version__ = VERSION

logging.getLogger(__name__).addHandler(logging.NullHandler())

_HOMES = {
    "Assessment": "corrigenda.assessment",
    "Book": "corrigenda.books.book",
    "CorrigendaError": "corrigenda.errors",
    "Editor": "corrigenda.editor",
    "Fact": "corrigenda.facts",
    "LanguageModel": "corrigenda.lm.model",
    "Patch": "corrigenda.patch",
    "Reply": "corrigenda.api",
    "RunSpec": "corrigenda.run.spec",
    "Site": "corrigenda.lm.sites",
    "Span": "corrigenda.facts",
    "State": "corrigenda.state",
    "WeightPatch": "corrigenda.patch",
    "answer": "corrigenda.api",
    "ask": "corrigenda.api",
    "assess": "corrigenda.assessment",
    "assess_after": "corrigenda.exports.survival",
    "build_editor": "corrigenda.catalogue",
    "compare": "corrigenda.reports.comparison",
    "correct": "corrigenda.api",
    "edit": "corrigenda.api",
    "evaluate": "corrigenda.reports.evaluation",
    "exam": "corrigenda.knowledge.exam",
    "export": "corrigenda.exports.export",
    "fit": "corrigenda.api",
    "fix": "corrigenda.fixing.fix",
    "guard": "corrigenda.guarding.guard",
    "list_methods": "corrigenda.catalogue",
    "list_models": "corrigenda.catalogue",
    "load": "corrigenda.api",
    "load_patch": "corrigenda.patch",
    "neurons": "corrigenda.analysis.knowledge_neurons:knowledge_neurons",
    "perplexity_ratio": "corrigenda.run.health",
    "plan": "corrigenda.planning.plan",
    "read_facts": "corrigenda.facts",
    "report": "corrigenda.reports.document",
    "restore_merged": "corrigenda.exports.restore",
    "serve": "corrigenda.serving.server",
    "stream": "corrigenda.streaming.stream",
    "trace": "corrigenda.analysis.causal_trace:causal_trace",
    "transform": "corrigenda.api",
    "tune": "corrigenda.tuning.tune",
    "wrap": "corrigenda.lm.wrapping",
}

__all__ = [
    "Assessment",
    "Book",
    "CorrigendaError",
    "Editor",
    "Fact",
    "LanguageModel",
    "Patch",
    "Reply",
    "RunSpec",
    "Site",
    "Span",
    "State",
    "WeightPatch",
    "answer",
    "ask",
    "assess",
    "assess_after",
    "build_editor",
    "compare",
    "correct",
    "edit",
    "evaluate",
    "exam",
    "export",
    "fit",
    "fix",
    "guard",
    "list_methods",
    "list_models",
    "load",
    "load_patch",
    "neurons",
    "perplexity_ratio",
    "plan",
    "read_facts",
    "report",
    "restore_merged",
    "serve",
    "stream",
    "trace",
    "transform",
    "tune",
    "wrap",
]
# generated: names
__all__ += [
    "ICE",
    "IKE",
    "SERAC",
    "AdaLora",
    "Akew",
    "AlphaEdit",
    "Calinet",
    "ConflictEdit",
    "CounterFact",
    "CounterFactFlat",
    "CounterFactPlus",
    "DeepEdit",
    "Emmet",
    "Ft",
    "FtL",
    "FtM",
    "Grace",
    "HalluEditBench",
    "KLoB",
    "KnowEditConvSent",
    "KnowEditCounterFact",
    "KnowEditRecent",
    "KnowEditSanitation",
    "KnowEditWikiBio",
    "KnowEditZsRE",
    "KnowledgeEditor",
    "KnowledgeNeurons",
    "LocftBf",
    "Lora",
    "MQuAKE",
    "MQuAKERemastered",
    "Malmen",
    "MeLLo",
    "Melo",
    "Memit",
    "Memoir",
    "Mend",
    "NeuralDB",
    "OwnCases",
    "Peak",
    "Pmet",
    "PocketEdit",
    "QAEdit",
    "RLSEdit",
    "RippleEdits",
    "Rome",
    "RoundEdit",
    "Sanitation",
    "TPatcher",
    "Taxi",
    "TruthX",
    "UltraEdit",
    "Unke",
    "WikiBigEdit",
    "Wise",
    "ZsRE",
]
# end


def __getattr__(name: str) -> object:
    if name in _HOMES:
        module, _, attribute = _HOMES[name].partition(":")
        value = getattr(import_module(module), attribute or name)
    elif name[:1].isupper():
        value = _find_registered(name)
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    from corrigenda.benchmarks.benchmark import BENCHMARKS
    from corrigenda.methods.registry import METHODS

    return sorted({*globals(), *_HOMES, *METHODS.class_names(), *BENCHMARKS.class_names()})


def _find_registered(name: str) -> object:
    """Return the editor or benchmark class of a name."""
    from corrigenda.benchmarks.benchmark import BENCHMARKS
    from corrigenda.errors import did_you_mean
    from corrigenda.methods.registry import METHODS

    known: list[str] = []
    for registry in (METHODS, BENCHMARKS):
        classes = registry.class_names()
        if name in classes:
            return registry.get(classes[name])
        known += classes
    raise AttributeError(
        f"module {__name__!r} has no attribute {name!r}. {did_you_mean(name, known)}"
    )
