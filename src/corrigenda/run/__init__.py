"""Evaluation: a recipe becomes runs, and a run becomes rows on disk.

| module | does |
|---|---|
| `spec` | specification of one run (`RunSpec`), and recipes of several runs |
| `runner` | `run` and `run_all`: a run from beginning to end |
| `plan` | cases and regime become units of work |
| `executors` | where units run: in this process, or on Ray |
| `worker` | fits the method and makes the patches of units, on one model |
| `unit_run` | one unit, step by step, with the parts below |
| `unit_edits` | applies edits, and takes failed ones off |
| `rollback` | takes edits off with which perplexity rises too far |
| `unit_probes` | asks the probes that are due |
| `unit_measures` | measures costs, drift, texts and other tasks |
| `prober` | probes become queries, and queries answers, many at once |
| `baseline` | answers of the unedited model, asked once for all methods |
| `row_builder` | answers become rows |
| `costs`, `health`, `round_trip` | what the measures are made of |
| `tasks` | other tasks along a run: multiple choice, generated answers, and those of lm-eval |
| `store` | rows on disk, part by part; `store.load` reads them |
| `summary` | tables of runs |

```python
from corrigenda.run import store

recorded = store.load("runs/3f2a...")          # the folder of a run
recorded.rows, recorded.measurements           # what metrics read
recorded.spec.editor.label, recorded.manifest  # method, model, versions
```
"""
